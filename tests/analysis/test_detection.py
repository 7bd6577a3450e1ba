"""Finding planets in images whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from gpucoron.analysis.detection import aperture_snr, aperture_sums, detect, locate
from gpucoron.errors import InputError
from tests.helpers.scenes import gaussian

FWHM = 2.3
STAR = (40.3, 38.8)


def scene(sources, noise=0.0, seed=1, shape=(80, 84), level=0.0):
    image = np.random.default_rng(seed).normal(level, noise, shape)
    image += sum(gaussian(shape, *source, FWHM) for source in sources)
    image = image.astype(np.float32)
    image.flags.writeable = False
    return image


@pytest.mark.parametrize("x, y", [(55.0, 50.0), (55.5, 49.5), (54.73, 50.21), (20.1, 30.9)])
@pytest.mark.parametrize("offset", [(0, 0), (1.2, -1.1)])
def test_position_without_noise(x, y, offset):
    image = scene([(x, y, 5.0)], level=3.0)
    found = locate(image, (x + offset[0], y + offset[1]), fwhm_px=FWHM, search_px=2.5)
    assert found[2]
    np.testing.assert_allclose(found[:2], (x, y), atol=1e-4)


def test_position_in_noise_scatters_as_theory_says():
    # Centroid error of a Gaussian of known noise: sigma_x = noise / peak / sqrt(pi) * sqrt(2)
    # (Condon 1997, with pixels of unit area); allow a little for the free width and level.
    peak, noise = 10.0, 0.5
    images = (scene([(50.3, 47.6, peak)], noise, seed=k) for k in range(60))
    found = np.array([locate(image, (50, 48), fwhm_px=FWHM) for image in images])
    assert found[:, 2].all()
    errors = found[:, :2] - (50.3, 47.6)
    expected = noise / peak * math.sqrt(2 / math.pi)
    assert np.abs(errors.mean(axis=0)).max() < 3 * expected / math.sqrt(60)
    assert 0.7 * expected < errors.std() < 1.6 * expected


def test_position_beside_nan_and_a_wrong_width():
    image = scene([(50.3, 47.6, 10.0)]).copy()
    image[48, 51] = image[46, 49] = np.nan
    for width in (1.8, FWHM, 3.0):
        found = locate(image, (50, 48), fwhm_px=width)
        assert found[2]
        np.testing.assert_allclose(found[:2], (50.3, 47.6), atol=1e-3)


def test_nothing_to_find():
    image = np.full((30, 30), np.nan)
    assert math.isnan(locate(image, (10, 10), fwhm_px=FWHM)[0])
    found = detect(image, (10, 10), (15, 15), fwhm_px=FWHM)
    assert math.isnan(found.snr) and not found.converged
    assert not detect(scene([]), (200, 200), STAR, fwhm_px=FWHM).converged
    assert not locate(np.ones((2, 2)), (0, 0), fwhm_px=FWHM)[2]


def test_aperture_sums():
    ones = np.ones((40, 40))
    centres = [(20, 20), (20.5, 19.7), (0, 0)]
    sums = aperture_sums(ones, centres, 3.0)
    np.testing.assert_allclose(sums[:2], math.pi * 9, rtol=1e-12)
    assert math.isnan(sums[2])
    assert math.isnan(aperture_sums(ones, [(99, 99)], 3.0)[0])
    holed = ones.copy()
    holed[20, 20] = np.nan
    assert aperture_sums(holed, centres[:1], 3.0)[0] == pytest.approx(math.pi * 9)
    holed[18:23, 18:23] = np.nan
    assert math.isnan(aperture_sums(holed, centres[:1], 3.0)[0])
    gaussian = scene([(40.2, 41.3, 1.0)])
    inside = 1 - math.exp(-4 * math.log(2) * 6.0**2 / FWHM**2)
    total = math.pi * FWHM**2 / (4 * math.log(2)) * inside
    assert aperture_sums(gaussian, [(40.2, 41.3)], 6.0)[0] == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("radius", [1.3, 2.5, 8.0])
def test_significance_of_pure_noise_is_a_standard_normal(radius):
    """Close to the star, where five apertures must do, too: what Mawet et al. corrected."""
    values = []
    for seed in range(150):
        # independent apertures: noise without correlation between pixels
        image = scene([], noise=1.0, seed=seed)
        at = (STAR[0] + radius * FWHM * math.cos(seed), STAR[1] + radius * FWHM * math.sin(seed))
        flux, snr, significance, n = aperture_snr(image, at, STAR, fwhm_px=FWHM)
        assert n >= 5
        # the definition, once more and by another way
        assert stats.t.sf(snr, n - 1) == pytest.approx(stats.norm.sf(significance), rel=1e-6)
        values.append(significance)
    assert stats.kstest(values, "norm").pvalue > 0.005


def test_snr_of_a_planet():
    noise, peak = 0.2, 4.0
    planet, other = (60.4, 50.2), (20.3, 27.9)
    image = scene([(*planet, peak), (*other, 50.0)], noise, level=7.0)
    found = detect(image, (60, 50), STAR, fwhm_px=FWHM, others=[other])
    np.testing.assert_allclose((found.x, found.y), planet, atol=0.15)
    # half the light of a Gaussian falls into an aperture one FWHM across
    flux = peak * math.pi * FWHM**2 / (4 * math.log(2)) / 2
    assert found.flux == pytest.approx(flux, rel=0.1)
    ideal = flux / (noise * math.sqrt(math.pi) * FWHM / 2)
    assert 0.6 * ideal < found.snr < 1.6 * ideal
    assert 5 < found.significance <= found.snr


def test_other_sources_are_kept_out_of_the_noise():
    planet, twin = (STAR[0] + 12, STAR[1]), (STAR[0] - 12, STAR[1])
    image = scene([(*planet, 5.0), (*twin, 5.0)], noise=0.1)
    with_twin = aperture_snr(image, planet, STAR, fwhm_px=FWHM)
    without = aperture_snr(image, planet, STAR, fwhm_px=FWHM, others=[twin])
    assert without[1] > 3 * with_twin[1] and without[3] < with_twin[3]


def test_too_few_apertures_and_no_noise():
    image = scene([(41.0, 39.0, 3.0)])
    assert math.isnan(aperture_snr(image, (41.0, 39.0), STAR, fwhm_px=FWHM)[1])
    flat = aperture_snr(np.ones((80, 84)), (60, 50), STAR, fwhm_px=FWHM)
    assert abs(flat[0]) < 1e-9


def test_wrong_arguments():
    with pytest.raises(InputError, match=r"image has shape \(3,\), expected \(ny, nx\)"):
        locate(np.zeros(3), (0, 0), fwhm_px=2)
    with pytest.raises(InputError, match="fwhm_px is 0, expected"):
        aperture_snr(np.zeros((3, 3)), (0, 0), (1, 1), fwhm_px=0)
