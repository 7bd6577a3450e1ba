"""Detect point sources: SNR maps and lists of candidates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gpucoron.analysis.detection import aperture_snr, aperture_sums, locate, significance
from gpucoron.errors import InputError

THRESHOLD = 5.0  # Gaussian sigmas
APART = 1.5  # FWHM; apertures closer than this to a source are not used for the noise
PHASES = 6  # steps in angle per aperture
FINE = 2  # steps in radius per pixel
ROUNDS = 4
NARROW = 1.7  # with this many times the PSF's share of light in one pixel: no point source


@dataclass(frozen=True)
class Candidate:
    """A candidate point source, measured in one image."""

    x: float  # pixels counted from 0
    y: float
    separation_px: float  # from the star
    flux: float  # in an aperture of one FWHM less the mean of the others, MJy/sr times pixels
    snr: float  # Mawet et al. 2014, equation 9
    significance: float  # Gaussian sigmas with the same false-alarm probability
    n_apertures: int  # comparison apertures that the noise is measured in
    narrow: bool  # one pixel has more of the light than the PSF allows: probably a defect


def snr_map(
    image: np.ndarray,
    star: tuple[float, float],
    fwhm_px: float,
    *,
    where: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the SNR of every pixel against apertures at the same separation from the star.

    Parameters
    ----------
    image : (ny, nx) floating array
        NaN where there are no data.
    star : (x, y)
        Pixels counted from 0.
    fwhm_px : float
        FWHM of the PSF, and diameter of the apertures.
    where : (ny, nx) bool, optional
        Pixels to compute; all by default.

    Returns
    -------
    snr : (ny, nx) float32
        NaN where fewer than two comparison apertures are left.
    n_apertures : (ny, nx) int32
        Number of comparison apertures.

    Raises
    ------
    InputError
        `image` is not 2-D, or `fwhm_px` is not above 0.

    Notes
    -----
    On each circle around the star apertures are placed at six steps per FWHM. Each is compared
    with those at whole FWHMs along the circle, except itself and its two neighbours, by equation 9
    of Mawet et al. (2014): ``(x - mean) / (s sqrt(1 + 1/n))``. Apertures with NaN in more than a
    tenth of their area are left out. Sums are interpolated linearly between half pixels, which
    lowers the noise by a few per cent: to quote numbers use
    `gpucoron.analysis.detection.aperture_snr`.

    References
    ----------
    Mawet et al. 2014, ApJ 792, 97.
    """
    image = np.asarray(image)
    if image.ndim != 2 or not fwhm_px > 0:
        raise InputError(
            f"image has shape {image.shape}, fwhm_px is {fwhm_px}; expected (ny, nx) "
            "and a number of pixels above 0"
        )
    finer = _disc_sums(image, fwhm_px / 2)
    sums = finer[::2, ::2]
    ny, nx = image.shape
    yy, xx = np.mgrid[:ny, :nx]
    radius = np.hypot(xx - star[0], yy - star[1])
    angle = np.arctan2(yy - star[1], xx - star[0]) / (2 * np.pi)
    found = np.full(image.shape, np.nan, np.float32)
    counts = np.zeros(image.shape, np.int32)
    wanted = np.flatnonzero(np.isfinite(sums) if where is None else np.isfinite(sums) & where)
    order = wanted[np.argsort(radius.ravel()[wanted])]
    ring = np.rint(radius.ravel()[order] * FINE).astype(int)
    starts = np.flatnonzero(np.diff(ring, prepend=-1))
    for start, stop in zip(starts, np.append(starts, ring.size)[1:], strict=True):
        r = ring[start] / FINE
        n = int(2 * np.pi * r / fwhm_px)
        if n < 5:  # less than two are left
            continue
        at = order[start:stop]
        step = np.rint(angle.ravel()[at] * PHASES * n).astype(int) % (PHASES * n)
        mean, noise, left = (a[step] for a in _ring(finer, star, r, n))
        with np.errstate(invalid="ignore", divide="ignore"):
            snr = (sums.ravel()[at] - mean) / noise
        found.ravel()[at], counts.ravel()[at] = np.where(noise > 0, snr, np.nan), left
    return found, counts


def _ring(finer, star, r, n):
    """Return mean, noise and number of comparison apertures at PHASES * n places on a circle."""
    turn = 2 * np.pi * np.arange(PHASES * n) / (PHASES * n)
    values = _interpolate(finer, 2 * (star[0] + r * np.cos(turn)), 2 * (star[1] + r * np.sin(turn)))
    values = values.reshape(n, PHASES)  # a column: apertures one FWHM apart
    good = np.isfinite(values)
    level = values[good].mean() if good.any() else 0.0  # keeps the squares from cancelling
    x = np.where(good, values - level, 0.0)
    left, total, squares = (
        a.sum(axis=0) - a - np.roll(a, 1, axis=0) - np.roll(a, -1, axis=0)
        for a in (good.astype(np.float64), x, x * x)
    )
    enough = np.where(left >= 2, left, np.nan)
    mean = total / enough
    s = np.sqrt(np.maximum(squares - left * mean**2, 0) / (enough - 1))
    return (mean + level).ravel(), (s * np.sqrt(1 + 1 / enough)).ravel(), left.ravel().astype(int)


