"""Contrast of whole runs: sources injected at the curve, and the noise of VIP and pyKLIP."""

import numpy as np
import pytest
from bench_contrast import closure, reduce_set

from gpucoron.analysis.noise import pixel_limits, ring_noise


@pytest.fixture(scope="module", params=[("nircam", 11), ("nircam", 12), ("miri-4qpm", 13)])
def record(request, tmp_path_factory):
    """Record of a run with 5 and all KL modes."""
    folder = tmp_path_factory.mktemp("record")
    return reduce_set(folder, *request.param, "rdi", [5, 99]).product.record


@pytest.mark.slow
def test_closure(record):
    """Sources injected at the curve have 5 Gaussian sigmas in the mean, half of them more."""
    found = np.array(closure(record, 5))
    assert found.shape == (2, 200)
    assert np.isfinite(found).mean() > 0.95
    assert 4.8 < np.nanmean(found) < 5.3
    assert 0.43 < np.nanmean(np.greater(found, 5)) < 0.60


def about_star(record, image):
    """The largest odd square of an image without NaN about the star, and the star in it."""
    x, y = np.rint(record.star.pixel).astype(int)
    half = 1
    while np.isfinite(image[y - half - 1 : y + half + 2, x - half - 1 : x + half + 2]).all():
        half += 1
        if min(x, y) <= half or max(x + half, y + half) >= min(image.shape) - 1:
            break
    return image[y - half : y + half + 1, x - half : x + half + 1].astype(float), half


@pytest.mark.slow
def test_noise_of_runs_as_vip(record):
    metrics = pytest.importorskip("vip_hci.metrics")
    fwhm = record.forward.fwhm_px
    for image in record.images.values():
        square, half = about_star(record, image)
        noise, _, radii = metrics.noise_per_annulus(square, fwhm, fwhm, fwhm)
        assert len(radii) >= 8
        ours = ring_noise(square, (half, half), fwhm, radii, ddof=0)
        np.testing.assert_allclose(ours.noise, noise, rtol=0.02)


@pytest.mark.slow
def test_limits_of_runs_as_pyklip(record):
    klip = pytest.importorskip("pyklip.klip")
    fwhm = record.forward.fwhm_px
    for image in record.images.values():
        star = record.star.pixel
        span = 2 * fwhm, 14 * fwhm
        for smooth in (True, False):
            separation, expected = klip.meas_contrast(
                image.astype(float), *span, fwhm, star, smooth
            )
            ours = pixel_limits(image, star, fwhm, span, smooth)
            np.testing.assert_allclose(ours[0], separation)
            np.testing.assert_allclose(ours[1], expected, rtol=0.02)
