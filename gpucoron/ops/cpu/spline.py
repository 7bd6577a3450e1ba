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
    out = np.full((len(images), *y.shape), np.nan)
    if min(images.shape[1:]) > 1:
        coefficients = np.array(images, dtype=np.float64, order="C")
        _prefilter(coefficients)
        _evaluate(coefficients, np.ascontiguousarray(missing), y, x, out)
        return out
    from scipy.ndimage import map_coordinates  # no spline along a single row or column

    for image, lost, result in zip(images, missing, out, strict=True):
        result[...] = map_coordinates(image, [y, x], order=3, cval=np.nan)
        result[lost.any()] = np.nan
    return out


@njit(cache=True, nogil=True)
def _prefilter(images):
    """Replace images by the coefficients of their splines: along y for all columns, then along x.

    A causal and an anticausal recursion with the pole sqrt(3) - 2; before the first pixel stands
    the mirrored image, whose sum is finite for it is periodic.
    """
    pole = np.sqrt(3.0) - 2.0
    b, ny, nx = images.shape
    for k in range(b):
        image = images[k]
        first = image[0] * 0.0
        last = pole ** (ny - 1)
        for y in range(1, ny - 1):
            weight, mirrored = pole**y, last * pole ** (ny - 1 - y)
            for x in range(nx):
                first[x] += (weight + mirrored) * image[y, x]
        for x in range(nx):
            image[0, x] = (image[0, x] + last * image[ny - 1, x] + first[x]) / (1.0 - last * last)
        for y in range(1, ny):
            for x in range(nx):
                image[y, x] += pole * image[y - 1, x]
        for x in range(nx):
            edge = image[ny - 1, x] + pole * image[ny - 2, x]
            image[ny - 1, x] = edge * pole / (pole * pole - 1.0)
        for y in range(ny - 2, -1, -1):
            for x in range(nx):
                image[y, x] = pole * (image[y + 1, x] - image[y, x])
        last = pole ** (nx - 1)
        weights = np.empty(nx)
        for x in range(nx):
            weights[x] = pole**x + last * pole ** (nx - 1 - x)
        weights[0], weights[nx - 1] = 1.0, last
        for y in range(ny):
            row, total = image[y], 0.0
            for x in range(nx):
                total += weights[x] * row[x]
            row[0] = total / (1.0 - last * last)
            for x in range(1, nx):
                row[x] += pole * row[x - 1]
            row[nx - 1] = (row[nx - 1] + pole * row[nx - 2]) * pole / (pole * pole - 1.0)
            for x in range(nx - 2, -1, -1):
                row[x] = pole * (row[x + 1] - row[x])
            for x in range(nx):
                row[x] *= 36.0


@njit(cache=True, nogil=True, fastmath={"contract"})
def _evaluate(coefficients, missing, y, x, out):
    b, ny, nx = coefficients.shape
    flat, lost, results = coefficients.ravel(), missing.ravel(), out.ravel()
    size, width, places = np.uint64(ny * nx), np.uint64(nx), y.size
    wy, wx = np.empty(4), np.empty(4)
    rows, columns = np.empty(4, np.uint64), np.empty(4, np.uint64)
    for p in range(places):
        at_y, at_x = y.flat[p], x.flat[p]
        if not (0 <= at_y <= ny - 1 and 0 <= at_x <= nx - 1):
            continue
        _weights(at_y, ny, wy, rows)
        _weights(at_x, nx, wx, columns)
        low_y, low_x = np.uint64(at_y), np.uint64(at_x)
        high_y, high_x = np.uint64(np.ceil(at_y)), np.uint64(np.ceil(at_x))
        w0, w1, w2, w3 = wx[0], wx[1], wx[2], wx[3]
        c0, c1, c2, c3 = columns[0], columns[1], columns[2], columns[3]
        for k in range(b):
            start = np.uint64(k) * size
            above, below = start + low_y * width, start + high_y * width
            if lost[above + low_x] or lost[above + high_x]:
                continue
            if lost[below + low_x] or lost[below + high_x]:
                continue
            total = 0.0
            for r in range(4):
                row = start + rows[r] * width
                along = w0 * flat[row + c0] + w1 * flat[row + c1]
                along += w2 * flat[row + c2] + w3 * flat[row + c3]
                total += wy[r] * along
            results[k * places + p] = total


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
