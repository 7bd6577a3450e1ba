"""Overlaps of pixels for drizzle, on the CPU with numba.

They are found once for a pixel map: `overlap_rows` walks over input pixels and lists what each
covers, `by_output_pixel` sorts the list by output pixel and keeps the raster order of the input
within each. Sums over planes then gather (drizzle_planes.py): an output pixel meets its inputs in a
fixed order.

Those that take a range of rows leave the interpreter lock free and write only what belongs to their
rows, so threads may share the rows in any way without changing a bit of the result. (A thread pool
over rows compiles in half the time that numba's own parallel loops take, and runs as fast.)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types

from gpucoron.backend.parallel import over_rows

__all__ = ["area_shares"]

# Inputs may be read-only; one compiled version serves both kinds.
_F8 = types.Array(types.float64, 3, "C", readonly=True)
_I8 = types.int64
_LIST = (types.int64[::1], types.int32[::1], types.int32[::1], types.float64[::1])
_COUNTS = types.int64[::1]


@njit(cache=True, inline="always")
def _nearest(value):
    """Nearest integer as a float, halves away from zero."""
    return math.copysign(math.floor(abs(value) + 0.5), value)


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _corners(pixel_map, j, i, half, xs, ys):
    """Map the corners of a pixel, shrunk to `half` its half-width; False where the map ends."""
    ny, nx = pixel_map.shape[:2]
    if 0 < i < nx - 2 and 0 < j < ny - 2:
        centre, side, corner = (1 - half) * (1 - half), (1 - half) * half, half * half
        for axis in range(2):
            out = xs if axis == 0 else ys
            c00 = pixel_map[j - 1, i - 1, axis] * corner
            c01 = pixel_map[j - 1, i, axis] * side
            c02 = pixel_map[j - 1, i + 1, axis] * corner
            c10 = pixel_map[j, i - 1, axis] * side
            c11 = pixel_map[j, i, axis] * centre
            c12 = pixel_map[j, i + 1, axis] * side
            c20 = pixel_map[j + 1, i - 1, axis] * corner
            c21 = pixel_map[j + 1, i, axis] * side
            c22 = pixel_map[j + 1, i + 1, axis] * corner
            out[0] = c10 + c11 + c20 + c21
            out[1] = c11 + c12 + c21 + c22
            out[2] = c01 + c02 + c11 + c12
            out[3] = c00 + c01 + c10 + c11
    else:
        for k in range(4):
            x = i - half if k == 0 or k == 3 else i + half
            y = j + half if k < 2 else j - half
            i0 = min(max(int(x), 0), nx - 2)
            j0 = min(max(int(y), 0), ny - 2)
            u, v = x - i0, y - j0
            u1, v1 = 1.0 - u, 1.0 - v
            for axis in range(2):
                out = xs if axis == 0 else ys
                out[k] = (
                    pixel_map[j0, i0, axis] * u1 * v1
                    + pixel_map[j0, i0 + 1, axis] * u * v1
                    + pixel_map[j0 + 1, i0, axis] * u1 * v
                    + pixel_map[j0 + 1, i0 + 1, axis] * u * v
                )
    for k in range(4):
        if not (math.isfinite(xs[k]) and math.isfinite(ys[k])):
            return False
    return True


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _touched(values, size):
    """First and last output index between the least and greatest of four coordinates."""
    low = _nearest(min(min(values[0], values[1]), min(values[2], values[3])))
    high = _nearest(max(max(values[0], values[1]), max(values[2], values[3])))
    if high < 0.0 or low > size - 1.0:
        return 0, -1
    return int(max(low, 0.0)), int(min(high, size - 1.0))


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _area_below(x1, y1, x2, y2):
    """Signed area between a segment and the x axis, inside the unit square."""
    dx, dy = x2 - x1, y2 - y1
    if dx == 0.0:
        return 0.0
    if dx < 0.0:
        sign, left, right = -1.0, x2, x1
    else:
        sign, left, right = 1.0, x1, x2
    if left >= 1.0 or right <= 0.0:
        return 0.0
    left, right = max(left, 0.0), min(right, 1.0)
    slope = dy / dx
    at_left, at_right = y1 + slope * (left - x1), y1 + slope * (right - x1)
    if at_left <= 0.0 and at_right <= 0.0:
        return 0.0
    if at_left >= 1.0 and at_right >= 1.0:
        return sign * (right - left)
    det = x1 * y2 - y1 * x2
    if at_left < 0.0:
        at_left, left = 0.0, det / dy
    if at_right < 0.0:
        at_right, right = 0.0, det / dy
    if at_left <= 1.0:
        if at_right <= 1.0:
            return sign * 0.5 * (right - left) * (at_right + at_left)
        top = (dx + det) / dy
        return sign * (0.5 * (top - left) * (1.0 + at_left) + right - top)
    top = (dx + det) / dy
    return sign * (0.5 * (right - top) * (1.0 + at_right) + top - left)


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _overlap(x, y, xs, ys):
    """Signed area that a quadrilateral shares with output pixel (x, y)."""
    x0, y0 = x - 0.5, y - 0.5
    total = 0.0
    for k in range(4):
        m = (k + 1) & 3
        total += _area_below(xs[k] - x0, ys[k] - y0, xs[m] - x0, ys[m] - y0)
    return total


@njit(
    (_I8, _I8, _F8, types.int64[:, ::1], types.float64, _I8, _I8, _COUNTS, *_LIST),
    cache=True,
    nogil=True,
)
def overlap_rows(
    row, stop, pixel_map, limits, half, out_ny, out_nx, counts, starts, target, source, share
):
    """List (output pixel, input pixel, overlap / input pixel's area) row by row, and count.

    With empty lists only an upper bound of the count is found.
    """
    nx = pixel_map.shape[1]
    xs, ys = np.empty(4), np.empty(4)
    for j in range(row, stop):
        at = starts[j]
        for i in range(limits[j, 0], limits[j, 1] + 1):
            if not _corners(pixel_map, j, i, half, xs, ys):
                continue
            x1, x2 = _touched(xs, out_nx)
            y1, y2 = _touched(ys, out_ny)
            if share.size == 0:
                at += (x2 - x1 + 1) * (y2 - y1 + 1)
                continue
            area = 0.5 * ((xs[1] - xs[3]) * (ys[0] - ys[2]) - (xs[0] - xs[2]) * (ys[1] - ys[3]))
            if area == 0.0:
                continue
            for y in range(y1, y2 + 1):
                for x in range(x1, x2 + 1):
                    overlap = _overlap(float(x), float(y), xs, ys)
                    if overlap != 0.0:
                        target[at] = y * out_nx + x
                        source[at] = j * nx + i
                        share[at] = overlap / area
                        at += 1
        counts[j] = at - starts[j]


@njit(cache=True, nogil=True)  # compiled where it is asked for
def point_rows(row, stop, pixel_map, limits, out_ny, out_nx, counts, starts, target, source, share):
    """As `overlap_rows`, each input pixel falling whole into the output pixel at its centre."""
    nx = pixel_map.shape[1]
    for j in range(row, stop):
        at = starts[j]
        for i in range(limits[j, 0], limits[j, 1] + 1):
            x, y = _nearest(pixel_map[j, i, 0]), _nearest(pixel_map[j, i, 1])
            if 0.0 <= x < out_nx and 0.0 <= y < out_ny:
                target[at] = int(y) * out_nx + int(x)
                source[at] = j * nx + i
                share[at] = 1.0
                at += 1
        counts[j] = at - starts[j]


@njit((*_LIST, _COUNTS, types.int64[::1], types.int32[::1], types.float64[::1]), cache=True)
def by_output_pixel(starts, target, source, share, counts, at, sources, shares):
    """Sort the rows' lists by output pixel, stably; `at` holds, and is moved from, the places."""
    for j in range(starts.size):
        for e in range(starts[j], starts[j] + counts[j]):
            k = at[target[e]]
            sources[k] = source[e]
            shares[k] = share[e]
            at[target[e]] = k + 1


def area_shares(
    pixel_map: np.ndarray,
    limits: np.ndarray,
    output_shape: tuple[int, int],
    kernel: str,
    pixfrac: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute pointers, sources and shares (see `Overlaps`) of square drops or of points."""
    ny, nx = output_shape
    n_rows = len(limits)
    counts, starts = np.zeros(n_rows, dtype=np.int64), np.zeros(n_rows, dtype=np.int64)
    given: tuple[Any, ...]
    if kernel == "point":
        work, given = point_rows, (pixel_map, limits, ny, nx, counts)
        counts[:] = np.maximum(limits[:, 1] - limits[:, 0] + 1, 0)
    else:
        work, given = overlap_rows, (pixel_map, limits, 0.5 * pixfrac, ny, nx, counts)
        over_rows(work, n_rows, *given, starts, *_lists(0))
    starts[1:] = np.cumsum(counts)[:-1]
    listed = _lists(int(counts.sum()))
    over_rows(work, n_rows, *given, starts, *listed)
    used = np.concatenate([listed[0][a : a + n] for a, n in zip(starts, counts, strict=True)])
    pointers = np.zeros(ny * nx + 1, dtype=np.int64)
    np.cumsum(np.bincount(used, minlength=ny * nx), out=pointers[1:])
    _, sources, shares = _lists(used.size)
    by_output_pixel(starts, *listed, counts, pointers[:-1].copy(), sources, shares)
    return pointers, sources, shares


def _lists(size):
    return np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.float64)
