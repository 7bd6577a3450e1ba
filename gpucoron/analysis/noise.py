"""Noise in rings about the star, and the limit of detection that few samples allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.apertures import aperture_sums

__all__ = ["RingNoise", "Source", "detection_factor", "pixel_limits", "ring_noise"]


class Source(NamedTuple):
    """A known source, whose surroundings do not count as noise."""

    x: float  # pixels counted from 0
    y: float
    radius: float  # pixels


class RingNoise(NamedTuple):
    """Scatter of aperture sums at some separations; MJy/sr times pixels."""

    noise: np.ndarray  # (n,) standard deviation
    level: np.ndarray  # (n,) mean
    apertures: np.ndarray  # (n,) int, number of them


def detection_factor(count: Any, sigma: float = 5.0) -> np.ndarray:
    """Return by how many standard deviations a source must exceed the mean of few apertures.

    Parameters
    ----------
    count : (...) int
        Apertures n in which the noise was measured.
    sigma : float
        The false-alarm probability wanted is that of so many Gaussian sigmas.

    Returns
    -------
    (...) float64
        ``t.ppf(Phi(sigma), n - 1) sqrt(1 + 1/n)`` with Student's t; NaN below two apertures.

    References
    ----------
    Mawet et al. 2014, ApJ 792, 97, equations 8 to 10.
    """
    from scipy.special import ndtr, stdtrit  # scipy.stats takes a second to import

    n = np.asarray(count, dtype=np.float64)
    known = np.where(n >= 2, n, np.nan)
    return -stdtrit(known - 1, ndtr(-sigma)) * np.sqrt(1 + 1 / known)


def ring_noise(
    image: np.ndarray,
    star: tuple[float, float],
    fwhm_px: float,
    radii: Any,
    sources: Sequence[Source] = (),
    ddof: int = 1,
) -> RingNoise:
    """Measure the noise in apertures side by side on circles about the star.

    Parameters
    ----------
    image : (ny, nx) floating, MJy/sr
        NaN where there are no data.
    star : (x, y)
        Pixels counted from 0.
    fwhm_px : float
        Diameter of an aperture, and distance of neighbours along the circle.
    radii : (n,) floating, pixels
    sources : sequence of Source
        Apertures that touch one do not count; nor do those with NaN in a tenth of their area.
    ddof : int
        The variance is the sum of squares over ``count - ddof``. 1 is what Student's t needs; VIP
        uses 0, which makes its noise smaller by ``sqrt(1 - 1/n)``.

    Returns
    -------
    RingNoise
        NaN with fewer than two apertures.

    Notes
    -----
    The apertures are those of ``noise_per_annulus`` of VIP (Gomez Gonzalez et al. 2017): the first
    is at the angle 0 (to the right of the star).
    """
    if not fwhm_px > 0:
        raise InputError(f"fwhm_px is {fwhm_px}, expected a number of pixels above 0")
    radii = np.asarray(radii, dtype=np.float64)
    counts = np.maximum((2 * np.pi * radii / fwhm_px).astype(int), 0)
    ring = np.repeat(np.arange(len(radii)), counts)
    number = np.arange(len(ring)) - np.repeat(np.cumsum(counts) - counts, counts)
    angle, radius = number * fwhm_px / np.maximum(radii[ring], 1e-9), radii[ring]
    places = np.stack([star[0] + radius * np.cos(angle), star[1] + radius * np.sin(angle)], axis=1)
    used = np.ones(len(places), dtype=bool)
    for source in sources:
        used &= np.hypot(*(places - source[:2]).T) >= source.radius + fwhm_px / 2
    sums = np.full(len(places), np.nan)
    sums[used] = aperture_sums(image, places[used], fwhm_px / 2)
    return _by_ring(sums, ring, len(radii), ddof)


def _by_ring(sums: np.ndarray, ring: np.ndarray, n: int, ddof: int) -> RingNoise:
    good = np.isfinite(sums)
    sums, ring = sums[good], ring[good]
    count = np.bincount(ring, minlength=n)
    with np.errstate(invalid="ignore", divide="ignore"):
        level = np.bincount(ring, sums, minlength=n) / count
        square = np.bincount(ring, (sums - level[ring]) ** 2, minlength=n)
        noise = np.where(count >= 2, np.sqrt(square / (count - ddof)), np.nan)
    return RingNoise(noise, np.where(count >= 2, level, np.nan), count)


def pixel_limits(
    image: np.ndarray,
    star: tuple[float, float],
    resolution: float,
    span: tuple[float, float],
    smooth: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the 5-sigma limit as pyKLIP's ``meas_contrast`` does, for comparison with its curves.

    Parameters
    ----------
    image : (ny, nx) floating
        NaN where there are no data.
    star : (x, y)
        Pixels counted from 0.
    resolution : float, pixels
        Size of a resolution element.
    span : (inner, outer), pixels
    smooth : bool
        Smooth the image with a Gaussian whose FWHM is `resolution` first.

    Returns
    -------
    separation : (n,) float64, pixels
    limit : (n,) float64, unit of the image
        Mean of the pixels of an annulus of width `resolution`, plus their standard deviation times
        `detection_factor` of the number of resolution elements in the annulus.

    References
    ----------
    Wang et al. 2015, Astrophysics Source Code Library, ascl:1506.001 (pyKLIP).
    """
    if not (resolution > 0 and span[1] > span[0]):
        raise ParameterError(
            f"resolution is {resolution} and span {span}, expected pixels above 0, rising"
        )
    good = np.isfinite(image)
    values = np.where(good, image, 0.0).astype(np.float64)
    if smooth:
        from scipy.ndimage import gaussian_filter

        values, cover = (gaussian_filter(v, resolution / 2.355) for v in (values, good * 1.0))
        values /= np.where(cover > 0, cover, 1.0)
    y, x = np.indices(image.shape)
    distance = np.hypot(x - star[0], y - star[1])[good]
    values = values[good]
    step = resolution / 2
    separation = np.arange(int((span[1] - span[0]) / step)) * step + span[0] + resolution / 2
    limit = np.full(len(separation), np.nan)
    for k, middle in enumerate(separation):
        ring = values[(distance > middle - step) & (distance < middle + step)]
        elements = int(len(ring) / (np.pi * (resolution / 2) ** 2))
        if elements >= 2:
            limit[k] = ring.mean() + ring.std(ddof=1) * detection_factor(elements)
    return separation, limit