def _interpolate(image, x, y):
    """Interpolate bilinearly; NaN outside, and where one of the four pixels is NaN."""
    from scipy.ndimage import map_coordinates

    return map_coordinates(image, (y, x), order=1, cval=np.nan)


def _disc_sums(image, radius_px):
    """Sum in an aperture around every half pixel, with the weights of `aperture_sums`."""
    from scipy.ndimage import correlate

    reach = math.ceil(radius_px + 1)
    point = np.zeros((4 * reach + 1, 4 * reach + 1))
    point[2 * reach, 2 * reach] = 1.0
    offsets = np.arange(-reach, reach + 1)
    good = np.isfinite(image)
    filled, area = np.where(good, image, 0.0).astype(np.float64), math.pi * radius_px**2
    sums = np.empty((2 * image.shape[0], 2 * image.shape[1]))
    for v in (0, 1):
        for u in (0, 1):
            places = [
                (2 * reach - dx + u / 2, 2 * reach - dy + v / 2) for dy in offsets for dx in offsets
            ]
            disc = aperture_sums(point, places, radius_px).reshape(2 * reach + 1, -1)
            total, cover = (
                correlate(a, disc, mode="constant") for a in (filled, good.astype(np.float64))
            )
            sums[v::2, u::2] = np.where(
                cover >= 0.9 * area, total * area / np.maximum(cover, 1e-9), np.nan
            )
    return sums


def find_candidates(
    image: np.ndarray,
    star: tuple[float, float],
    fwhm_px: float,
    *,
    threshold: float = THRESHOLD,
    at_most: int = 20,
    snr: tuple[np.ndarray, np.ndarray] | None = None,
) -> list[Candidate]:
    """Find the most significant point sources in an image, by decreasing significance.

    Arguments are those of `snr_map`; the lowest significance of a candidate, Gaussian sigmas; the
    largest number of candidates; and the result of `snr_map`, if it is known. Each candidate is
    measured at the centre of a Gaussian fitted to it, against apertures that avoid it and all
    other candidates. A source raises the noise at its separation: candidates are cut out and the
    map is computed again, until it has no further peak.
    """
    reach = APART * fwhm_px
    rest = np.array(image, dtype=np.float64)
    ratio, n = snr_map(rest, star, fwhm_px) if snr is None else map(np.array, snr)
    places: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        new = [
            _centre(image, p, fwhm_px)
            for p in _peaks(significance(ratio, n), reach, threshold, at_most - len(places))
        ]
        new = [p for k, p in enumerate(new) if _clear(p, [*places, *new[:k]], reach)]
        if not new:
            break
        places += new
        for p in new:
            _cut(rest, p, fwhm_px)
        near = _rings(image.shape, star, new, 2.5 * fwhm_px)
        again = snr_map(rest, star, fwhm_px, where=near)
        ratio[near], n[near] = again[0][near], again[1][near]
        for p in new:
            _cut(ratio, p, reach)
    found = [_measure(image, p, star, fwhm_px, [q for q in places if q is not p]) for p in places]
    found = [c for c in found if c.significance >= threshold]
    return sorted(found, key=lambda c: -c.significance)


def _rings(shape, star, places, reach):
    """Return the pixels as far from the star as one of the places, within `reach`."""
    yy, xx = np.ogrid[: shape[0], : shape[1]]
    radius = np.hypot(xx - star[0], yy - star[1])
    return np.any([abs(radius - math.dist(p, star)) < reach for p in places], axis=0)


def _measure(image, place, star, fwhm_px, others):
    flux, snr, sigmas, n = aperture_snr(image, place, star, fwhm_px=fwhm_px, others=others)
    i, j = (round(v) for v in place)
    around = image[max(j - 1, 0) : j + 2, max(i - 1, 0) : i + 2]
    level = (aperture_sums(image, [place], fwhm_px / 2)[0] - flux) / (math.pi * fwhm_px**2 / 4)
    share = (np.max(around, where=np.isfinite(around), initial=-np.inf) - level) / flux
    # of a Gaussian PSF centred in a pixel; half its light is in the aperture
    most = 2 * math.erf(math.sqrt(math.log(2)) / fwhm_px) ** 2
    narrow = bool(share > NARROW * most)
    x, y = place
    return Candidate(x, y, math.dist(place, star), flux, snr, sigmas, n, narrow)


def _peaks(sigmas, reach, threshold, at_most):
    """Return the pixels (x, y) of highest significance, none within `reach` of a higher one."""
    sigmas = np.where(np.isfinite(sigmas), sigmas, -np.inf)
    peaks: list[tuple[float, float]] = []
    while len(peaks) < at_most:
        j, i = np.unravel_index(np.argmax(sigmas), sigmas.shape)
        if sigmas[j, i] < threshold:
            break
        peaks.append((float(i), float(j)))
        _cut(sigmas, peaks[-1], reach, -np.inf)
    return peaks


def _cut(image, at, reach, value=np.nan):
    yy, xx = np.ogrid[: image.shape[0], : image.shape[1]]
    image[np.hypot(xx - at[0], yy - at[1]) < reach] = value


def _centre(image, peak, fwhm_px):
    x, y, converged = locate(image, peak, fwhm_px=fwhm_px, search_px=1.0)
    return (x, y) if converged else peak


def _clear(place, others, reach):
    return all(math.dist(place, other) >= reach for other in others)
