"""Shares of turbo, gaussian and lanczos drops on the CPU, straight into order by output pixel.

A thread takes some rows of the output and walks over the whole input in raster order, so every
output pixel meets its inputs in that order however the rows are shared. Compiled when first used:
who drizzles with `square` never waits for it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, types

from gpucoron.backend.parallel import over_rows
from gpucoron.ops.cpu.drizzle import _nearest
from gpucoron.ops.drizzle_profiles import GAUSSIAN, LANCZOS, TURBO, Profile

__all__ = ["separable_shares"]

_I8, _F8 = types.int64, types.float64
_IN1 = types.Array(_F8, 1, "C", readonly=True)
_IN3 = types.Array(_F8, 3, "C", readonly=True)


def separable_shares(
    pixel_map: np.ndarray, limits: np.ndarray, output_shape: tuple[int, int], drop: Profile
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute pointers, sources and shares (see `Overlaps`) of a profile's drops."""
    ny, nx = output_shape
    drop_of = (pixel_map, limits, drop.kind, drop.radius, drop.norm, drop.factor, drop.table, nx)
    pointers = np.zeros(ny * nx + 1, dtype=np.int64)
    nothing = np.empty(0, np.int32), np.empty(0)
    over_rows(_separable_rows, ny, *drop_of, pointers[1:], *nothing)
    np.cumsum(pointers, out=pointers)
    sources, shares = np.empty(pointers[-1], np.int32), np.empty(pointers[-1])
    if shares.size:
        over_rows(_separable_rows, ny, *drop_of, pointers[:-1].copy(), sources, shares)
    return pointers, sources, shares


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _profile(kind, centre, radius, factor, table, begin, end, values):
    """Fill in a profile over output indices from `begin` up to `end`; the first, and how many."""
    if kind == LANCZOS:
        low, high = math.floor(centre - radius) + 1.0, math.floor(centre + radius)
    else:
        low, high = _nearest(centre - radius), _nearest(centre + radius)
    low, high = max(low, float(begin)), min(high, end - 1.0)
    if not low <= high:
        return begin, 0
    first, n = int(low), int(high - low) + 1
    for k in range(n):
        at = float(first + k)
        distance = centre - at
        if kind == TURBO:
            value = min(centre + radius, at + 0.5) - max(centre - radius, at - 0.5)
            values[k] = max(value, 0.0)
        elif kind == GAUSSIAN:
            values[k] = math.exp(-distance * distance * factor)
        else:
            step = int(_nearest(abs(distance * factor)))
            values[k] = table[step] if step < table.size else 0.0
    return first, n


@njit(
    (
        _I8,
        _I8,
        _IN3,
        types.int64[:, ::1],
        _I8,
        _F8,
        _F8,
        _F8,
        _IN1,
        _I8,
        types.int64[::1],
        types.int32[::1],
        _F8[::1],
    ),
    cache=True,
    nogil=True,
)
def _separable_rows(
    row, stop, pixel_map, limits, kind, radius, norm, factor, table, out_nx, at, sources, shares
):
    """Write what the output pixels of some rows receive at the places `at`, and move these on.

    With empty lists the places are moved on only, which counts.
    """
    nx = pixel_map.shape[1]
    longest = int(min(2.0 * radius + 3.0, float(max(out_nx, stop - row))))
    in_x, in_y = np.empty(longest), np.empty(longest)
    for j in range(pixel_map.shape[0]):
        for i in range(limits[j, 0], limits[j, 1] + 1):
            x, y = pixel_map[j, i, 0], pixel_map[j, i, 1]
            if not (math.isfinite(x) and math.isfinite(y)):
                continue
            y1, height = _profile(kind, y, radius, factor, table, row, stop, in_y)
            if height == 0:
                continue
            x1, width = _profile(kind, x, radius, factor, table, 0, out_nx, in_x)
            for b in range(height):
                for a in range(width):
                    share = in_x[a] * in_y[b] * norm
                    if kind == GAUSSIAN:
                        share = float(np.float32(share))
                    if share == 0.0:
                        continue
                    pixel = (y1 + b) * out_nx + x1 + a
                    if shares.size > 0:
                        sources[at[pixel]] = j * nx + i
                        shares[at[pixel]] = share
                    at[pixel] += 1
