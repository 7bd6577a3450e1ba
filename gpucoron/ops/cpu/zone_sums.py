"""Copies of the pixels of zones, and combinations of images with weights of each zone, by numba."""

from __future__ import annotations

import numpy as np
from numba import njit

from gpucoron.backend.parallel import BLOCK, over_items

__all__ = ["combine_in_zones", "gather", "subtract_in_zones"]


@njit(cache=True, nogil=True)
def gather(images, pixels, out):
    """Copy some pixels of images (m, pixels) to `out` (m, k); return whether all are finite."""
    finite = True
    for k in range(len(images)):
        image, row = images[k], out[k]
        for p in range(len(pixels)):
            value = image[pixels[p]]
            row[p] = value
            finite &= np.isfinite(value)
    return finite


def combine_in_zones(labels, weights, planes):
    """Combine planes with the weights of each pixel's zone.

    Parameters
    ----------
    labels : (pixels,) int
        The zone of each pixel; negative in none.
    weights : (nzones, n, m) float64
    planes : (m, pixels) float64

    Returns
    -------
    (n, pixels) float64
        0 outside of the zones.
    """
    out = np.zeros((weights.shape[1], planes.shape[1]))
    _over_pixels(_combine, labels, np.ascontiguousarray(weights), planes, out)
    return out


def subtract_in_zones(labels, weights, constants, planes, targets):
    """Subtract combinations of planes and constants (nzones, n) from targets (n, pixels).

    As `combine_in_zones`; NaN outside of the zones, and where a target is not finite.
    """
    out = np.zeros(targets.shape)
    _over_pixels(_combine, labels, np.ascontiguousarray(weights), planes, out)
    _over_pixels(_subtract, labels, constants, targets, out)
    return out


def _over_pixels(work, labels, *arguments):
    starts = range(0, len(labels), BLOCK)
    over_items(lambda k: work(k, min(k + BLOCK, len(labels)), labels, *arguments), starts)


@njit(cache=True, nogil=True)
def _combine(start, stop, labels, weights, planes, out):
    """Combine in runs of pixels of one zone, which follow each other in all images."""
    m = len(planes)
    while start < stop:
        zone, end = labels[start], start + 1
        while end < stop and labels[end] == zone:
            end += 1
        if zone >= 0:
            for t in range(len(out)):
                w, row = weights[zone, t], out[t, start:end]
                for j in range(0, m - m % 4, 4):
                    one, two = planes[j, start:end], planes[j + 1, start:end]
                    three, four = planes[j + 2, start:end], planes[j + 3, start:end]
                    _add_four(row, w[j], w[j + 1], w[j + 2], w[j + 3], one, two, three, four)
                for j in range(m - m % 4, m):
                    plane = planes[j, start:end]
                    for p in range(len(row)):
                        row[p] += w[j] * plane[p]
        start = end


@njit(nogil=True, fastmath={"contract"})
def _add_four(row, a, b, c, d, one, two, three, four):
    for p in range(len(row)):
        row[p] += a * one[p] + b * two[p] + c * three[p] + d * four[p]


@njit(cache=True, nogil=True)
def _subtract(start, stop, labels, constants, targets, out):
    for t in range(len(out)):
        for p in range(start, stop):
            value = targets[t, p]
            if labels[p] >= 0 and np.isfinite(value):
                out[t, p] = value - constants[labels[p], t] - out[t, p]
            else:
                out[t, p] = np.nan
