"""Correlation of the speckles that KLIP leaves, between pixels and between rolls."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucoron.backend import cuda

__all__ = ["box_factors", "measured_correlation", "turned_correlation"]

REACH = 16  # px, to which correlations are measured; 0 beyond
CLIP = 3.0  # errors; planets count no more than that


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


def turned_correlation(
    correlation: np.ndarray, turned: np.ndarray, shape: tuple[int, int], center: tuple[float, float]
) -> np.ndarray:
    """Return the correlation of the same speckles in two images turned about the star.

    Parameters
    ----------
    correlation : (n,) floating
        From `measured_correlation`.
    turned : (2, 2) floating
        Difference of the linear maps from output to input pixels, of x and y.
    shape : (ny, nx)
    center : (x, y)
        The star's output pixel, from 0.

    Returns
    -------
    (ny, nx) float64
    """
    y, x = (np.arange(n, dtype=np.float64) for n in shape)
    x, y = x[None] - center[0], y[:, None] - center[1]
    distance = np.hypot(*(row[0] * x + row[1] * y for row in turned))
    return np.interp(distance, np.arange(len(correlation)), correlation, right=0.0)
