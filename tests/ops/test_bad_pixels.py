import numpy as np
import pytest

from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.bad_pixels import fill_bad_pixels, fill_bad_pixels_raster
from tests import oracles
from tests.scenes import read_only


def holed(n=3, shape=(23, 19), fraction=0.15, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    images = rng.normal(100, 20, (n, *shape)).astype(dtype)
    bad = rng.random(images.shape) < fraction
    bad[0, 8:13, 8:13] = True  # wider than the box
    bad[:, 0, :4] = True  # corner and edge
    images[1][bad[1]] = np.nan
    return read_only(images, bad)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("box", [1, 3, 5, 4])
def test_box_fill_equals_the_oracle(box, dtype):
    images, bad = holed(dtype=dtype)
    out = fill_bad_pixels(images, bad, box)
    for k in range(len(images)):
        np.testing.assert_array_equal(out[k], oracles.box_fill(images[k], ~bad[k], box))


def test_other_integrations_of_the_exposure_come_first():
    images, bad = holed(n=6)
    groups = np.array([0, 0, 0, 0, 1, 1])
    out = fill_bad_pixels(images, bad, 3, groups)
    for k, y, x in zip(*np.nonzero(bad), strict=True):
        mates = [j for j in range(6) if groups[j] == groups[k] and not bad[j, y, x]]
        if mates:
            assert out[k, y, x] == np.median(images[mates, y, x])
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(out[~bad], images[~bad])


def test_result_does_not_depend_on_orientation():
    images, bad = holed()
    out = fill_bad_pixels(images, bad, 3)
    turned = fill_bad_pixels(images[:, ::-1, ::-1], bad[:, ::-1, ::-1], 3)
    np.testing.assert_array_equal(out, turned[:, ::-1, ::-1])


def test_infinite_pixels_are_bad_and_empty_integrations_stay_nan():
    images = np.ones((2, 9, 9), np.float32)
    images[0, 4, 4] = np.inf
    images[1] = np.nan
    out = fill_bad_pixels(images, np.zeros(images.shape, bool))
    assert out[0, 4, 4] == 1
    assert np.isnan(out[1]).all()


def test_zero_region_is_zero_and_lends_nothing():
    images = np.full((1, 9, 9), 5.0)
    zero = np.zeros(images.shape, bool)
    zero[0, :, :3] = True
    bad = zero.copy()
    bad[0, 4, 3] = True
    out = fill_bad_pixels(images, bad, 3, zero=zero)
    assert (out[zero] == 0).all()
    assert out[0, 4, 3] == 5


@pytest.mark.parametrize("box", [0, 1, 2, 3, 5, 7])
def test_raster_fill_equals_the_oracle(box):
    images, bad = holed(n=3, shape=(12, 11), fraction=0.3)
    flagged = bad & ~np.isnan(images)
    images = images.copy()
    images[2, 5, 5:8] = np.inf
    out = fill_bad_pixels_raster(images, bad, flagged, box)
    for k in range(3):
        np.testing.assert_array_equal(
            out[k], oracles.raster_fill(images[k], bad[k], flagged[k], box))


def test_raster_fill_equals_jwst():
    jwst = pytest.importorskip("jwst.coron.median_replace_img", reason="jwst is not installed")
    from stdatamodels.jwst.datamodels import CubeModel

    images, bad = holed(n=2, shape=(20, 21))
    model = CubeModel(data=images.copy(), dq=bad.astype(np.uint32))
    expected = jwst.median_replace_img(model, 3, 1).data
    np.testing.assert_array_equal(fill_bad_pixels_raster(images, bad, bad, 3), expected)


def test_errors():
    images, bad = holed()
    with pytest.raises(InputError, match="bad has shape"):
        fill_bad_pixels(images, bad[:1])
    with pytest.raises(ParameterError, match="box is 0"):
        fill_bad_pixels(images, bad, 0)
