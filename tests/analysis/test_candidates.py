"""SNR maps and candidates, against direct sums and planted sources."""

import math

import numpy as np
import pytest
from scipy import stats

from gpucoron.analysis.candidates import find_candidates, snr_map
from gpucoron.analysis.detection import aperture_snr, significance
from gpucoron.errors import InputError
from tests.helpers.scenes import gaussian

FWHM = 2.6
STAR = (58.3, 61.8)
SHAPE = (120, 117)


def scene(sources=(), seed=1):
    image = np.random.default_rng(seed).normal(0, 1.0, SHAPE)
    image += sum(gaussian(SHAPE, *source, FWHM) for source in sources)
    image.flags.writeable = False
    return image


def direct_snr(image, x, y):
    """Mawet et al. 2014, equation 9, by sums over 20 x 20 points in a pixel."""
    fine = (np.arange(20) + 0.5) / 20 - 0.5

    def aperture(cx, cy):
        total = 0.0
        for j in range(round(cy) - 3, round(cy) + 4):
            for i in range(round(cx) - 3, round(cx) + 4):
                inside = (j + fine - cy)[:, None] ** 2 + (i + fine - cx) ** 2 <= (FWHM / 2) ** 2
                total += inside.mean() * image[j, i]
        return total

    radius, start = math.hypot(x - STAR[0], y - STAR[1]), math.atan2(y - STAR[1], x - STAR[0])
    n = int(2 * math.pi * radius / FWHM)
    angles = start + 2 * math.pi * np.arange(n) / n
    ring = [
        aperture(STAR[0] + radius * math.cos(a), STAR[1] + radius * math.sin(a)) for a in angles
    ]
    others = np.array(ring[2:-1])  # not itself, nor its neighbours
    noise = others.std(ddof=1) * math.sqrt(1 + 1 / len(others))
    return (ring[0] - others.mean()) / noise, len(others)


@pytest.mark.parametrize("x, y", [(70, 62), (58, 45), (40, 80), (95, 30)])
def test_equals_direct_sums(x, y):
    # The map's noise is that of a circle whose radius is a multiple of half a pixel, which has
    # other apertures (they scatter by 10 to 15 %), and of sums by straight lines between half
    # pixels, which smooths by up to 5 %. What the table says is measured without either.
    ratios = []
    for seed in range(12):
        image = scene([(x, y, 12.0)], seed)
        snr, n = snr_map(image, STAR, FWHM)
        direct, count = direct_snr(image, x, y)
        assert abs(n[y, x] - count) <= 1
        ratios.append(snr[y, x] / direct)
        measured = aperture_snr(image, (x, y), STAR, fwhm_px=FWHM)
        assert measured[1] == pytest.approx(direct, rel=0.02) and measured[3] == count
    assert 0.95 < np.mean(ratios) < 1.12 and np.ptp(ratios) < 0.6


def test_a_smooth_image_leaves_no_scatter():
    yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = np.cos(xx / 9) + np.sin(yy / 7) + xx * yy / 3000
    snr, _ = snr_map(image, STAR, FWHM)
    for x, y in ((75, 62), (58, 40), (30, 80)):
        assert snr[y, x] == pytest.approx(direct_snr(image, x, y)[0], abs=0.06)


def test_significance_has_the_false_alarm_rate_of_students_t():
    for snr, n in ((3.0, 4), (5.0, 10), (2.0, 200), (-3.0, 7)):
        expected = stats.norm.isf(stats.t.sf(snr, n - 1))
        assert float(significance(snr, n)) == pytest.approx(expected, rel=1e-6)
    assert 36.9 < significance(1e9, 1000) <= 37 and np.isnan(significance(5.0, 1))


def test_noise_alone_is_gaussian_in_the_map_and_has_no_candidates():
    images = [scene(seed=seed) for seed in range(12)]
    assert all(find_candidates(image, STAR, FWHM) == [] for image in images)
    sigmas = np.array([significance(*snr_map(image, STAR, FWHM)) for image in images[:6]])
    sigmas = sigmas[np.isfinite(sigmas)]
    assert abs(sigmas.mean()) < 0.03 and 0.97 < sigmas.std() < 1.03
    assert 0.5 < (sigmas > 3).mean() / stats.norm.sf(3) < 2


def test_planted_sources_are_found():
    planted = [(75.3, 60.1, 30.0), (50.2, 40.7, 15.0), (20.4, 95.6, 10.0), (74.0, 70.4, 12.0)]
    found = find_candidates(scene(planted), STAR, FWHM)
    assert len(found) == len(planted)
    for x, y, _ in planted:
        near = min(found, key=lambda c: math.hypot(c.x - x, c.y - y))
        assert math.hypot(near.x - x, near.y - y) < 0.4 and not near.narrow
        assert near.separation_px == pytest.approx(math.hypot(x - STAR[0], y - STAR[1]), abs=0.4)
        assert near.significance > 5


def test_a_faint_source_beside_a_bright_one_at_the_same_separation():
    bright, faint = (88.3, 61.8, 3000.0), (58.3, 31.8, 12.0)
    found = find_candidates(scene([bright, faint]), STAR, FWHM)
    assert any(math.hypot(c.x - faint[0], c.y - faint[1]) < 0.5 for c in found)


def test_a_hot_pixel_is_narrow():
    image = scene().copy()
    image[40, 80] = 60
    (found,) = find_candidates(image, STAR, FWHM)
    assert found.narrow and (round(found.x), round(found.y)) == (80, 40)


VALUES = [(SHAPE, value) for value in (np.nan, 0.0, np.inf, 1e300, 1e-310)]


@pytest.mark.parametrize(("shape", "value"), [*VALUES, ((1, 1), 0.0), ((3, 40), 0.0)])
def test_images_without_anything(shape, value):
    with np.errstate(all="ignore"):
        assert find_candidates(np.full(shape, value), STAR, FWHM) == []


def test_nan_and_a_star_outside():
    image = scene([(75, 62, 40.0)]).copy()
    image[:, :20] = np.nan
    image[75:80, 60:64] = np.nan
    assert len(find_candidates(image, STAR, FWHM)) == 1
    snr_map(image, (-50.0, 400.0), FWHM)


def test_wrong_arguments():
    for shape, fwhm in ((3, FWHM), (SHAPE, math.nan)):
        with pytest.raises(InputError, match="expected"):
            snr_map(np.zeros(shape), STAR, fwhm)
