"""Contrast curves against VIP, pyKLIP and the formula; whole runs are in tests/bench."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable
from scipy import stats
from scipy.ndimage import gaussian_filter

import gpucoron
from gpucoron.analysis.contrast import measure_contrast
from gpucoron.analysis.noise import (
    Source,
    bright_sources,
    detection_factor,
    pixel_limits,
    ring_noise,
)
from gpucoron.errors import InputError, ParameterError, UsageError
from gpucoron.simulate import simulate

FWHM = 3.3


def speckles(seed, side=121):
    """Correlated noise that falls with the separation."""
    y, x = np.indices((side, side)) - side // 2
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 1.3)
    return noise * (1 + 30 * np.exp(-np.hypot(y, x) / 9))


@pytest.mark.parametrize("sigma", [3.0, 5.0])
def test_detection_factor(sigma):
    n = np.array([2, 3, 6, 25, 400])
    expected = stats.t.ppf(stats.norm.cdf(sigma), n - 1) * np.sqrt(1 + 1 / n)
    np.testing.assert_allclose(detection_factor(n, sigma), expected, rtol=1e-6)
    assert np.isnan(detection_factor(1))


@pytest.mark.parametrize("seed", [1, 2])
def test_noise_as_vip(seed):
    metrics = pytest.importorskip("vip_hci.metrics")
    image = speckles(seed)
    noise, level, radii = metrics.noise_per_annulus(image, 1, FWHM, FWHM)
    ours = ring_noise(image, (60.0, 60.0), FWHM, radii, ddof=0)
    np.testing.assert_allclose(ours.noise, noise, rtol=0.02)  # worst seen 0.0025
    np.testing.assert_allclose(ours.level, level, atol=0.02 * noise.max())


@pytest.mark.parametrize("smooth", [True, False])
def test_limits_as_pyklip(smooth):
    klip = pytest.importorskip("pyklip.klip")
    image = speckles(3)
    image[:, :9] = np.nan
    separation, expected = klip.meas_contrast(image, 5, 45, FWHM, (60, 61), smooth)
    ours = pixel_limits(image, (60, 61), FWHM, (5, 45), smooth)
    np.testing.assert_allclose(ours[0], separation)
    np.testing.assert_allclose(ours[1], expected, rtol=0.02)  # equal but for cut-off of the filter


def test_known_sources_are_no_noise():
    image = speckles(4)
    bright = image.copy()
    bright[60, 80] += 1e4
    masked = [Source(80, 60, 2.0)]
    quiet, with_it, without = (
        ring_noise(a, (60, 60), FWHM, [20.0], m).noise[0]
        for a, m in ((image, masked), (bright, ()), (bright, masked))
    )
    assert without == quiet
    assert with_it > 10 * quiet


def test_bright_sources_are_found():
    image = speckles(6)
    y, x = np.indices(image.shape)
    for at, peak in (((85, 60), 60.0), ((60, 25), 30.0)):
        image += peak * np.exp(-0.5 * np.square((x - at[0], y - at[1])).sum(axis=0) / 1.4**2)
    found = bright_sources(image, (60, 60), FWHM)
    assert [(round(s.x), round(s.y)) for s in found] == [(60, 25), (85, 60)]
    assert bright_sources(speckles(7), (60, 60), FWHM) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contrast")
    made = simulate(
        folder / "in",
        "nircam",
        11,
        shape=(110, 110),
        n_science=2,
        n_integrations=2,
        n_references=5,
        n_reference_integrations=2,
        disk=False,
        planets=(),
        n_optical_states=1,
    )
    result = gpucoron.run(
        made.asn,
        "cpu",
        folder / "out",
        psfmask=made.psfmask,
        klip_truncate=[2, 6],
        save=["i2d"],
        contrast=True,
        progress=False,
    )
    return result, folder / "out"


@pytest.mark.slow
def test_files(run):
    result, folder = run
    (curve,), (image,) = folder.glob("*_contrast.ecsv"), folder.glob("*_contrast.fits")
    contrast = result.contrast()
    table = QTable.read(curve)
    np.testing.assert_allclose(table["separation"].to_value("arcsec"), contrast.separation)
    limit = contrast.best_limit * contrast.jansky
    np.testing.assert_allclose(table["flux"].to_value("Jy"), limit)
    np.testing.assert_allclose(table["contrast"], limit / contrast.star_jy)
    assert set(table["kl"]) <= {2, 6}
    assert {curve, image} <= set(result.files)
    with fits.open(image, checksum=True) as hdus:
        plane = hdus["CONTRAST"]
        assert plane.header.get("BUNIT", "") == contrast.unit
        assert plane.data.shape == result.product.i2d.data.shape
        assert hdus[0].header["CONTSIG"] == 5.0 and hdus[0].header["CALIBRAT"]
        assert len(hdus["CURVE"].data) == len(table)
    # the map is the curve on average, where sources are not at the edge
    y, x = np.indices(contrast.map.shape)
    radius = np.hypot(x - result.product.star.pixel[0], y - result.product.star.pixel[1])
    for k in (10, 20, 30):
        ring = contrast.map[abs(radius - contrast.separation_px[k]) < 0.7]
        np.testing.assert_allclose(np.nanmedian(ring), limit[k] / contrast.star_jy, rtol=0.15)


@pytest.mark.slow
def test_bad_input(run):
    result, _ = run
    with pytest.raises(ParameterError, match="sigma is 0"):
        result.contrast(sigma=0)
    with pytest.raises(InputError, match="no combined image"):
        measure_contrast(type(result.product.record)())
    with pytest.raises(InputError, match="fwhm_px is 0"):
        ring_noise(speckles(1), (60, 60), 0, [3.0])
    from gpucoron.cli.contrast import main

    with pytest.raises(InputError, match="no such file; expected the folder of a run"):
        main([str(run[1].parent)])
    with pytest.raises(UsageError, match="--sigma is 0"):
        main([str(run[1]), "--sigma", "0"])
