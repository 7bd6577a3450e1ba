"""Measure a planet in an image: sub-pixel position, aperture flux, signal-to-noise."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpucoron.errors import InputError
from gpucoron.ops.apertures import aperture_sums

_SIGMA_OF_FWHM = 1 / (2 * math.sqrt(2 * math.log(2)))
_ARCSEC_PER_LAMBDA_OVER_D = 1e-6 / 6.5 * 180 * 3600 / math.pi  # per micrometre, 6.5 m across


@dataclass(frozen=True)
class Detection:
    """Position, flux and signal-to-noise of a planet."""

    x: float  # pixels counted from 0; NaN if there were no pixels to fit
    y: float
    converged: bool  # False where the fit failed; `x` and `y` are then the peak pixel's
    flux: float  # in the aperture less the mean of the comparison apertures, MJy/sr times pixels
    snr: float  # of `flux`, corrected for few apertures; NaN if fewer than two are left
    significance: float  # Gaussian sigmas with the same false-alarm probability
    n_apertures: int  # comparison apertures that the noise is measured in


def detect(
    image: np.ndarray,
    near: tuple[float, float],
    star: tuple[float, float],
    *,
    fwhm_px: float,
    search_px: float | None = None,
    others: Sequence[tuple[float, float]] = (),
) -> Detection:
    """Locate a planet near its expected position and measure its SNR.

    Parameters
    ----------
    image : (ny, nx) floating array, MJy/sr
        NaN where there are no data.
    near, star : (x, y)
        Expected position, and that of the star, pixels counted from 0.
    search_px : float, optional
        How far from `near` the peak may lie; one FWHM by default.
    others : sequence of (x, y)
        Other known sources; apertures near them are not used for the noise.

    Raises
    ------
    InputError
        `image` is not 2-D, or `fwhm_px` is not above 0.
    """
    x, y, converged = locate(image, near, fwhm_px=fwhm_px, search_px=search_px)
    if math.isnan(x):
        return Detection(x, y, False, math.nan, math.nan, math.nan, 0)
    measured = aperture_snr(image, (x, y), star, fwhm_px=fwhm_px, others=others)
    return Detection(x, y, converged, *measured)


def locate(
    image: np.ndarray,
    near: tuple[float, float],
    *,
    fwhm_px: float,
    search_px: float | None = None,
) -> tuple[float, float, bool]:
    """Fit the position of a point source near an expected one.

    Returns x, y (pixels counted from 0; NaN if all pixels searched are NaN), and whether the fit
    succeeded and stayed near the peak; raises as `detect`.

    The peak of the image smoothed by a Gaussian of the PSF's width (a matched filter that ignores
    NaN) is the start of a least-squares fit of a circular Gaussian of free width plus a constant
    to the pixels within one FWHM (1.5 pixels at least) of the peak.
    """
    image = _checked(image, fwhm_px)
    search_px = fwhm_px if search_px is None else search_px
    peak = _matched_peak(image, near, fwhm_px * _SIGMA_OF_FWHM, search_px)
    if peak is None:
        return math.nan, math.nan, False
    return _fit_gaussian(image, peak, fwhm_px)


def aperture_snr(
    image: np.ndarray,
    at: tuple[float, float],
    star: tuple[float, float],
    *,
    fwhm_px: float,
    others: Sequence[tuple[float, float]] = (),
) -> tuple[float, float, float, int]:
    """Measure the SNR of a source against apertures at the same separation from the star.

    Parameters
    ----------
    image, star, fwhm_px, others
        As `detect`.
    at : (x, y)
        Centre of the source's aperture, pixels counted from 0.

    Returns
    -------
    flux, snr, significance, n_apertures
        As in `Detection`.

    Notes
    -----
    Apertures one FWHM across are placed side by side on the circle around the star through the
    source. Those that touch the source or one of `others` (centres nearer than 1.5 FWHM), and
    those with NaN in more than a tenth of their area, are left out. With n left, whose sums have
    mean m and sample standard deviation s, ``snr = (sum - m) / (s sqrt(1 + 1/n))`` follows
    Student's t with n - 1 degrees of freedom in pure noise; `significance` is the Gaussian quantile
    of the same false-alarm probability.

    References
    ----------
    Mawet et al. 2014, ApJ 792, 97, equations 8 to 10.
    """
    image = _checked(image, fwhm_px)
    radius = math.hypot(at[0] - star[0], at[1] - star[1])
    count = int(2 * math.pi * radius / fwhm_px)
    first = math.atan2(at[1] - star[1], at[0] - star[0])
    angles = first + 2 * np.pi * np.arange(count) / max(count, 1)
    ring = np.stack([star[0] + radius * np.cos(angles), star[1] + radius * np.sin(angles)], -1)
    for source in (at, *others):
        ring = ring[np.hypot(*(ring - source).T) >= 1.5 * fwhm_px]
    sums = aperture_sums(image, ring, fwhm_px / 2)
    sums = sums[np.isfinite(sums)]
    flux = float(aperture_sums(image, [at], fwhm_px / 2)[0])
    if len(sums) < 2 or math.isnan(flux):
        return flux, math.nan, math.nan, len(sums)
    flux -= float(sums.mean())
    noise = float(sums.std(ddof=1)) * math.sqrt(1 + 1 / len(sums))
    snr = flux / noise if noise else math.copysign(math.inf, flux)
    return flux, snr, float(significance(snr, len(sums))), len(sums)


def significance(snr, n_apertures) -> np.ndarray:
    """Convert an SNR measured with few apertures to Gaussian sigmas; NaN with fewer than two.

    They are the Gaussian quantile of Student's t with n - 1 degrees of freedom, at most 37.
    """
    from scipy.special import ndtri, stdtr

    snr, n = np.broadcast_arrays(np.asarray(snr, float), np.asarray(n_apertures, float))
    rarely = stdtr(np.where(n >= 2, n - 1, np.nan), -np.abs(snr))
    return np.sign(snr) * np.minimum(-ndtri(np.maximum(rarely, 1e-299)), 37.0)


def psf_fwhm(filter_name: str) -> float:
    """Return the FWHM of JWST's PSF behind a Lyot stop, arcsec, for a filter such as F444W.

    The stops leave about nine tenths of the aperture's width.
    """
    digits = re.search(r"\d+", filter_name)
    wavelength_um = int(digits.group()) / 100 if digits else 4.4
    return 1.1 * wavelength_um * _ARCSEC_PER_LAMBDA_OVER_D


def _checked(image, fwhm_px: float) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim != 2:
        raise InputError(f"image has shape {image.shape}, expected (ny, nx)")
    if not fwhm_px > 0:
        raise InputError(f"fwhm_px is {fwhm_px}, expected a number of pixels above 0")
    return image


def _window(shape, centre, reach: float) -> tuple[slice, slice]:
    """Return the rows and columns within `reach` of a centre (x, y), cut at the edges."""
    spans = []
    for c, length in zip(centre[::-1], shape, strict=True):
        start = min(max(math.floor(c - reach), 0), length)
        spans.append(slice(start, max(min(math.ceil(c + reach) + 1, length), start)))
    rows, columns = spans
    return rows, columns


def _matched_peak(image, near, sigma_px: float, search_px: float) -> tuple[int, int] | None:
    """Return the pixel (x, y) where the smoothed image is brightest, None if all are NaN."""
    from scipy.ndimage import gaussian_filter

    rows, columns = _window(image.shape, near, search_px + 4 * sigma_px)
    patch = image[rows, columns].astype(np.float64)
    good = np.isfinite(patch)
    if not good.any():
        return None
    level = np.median(patch[good])
    smooth = gaussian_filter(np.where(good, patch - level, 0), sigma_px, mode="constant")
    cover = gaussian_filter(good.astype(np.float64), sigma_px, mode="constant")
    yy, xx = np.mgrid[rows, columns]
    allowed = good & (np.hypot(xx - near[0], yy - near[1]) <= max(search_px, 1))
    if not allowed.any():
        return None
    score = np.where(allowed, smooth / np.maximum(cover, 1e-3), -np.inf)
    j, i = np.unravel_index(np.argmax(score), score.shape)
    return int(xx[j, i]), int(yy[j, i])


def _fit_gaussian(image, peak, fwhm_px: float) -> tuple[float, float, bool]:
    from scipy.optimize import least_squares

    reach = max(fwhm_px, 1.5)
    rows, columns = _window(image.shape, peak, reach)
    yy, xx = np.mgrid[rows, columns]
    patch = image[rows, columns].astype(np.float64)
    use = np.isfinite(patch) & (np.hypot(xx - peak[0], yy - peak[1]) <= reach)
    if use.sum() < 6:
        return float(peak[0]), float(peak[1]), False
    x, y, values = xx[use], yy[use], patch[use]
    scale = float(np.ptp(values)) or 1.0
    values = (values - values.min()) / scale
    sigma = fwhm_px * _SIGMA_OF_FWHM

    def residual(p):
        return p[2] * np.exp(-((x - p[0]) ** 2 + (y - p[1]) ** 2) / (2 * p[3] ** 2)) + p[4] - values

    fit = least_squares(
        residual,
        (*peak, 1.0, sigma, 0.0),
        x_scale=(1, 1, 1, sigma, 1),
        bounds=(
            (peak[0] - reach, peak[1] - reach, 0, sigma / 2, -10),
            (peak[0] + reach, peak[1] + reach, 10, 2 * sigma, 10),
        ),
    )
    near = math.hypot(fit.x[0] - peak[0], fit.x[1] - peak[1]) < 0.9 * reach
    if not (fit.success and near):
        return float(peak[0]), float(peak[1]), False
    return float(fit.x[0]), float(fit.x[1]), True
