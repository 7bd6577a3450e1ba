import warnings

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gpucoron.backend.cuda import read_kernels
from gpucoron.errors import InputError
from gpucoron.ops.cuda import median as _median_cuda
from gpucoron.ops.median import median
from tests.helpers.scenes import read_only

DTYPES = [np.float32, np.float64]


def noisy(n, dtype, shape=(3, 23)):
    rng = np.random.default_rng(n)
    images = rng.normal(100, 30, (n, *shape)).astype(dtype)
    images[rng.random(images.shape) < 0.1] = np.nan
    images[:, 2, :5] = np.nan
    good = rng.random(images.shape) < 0.8
    good[:, 0, 3] = False
    return read_only(images, good)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "n, shape",
    [
        *((n, (3, 23)) for n in (1, 2, 3, 4, 7, 10, 17, 32, 33, 47, 48, 49, 50, 64, 65, 131)),
        *((n, (3, 7)) for n in (129, 300, 600, 1100, 2048, 2049)),
    ],
)
def test_equals_nanmedian_bit_for_bit(device, n, shape, dtype):
    images, good = noisy(n, dtype, shape)
    for chosen, values in (((good,), np.where(good, images, np.nan)), ((), images)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pixels without any
            expected = np.nanmedian(values, axis=0)
        found = device.call(median, images, *chosen)
        assert found.dtype == dtype
        assert_array_equal(found, expected)


@pytest.mark.parametrize("n", [5, 64, 250])
def test_ties(device, n):
    images = np.random.default_rng(1).integers(-3, 3, (n, 3, 21)).astype(np.float32)
    assert_array_equal(device.call(median, images), np.median(images, axis=0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [20, 100])
def test_infinities_are_ordered_and_sorted_input_is_no_trap(device, n, dtype):
    images = np.sort(np.random.default_rng(2).normal(size=(n, 2, 12)), axis=0).astype(dtype)
    images[-1, 0, 0], images[0, 0, 1] = np.inf, -np.inf
    images[:, 1, 0] = np.inf
    images[: n // 2, 1, 1], images[n // 2 :, 1, 1] = -np.inf, 3
    with np.errstate(invalid="ignore"):
        expected = np.median(images, axis=0)
    assert_array_equal(device.call(median, images), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [3, 101])
def test_the_smallest_and_largest_numbers_keep_their_order(device, n, dtype):
    """Odd numbers of values that no arithmetic touches: denormals, both zeros, the extremes."""
    facts = np.finfo(dtype)
    values = np.array([0, facts.smallest_subnormal, facts.smallest_normal, 1, facts.max], dtype)
    values = np.concatenate([values, -values])
    images = np.random.default_rng(3).choice(values, (n, 2, 9))
    assert_array_equal(device.call(median, images), np.median(images, axis=0))


def test_views_and_empty_images(device):
    images = np.random.default_rng(4).normal(size=(5, 6, 8))
    found = median(device.array(images)[:, ::-1, 1::2])
    assert_array_equal(device.get(found), np.median(images[:, ::-1, 1::2], axis=0))
    assert median(device.array(images[:, :0])).shape == (0, 8)


@pytest.mark.parametrize(
    "images, good, text",
    [
        (np.zeros((3, 3)), None, r"shape \(3, 3\), expected \(n, ny, nx\)"),
        (np.zeros((0, 3, 3)), None, "n > 0"),
        (np.zeros((2, 3, 3), int), None, "dtype int64"),
        (np.zeros((2, 3, 3), np.float16), None, "dtype float16, expected float32 or float64"),
        (np.zeros((2, 3, 3)), np.ones((3, 3), bool), r"good has shape \(3, 3\)"),
    ],
)
def test_errors_say_what_was_found(images, good, text):
    with pytest.raises(InputError, match=text):
        median(images, good)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 4, 5, 33, 64, 65, 128, 129, 2048])
def test_the_chosen_instantiation_holds_them_all(n, dtype):
    dtype = np.dtype(dtype)
    kind, template, _, block = _median_cuda.geometry(n, 1000, dtype)
    assert f"{kind}_median<{template}>" in read_kernels("median").names
    most, *warps = map(int, template.split(", ")[1:])
    if kind == "tile":
        assert block == (32 * warps[0],)
        most *= 32 * warps[0] * dtype.itemsize // 32
    assert n <= most
