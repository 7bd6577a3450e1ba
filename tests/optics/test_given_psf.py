"""A PSF given as images, against sums of samples, an analytic PSF, and the optics it is made of."""

import numpy as np
import pytest
from scipy.special import erf

from gpucoron.errors import InputError
from gpucoron.optics.given_psf import GivenPSF
from gpucoron.optics.instruments import choose_optics
from gpucoron.optics.off_axis import OffAxisPSF
from tests.helpers.psf_files import effective_psf, grid_about

NOWHERE = np.zeros((1, 2))


def gaussian(edges, at, sigma):
    """Light of a Gaussian between edges: exact."""
    return np.diff(erf((edges - at) / (np.sqrt(2) * sigma))) / 2


def samples(n, oversample, sigma=1.3):
    edges = (np.arange(n + 1) - n / 2) / oversample
    along = gaussian(edges, 0.0, sigma)
    return np.outer(along, along)


@pytest.mark.parametrize("oversample", [3, 4])
def test_whole_samples_are_added_up(oversample):
    n = 13 * oversample
    image = np.random.default_rng(oversample).random((n, n))
    image /= image.sum()
    psf = GivenPSF(image, oversample=oversample)
    binned = image.reshape(13, oversample, 13, oversample).sum(axis=(1, 3))
    assert psf.box == 13
    np.testing.assert_allclose(psf.images(NOWHERE)[0], binned, rtol=1e-5)
    step = 1 / oversample  # the source moves by one sample: the image with it
    moved = psf.images(NOWHERE, np.array([[step, -step]]))[0]
    rolled = np.roll(image, (1, -1), axis=(0, 1)).reshape(13, oversample, 13, -1).sum(axis=(1, 3))
    np.testing.assert_allclose(moved[1:-1, 1:-1], rolled[1:-1, 1:-1], rtol=1e-5)


@pytest.mark.parametrize(
    ("oversample", "n", "limit"),
    [(1, 21, 2e-3), (2, 42, 2e-4), (4, 84, 2e-5), (3.7, 80, 2e-5)],  # half of these found
)
def test_a_gaussian_between_samples(oversample, n, limit):
    psf = GivenPSF(samples(n, oversample), oversample=oversample)
    edges = np.arange(psf.box + 1) - psf.box / 2
    for within in ((0.31, -0.47), (0.5, 0.12)):
        expected = np.outer(*(gaussian(edges, at, 1.3) for at in within))
        found = psf.images(NOWHERE, np.array([within]))[0]
        np.testing.assert_allclose(found, expected, atol=limit * expected.max())
        assert found.sum() == pytest.approx(1, abs=1e-5)
    assert psf.fwhm_px == pytest.approx(2.3548 * np.hypot(1.3, 12**-0.5), rel=0.03)


@pytest.mark.parametrize(
    "optics",
    [("nircam", "F444W", "335R"), ("nircam", "F210M", "210R"), ("miri-4qpm", "F1140C", None)],
    ids=str,
)
def test_images_of_the_optics_give_what_the_optics_do(optics):
    """Near the mask, where they change most; interpolated in both."""
    psf, rng = OffAxisPSF(*choose_optics(*optics), box=15), np.random.default_rng(1)
    step = psf._table._spacing
    places = grid_about((6.0, 6.0), step, 6)
    given = GivenPSF(effective_psf(psf, places, 3), places, oversample=3, convolved=True)
    offsets = 6 + step * rng.uniform(-1.4, 1.4, (12, 2))
    within = rng.uniform(-0.5, 0.5, (12, 2))
    expected = psf.images(offsets, within, exact=True)[:, 2:-2, 2:-2]
    peak = psf.without_mask.max()
    np.testing.assert_allclose(given.images(offsets, within), expected, atol=4e-3 * peak)
    light = given.throughput(offsets)
    assert np.ptp(light) > 0.05  # it depends on the place
    far = psf.throughput(places[-1:], exact=True)[0]
    ours = psf.throughput(offsets, exact=True) / far
    np.testing.assert_allclose(light, ours, rtol=0.06)  # 0.05 found: light outside of the box


def test_between_places():
    """Linear change is exact on grids, on triangles and on a ray; the nearest beyond."""
    base, rng = samples(9, 1), np.random.default_rng(5)
    scattered = np.vstack([[[-9, -9], [-9, 9], [9, -9], [9, 9]], rng.uniform(-8, 8, (20, 2))])
    grid = np.stack(np.meshgrid([-9, -2, 1, 6, 9], [-8, 0, 8], indexing="ij"), -1).reshape(-1, 2)
    at = rng.uniform(-7, 7, (6, 2))
    for places in (scattered, grid):
        bright = 0.5 + places @ [0.02, -0.01]
        psf = GivenPSF(base * bright[:, None, None], places)
        expected = 0.5 + at @ [0.02, -0.01]
        np.testing.assert_allclose(psf.images(at)[:, 4, 4] / base[4, 4], expected, rtol=1e-5)
        corner = psf.images(np.array([[50.0, 50.0]]))[0]
        far = np.argmax(places.sum(axis=1))
        np.testing.assert_allclose(corner, base * bright[far], rtol=1e-5)
    ray = np.array([[0, 1.0], [0, 3.0], [0, 8.0]])
    psf = GivenPSF(base * (0.1 * ray[:, 1, None, None]), ray)
    found = psf.throughput(np.array([[3.0, 4.0], [0.0, -2.0], [90.0, 0.0]]))
    np.testing.assert_allclose(found, [5 / 8, 2 / 8, 1], rtol=1e-6)


def test_one_image_takes_the_throughput_of_a_mask():
    optics = OffAxisPSF(*choose_optics("nircam"), box=15)
    psf = GivenPSF(samples(15, 1), mask=optics)
    offsets = np.array([[0.0, 3.0], [20.0, 9.0]])
    light = psf.images(offsets, exact=True).sum(axis=(1, 2))
    np.testing.assert_allclose(light, optics.throughput(offsets, exact=True), rtol=1e-4)
    np.testing.assert_allclose(psf.throughput(offsets), optics.throughput(offsets))


@pytest.mark.parametrize(
    ("images", "options", "says"),
    [
        (samples(9, 1)[0], {}, r"shape \(9,\), expected numbers"),
        (samples(9, 1) * 40, {}, "add up to 40 to 40, expected fractions"),
        (np.full((9, 9), np.nan), {}, "81 samples of the images are not finite"),
        (np.array([samples(9, 1)] * 2), {}, "2 images without places"),
        (np.array([samples(9, 1)] * 2), {"places": [[0, 1]]}, r"places have shape \(1, 2\)"),
        (np.array([samples(9, 1)] * 2), {"places": [[1, 1], [1, 1]]}, "have 1 different places"),
        (np.array([samples(9, 1)] * 3), {"places": [[1, 1], [2, 2], [3, 3]]}, "places on a line"),
        (samples(9, 1), {"oversample": 4}, "expected 3 pixels or more"),
        (samples(9, 1), {"centre": (30, 4)}, "expected 3 pixels or more"),
    ],
)
def test_what_cannot_be(images, options, says):
    with pytest.raises(InputError, match=says):
        GivenPSF(images, options.pop("places", None), **options)
