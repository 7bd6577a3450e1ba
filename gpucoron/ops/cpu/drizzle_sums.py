"""Sums of planes over the overlaps of output pixels, and of weights over planes, with numba."""

from __future__ import annotations

import numpy as np
from numba import njit, types

from gpucoron.backend.parallel import over_rows

__all__ = ["sum_shares", "weighted_sums"]

_F4 = types.Array(types.float32, 2, "C", readonly=True)
_I8, _F8 = types.int64, types.float64
_BLOCK = 1024  # pixels that stay in the processor's cache


def sum_shares(geometry, planes, squared):
    """Sum planes (n, ny, nx) over overlaps; the arguments are those of ops/drizzle_overlaps.py."""
    channels = np.ascontiguousarray(planes.reshape(len(planes), -1).T)
    out = np.zeros((len(planes), *geometry.output_shape))
    over_rows(
        add_shares,
        out.shape[1],
        geometry.pointers,
        geometry.sources,
        geometry.shares,
        channels,
        bool(squared),
        out,
    )
    return out


@njit(
    (
        _I8,
        _I8,
        _I8[::1],
        types.int32[::1],
        _F8[::1],
        types.Array(types.float64, 2, "C", readonly=True),
        types.boolean,
        _F8[:, :, ::1],
    ),
    cache=True,
    nogil=True,
)
def add_shares(row, stop, pointers, sources, shares, channels, squared, out):
    """Sum channels (npix, n) over the shares, or their squares, of some rows of the output."""
    n, nx = channels.shape[1], out.shape[2]
    total = np.empty(n)
    for y in range(row, stop):
        for x in range(nx):
            pixel = y * nx + x
            total[:] = 0.0
            for e in range(pointers[pixel], pointers[pixel + 1]):
                share = shares[e]
                if squared:
                    share *= share
                values = channels[sources[e]]
                for c in range(n):
                    total[c] += share * values[c]
            for c in range(n):
                out[c, y, x] = total[c]


def weighted_sums(weights, planes):
    """Sum weights, and squared weights times planes; as in ops/drizzle_overlaps.py."""
    n, pixels = len(weights), weights[0].size
    flat = [
        np.ascontiguousarray(a, dtype=np.float32).reshape(n, pixels) for a in (weights, *planes)
    ]
    sums = np.zeros((len(flat), pixels))
    over_rows(add_weights, pixels, flat[0], sums[0])
    for plane, out in zip(flat[1:], sums[1:], strict=True):
        over_rows(add_weighted, pixels, flat[0], plane, out)
    return sums.reshape(len(flat), *weights.shape[1:])


@njit((_I8, _I8, _F4, _F8[::1]), cache=True, nogil=True)
def add_weights(first, stop, weights, out):
    """Sum weights (n, npix) of some pixels."""
    for begin in range(first, stop, _BLOCK):
        end = min(begin + _BLOCK, stop)
        for p in range(weights.shape[0]):
            for k in range(begin, end):
                out[k] += weights[p, k]


@njit((_I8, _I8, _F4, _F4, _F8[::1]), cache=True, nogil=True)
def add_weighted(first, stop, weights, values, out):
    """Sum squared weights times values (n, npix) of some pixels; NaN and infinity count 0."""
    for begin in range(first, stop, _BLOCK):
        end = min(begin + _BLOCK, stop)
        for p in range(weights.shape[0]):
            for k in range(begin, end):
                weight, value = np.float64(weights[p, k]), values[p, k]
                if weight != 0.0 and np.isfinite(value):
                    out[k] += weight * weight * value
