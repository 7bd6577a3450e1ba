"""Interpolation of images by cubic splines on the CPU: several images at the same places."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["cubic_spline"]


def cubic_spline(images, missing, y, x):
    """Interpolate images by cubic splines at the same places.

    Parameters
    ----------
    images : (b, ny, nx) float64
        Finite images.
    missing : (b, ny, nx) bool
        Pixels whose values are made up: the result is NaN where one of the four pixels around is
        one of them.
    y, x : (my, mx) float64
        Places, pixels from 0.

    Returns
    -------
    (b, my, mx) float64
        NaN outside of the images.

    Notes
    -----
    What `scipy.ndimage.map_coordinates` gives with ``order=3, cval=nan``: splines that mirror the
    image about its outermost pixels (Unser, Aldroubi & Eden 1993, IEEE Trans. Signal Process. 41,
    821). The weights of a place are computed once for all images.
    """
    from scipy.ndimage import spline_filter

    out = np.full((len(images), *y.shape), np.nan)
    if min(images.shape[1:]) > 1:
        coefficients = np.array([spline_filter(image, mode="mirror") for image in images])
        _evaluate(coefficients, missing, y, x, out)
        return out
    from scipy.ndimage import map_coordinates  # no spline along a single row or column

    for image, lost, result in zip(images, missing, out, strict=True):
        result[...] = map_coordinates(image, [y, x], order=3, cval=np.nan)
        result[lost.any()] = np.nan
    return out


@njit(cache=True, nogil=True)
def _evaluate(coefficients, missing, y, x, out):
    b, ny, nx = coefficients.shape
    wy, wx = np.empty(4), np.empty(4)
    rows, columns = np.empty(4, np.uint64), np.empty(4, np.uint64)
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            at_y, at_x = y[i, j], x[i, j]
            if not (0 <= at_y <= ny - 1 and 0 <= at_x <= nx - 1):
                continue
            _weights(at_y, ny, wy, rows)
            _weights(at_x, nx, wx, columns)
            low_y, low_x = int(at_y), int(at_x)
            high_y, high_x = int(np.ceil(at_y)), int(np.ceil(at_x))
            inside = 1 <= low_y < ny - 2 and 1 <= low_x < nx - 2
            first_y, first_x = np.uint64(low_y - 1), np.uint64(low_x - 1)
            for k in range(b):
                lost = missing[k]
                if lost[low_y, low_x] or lost[low_y, high_x]:
                    continue
                if lost[high_y, low_x] or lost[high_y, high_x]:
                    continue
                plane, total = coefficients[k], 0.0
                if inside:
                    for r in range(4):
                        row = plane[first_y + np.uint64(r), first_x : first_x + np.uint64(4)]
                        along = wx[0] * row[0] + wx[1] * row[1] + wx[2] * row[2] + wx[3] * row[3]
                        total += wy[r] * along
                else:
                    for r in range(4):
                        for c in range(4):
                            total += wy[r] * wx[c] * plane[rows[r], columns[c]]
                out[k, i, j] = total


@njit(nogil=True)
def _weights(place, size, weights, pixels):
    """Set the weights of the four coefficients around a place, and which these are."""
    first = int(place)
    right = place - first
    left = 1.0 - right
    weights[0] = left * left * left / 6.0
    weights[1] = (right * right * (right - 2.0) * 3.0 + 4.0) / 6.0
    weights[2] = (left * left * (left - 2.0) * 3.0 + 4.0) / 6.0
    weights[3] = right * right * right / 6.0
    for k in range(4):
        pixel = abs(first - 1 + k)
        pixels[k] = pixel if pixel < size else abs(2 * (size - 1) - pixel)
