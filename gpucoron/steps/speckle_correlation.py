"""Correlation of the speckles that KLIP leaves, between pixels and between rolls."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import map_coordinates

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host

__all__ = ["Speckles", "box_factors", "common_correlation", "measured_correlation"]

RING = 5.0  # px: width of the rings about the star in which exposures are compared
TINY = np.finfo(np.float64).tiny
REACH = 16  # px, to which correlations are measured; 0 beyond
CLIP = 3.0  # errors; planets count no more than that


class Speckles(NamedTuple):
    """An exposure's speckles in the combined image; on the host, 0 where it is not known."""

    pulls: np.ndarray  # (ny, nx) the deviation from the median in units of the error, within 3
    share: np.ndarray  # (ny, nx) of the speckles in the square of the error
    turned: np.ndarray  # (2, 2) the linear map from output to input pixels, of x and y

    @classmethod
    def of(cls, data: Any, noise: Any, speckle: Any, turned: np.ndarray) -> Speckles:
        """Compare an exposure's image, (ny, nx), with the variances of its noise and speckles."""
        data, noise, speckle = map(to_host, (data, noise, speckle))
        total = noise + speckle
        known = np.isfinite(data) & np.isfinite(total) & (total > 0)
        middle = np.median(data[known]) if known.any() else 0.0
        total = np.where(known, total, 1.0)
        pulls = np.where(known, data - middle, 0.0) / np.sqrt(total)
        share = np.where(known, speckle, 0.0) / total
        return cls(np.clip(pulls, -CLIP, CLIP), share, turned)


def measured_correlation(data: Any, err: Any, variance: Any) -> np.ndarray:
    """Measure the correlation of speckles by their distance in the combined image.

    Parameters
    ----------
    data, err : (ny, nx) floating, MJy/sr
        The image and its errors; on the host or a GPU.
    variance : (ny, nx) floating, (MJy/sr)^2
        VAR_SPECKLE.

    Returns
    -------
    (17,) float64
        At 0 to 16 px, from 1, not below 0 and nowhere rising; 1 and zeros without any speckle.

    Notes
    -----
    With q the share of speckles in ERR^2 and p the deviation from the median of the image in units
    of ERR, cut at 3, the correlation at lag s is ``sum q q' p p' / sum q q'`` over pairs of pixels
    s apart along rows and columns, relative to lag 0 and to the share of speckles there. So it is
    that of pixels where speckles exceed noise. Where KLIP leaves much of a star's image it is wider
    than the PSF's core, which is the least that can be (Goodman 2007, Speckle Phenomena in Optics,
    sect. 4.4: the autocorrelation of a developed speckle pattern is the image of a point).
    """
    xp = cuda.array_namespace(data)
    total = err.astype(np.float64) ** 2
    known = xp.isfinite(data) & (total > 0) & xp.isfinite(variance)
    correlation = np.zeros(REACH + 1)
    correlation[0] = 1.0
    share = xp.where(known, variance / xp.where(known, total, 1.0), 0.0)
    squares = float((share**2).sum())
    if not squares > 0:
        return correlation
    middle = xp.nanmedian(xp.where(known, data, np.nan).astype(np.float64))
    pulls = xp.where(known, data - middle, 0.0) / xp.where(known, xp.sqrt(total), 1.0)
    weighted = xp.clip(pulls, -CLIP, CLIP) * share
    own = float((weighted**2).sum()) / squares * float((share**3).sum()) / squares
    for lag in range(1, min(REACH, *(n - 1 for n in data.shape)) + 1):
        product, pairs = (
            float((a[lag:] * a[:-lag]).sum() + (a[:, lag:] * a[:, :-lag]).sum())
            for a in (weighted, share)
        )
        correlation[lag] = product / pairs / own if pairs > 0 and own > 0 else 0.0
    return np.minimum.accumulate(np.clip(correlation, 0.0, 1.0))


def box_factors(correlation: np.ndarray, sides: tuple[int, ...]) -> tuple:
    """Return by how much means over boxes scatter more than of independent pixels, by side.

    Parameters
    ----------
    correlation : (n,) floating
        From `measured_correlation`.
    sides : tuple of int
        Of the boxes, px.

    Returns
    -------
    tuple of (int, float)
        Side and factor, ``sqrt(sum_ij rho(d_ij)) / side``; last side 0, for large areas.
    """
    steps = np.arange(-REACH, REACH + 1)
    distance = np.hypot(steps[:, None], steps)
    of_pairs = np.interp(distance, np.arange(len(correlation)), correlation, right=0.0)
    factors = []
    for side in sides:
        overlap = np.maximum(side - abs(steps), 0) / side
        factors.append((side, float(np.sqrt((of_pairs * np.outer(overlap, overlap)).sum()))))
    return (*factors, (0, float(np.sqrt(of_pairs.sum()))))


def common_correlation(one: Speckles, other: Speckles, center: tuple[float, float]) -> np.ndarray:
    """Measure the correlation of the speckles of two exposures, turned about the star.

    Parameters
    ----------
    one, other : Speckles
    center : (x, y)
        The star's output pixel, from 0.

    Returns
    -------
    (ny, nx) float64
        From 0 to 1, by the distance from the star: how much of their speckles, as VAR_SPECKLE
        counts them, the two have in common in a pixel of the combined image.

    Notes
    -----
    With g the pattern of speckles, which stays on the detector, and A and B the maps of the two
    exposures to it, a pixel x has g(A x) and g(B x). The same product is that of one at B x and of
    the other at A x, where real sources, which both have at the same x, are twice as far apart, and
    where the noise of the two is independent. Its sum over rings about the star, in units of the
    errors and weighted with the share of speckles in these, is taken relative to the speckles.
    """
    shape = one.share.shape
    offset = np.indices(shape, dtype=np.float64)[::-1] - np.reshape(center, (2, 1, 1))
    forth = np.linalg.solve(one.turned, other.turned)
    planes = []
    for part, turn in ((one, forth), (other, np.linalg.inv(forth))):
        at = np.tensordot(turn, offset, 1) + np.reshape(center, (2, 1, 1))
        planes.append([map_coordinates(plane, at[::-1], order=1) for plane in part[:2]])
    (pulls, share), (other_pulls, other_share) = planes
    distance = np.hypot(*offset)
    ring = (distance / RING).astype(int)
    product, speckles = (
        np.convolve(np.bincount(ring.ravel(), values.ravel()), (1, 2, 1))[1:-1]
        for values in (pulls * other_pulls * np.sqrt(share * other_share), share * other_share)
    )
    ratio = np.clip(product / np.maximum(speckles, TINY), 0.0, 1.0)
    return np.interp(distance, RING * (np.arange(len(ratio)) + 0.5), ratio)
