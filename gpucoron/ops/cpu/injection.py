"""Projections of faint sources on KL vectors, and their residuals in a drizzled image, by numba."""

from __future__ import annotations

import numpy as np
from numba import njit, types

from gpucoron.backend.parallel import over_rows

__all__ = ["amplitudes", "combined_patches", "stamp_products"]

_I8 = types.int64
_F1 = types.Array(types.float64, 1, "C", readonly=True)
_F2 = types.Array(types.float64, 2, "C", readonly=True)
_F3 = types.Array(types.float64, 3, "C", readonly=True)
_F4 = types.Array(types.float64, 4, "C", readonly=True)
_I2 = types.Array(types.int64, 2, "C", readonly=True)
_I3 = types.Array(types.int64, 3, "C", readonly=True)
_J1 = types.Array(types.int32, 1, "C", readonly=True)
_J2 = types.Array(types.int32, 2, "C", readonly=True)


def amplitudes(stamps, corners, vectors, square, rows, lacking, shape):
    """Return inner products (m, n, K) of stamps and vectors; see ops/injection.py."""
    out = np.empty((len(stamps), lacking.shape[1], vectors.shape[1]))
    over_rows(_project, len(stamps), stamps, corners, vectors, square, rows, lacking, shape[0], out)
    return out


@njit(
    (_I8, _I8, _F3, _I2, _F2, _F1, _J1, _F2, _I8, types.float64[:, :, ::1]),
    cache=True,
    nogil=True,
    fastmath={"contract"},
)
def _project(first, stop, stamps, corners, vectors, square, rows, lacking, ny, out):
    """Project some stamps; row `rows[pixel]` of `lacking` has 1 for images without the pixel."""
    n, k = lacking.shape[1], vectors.shape[1]
    nx = len(square) // ny
    for m in range(first, stop):
        whole = np.zeros(k)
        without = np.zeros((n, k))
        for j in range(max(0, -corners[m, 0]), min(stamps.shape[1], ny - corners[m, 0])):
            for i in range(max(0, -corners[m, 1]), min(stamps.shape[2], nx - corners[m, 1])):
                pixel = (corners[m, 0] + j) * nx + corners[m, 1] + i
                value = stamps[m, j, i] * square[pixel]
                if value == 0.0:
                    continue
                vector = vectors[pixel]
                for c in range(k):
                    whole[c] += value * vector[c]
                if rows[pixel] >= 0:
                    row = lacking[rows[pixel]]
                    for image in range(n):
                        if row[image] != 0.0:
                            for c in range(k):
                                without[image, c] += value * vector[c]
        for image in range(n):
            for c in range(k):
                out[m, image, c] = whole[c] - without[image, c]


def stamp_products(stamps, corners, square, rows, lacking, shape):
    """Return inner products (m, n, g, g) of the stamps of each source with each other."""
    (m, g), n = stamps.shape[:2], lacking.shape[1]
    out = np.zeros((m, n, g, g))
    over_rows(_multiply, m, stamps, corners, square, rows, lacking, shape[0], out)
    return out


@njit(
    (_I8, _I8, _F4, _I3, _F1, _J1, _F2, _I8, types.float64[:, :, :, ::1]),
    cache=True,
    nogil=True,
    fastmath={"contract"},
)
def _multiply(first, stop, stamps, corners, square, rows, lacking, ny, out):
    """Multiply stamps pairwise, for each image without the pixels that it lacks."""
    n, nx = lacking.shape[1], len(square) // ny
    height, width = stamps.shape[2], stamps.shape[3]
    for m in range(first, stop):
        for g in range(stamps.shape[1]):
            for h in range(g + 1):
                down, along = (
                    (corners[m, g, 0] - corners[m, h, 0]),
                    (corners[m, g, 1] - corners[m, h, 1]),
                )
                whole, without = 0.0, np.zeros(n)
                for j in range(max(0, -corners[m, g, 0]), min(height, ny - corners[m, g, 0])):
                    if not 0 <= j + down < height:
                        continue
                    for i in range(max(0, -corners[m, g, 1]), min(width, nx - corners[m, g, 1])):
                        if not 0 <= i + along < width:
                            continue
                        pixel = (corners[m, g, 0] + j) * nx + corners[m, g, 1] + i
                        value = square[pixel] * stamps[m, g, j, i]
                        value *= stamps[m, h, j + down, i + along]
                        whole += value
                        if rows[pixel] >= 0:
                            for image in range(n):
                                without[image] += value * lacking[rows[pixel], image]
                for image in range(n):
                    out[m, image, g, h] = out[m, image, h, g] = whole - without[image]


@njit(nogil=True, fastmath={"contract"})
def _left(m, slot, n, y, x, pixel, stamps, corners, shares, vectors, coefficients):
    """Return stamps times their shares, less vectors times their coefficients, in a pixel.

    Elements and no slices, whose reference counts threads would wait for; four sums, so that
    additions do not wait for each other.
    """
    k = coefficients.shape[3]
    four = k - k % 4
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    for i in range(0, four, 4):
        a += vectors[pixel, i] * coefficients[m, slot, n, i]
        b += vectors[pixel, i + 1] * coefficients[m, slot, n, i + 1]
        c += vectors[pixel, i + 2] * coefficients[m, slot, n, i + 2]
        d += vectors[pixel, i + 3] * coefficients[m, slot, n, i + 3]
    for i in range(four, k):
        a += vectors[pixel, i] * coefficients[m, slot, n, i]
    value = -((a + b) + (c + d))
    for g in range(shares.shape[3]):
        j, i = y - corners[m, g, 0], x - corners[m, g, 1]
        if 0 <= j < stamps.shape[2] and 0 <= i < stamps.shape[3]:
            value += shares[m, slot, n, g] * stamps[m, g, j, i]
    return value


@njit(nogil=True, fastmath={"contract"})
def _weighted_residual(
    m,
    y,
    x,
    nx,
    stamps,
    corners,
    labels,
    vectors,
    slots,
    coefficients,
    shares,
    mean_coefficients,
    mean_shares,
    weight,
    rows,
    own,
):
    """Return the sum over integrations of weight times residual in one input pixel."""
    pixel = y * nx + x
    if weight[pixel] == 0.0 or labels[pixel] < 0:
        return 0.0
    slot, row = slots[m, labels[pixel]], rows[pixel]
    if row < 0:
        return weight[pixel] * _left(
            m, slot, 0, y, x, pixel, stamps, corners, mean_shares, vectors, mean_coefficients
        )
    value = 0.0
    for n in range(coefficients.shape[2]):
        share = own[row, n]
        if share != 0.0:
            value += share * _left(
                m, slot, n, y, x, pixel, stamps, corners, shares, vectors, coefficients
            )
    return weight[pixel] * value


def combined_patches(
    stamps, corners, labels, vectors, terms, mean, weight, rows, own, geometry, places, out
):
    """Add weighted residuals to patches (m, size, size) of the output; see ops/injection.py."""
    over_rows(
        _combine,
        len(stamps),
        stamps,
        corners,
        labels,
        vectors,
        *terms,
        *mean,
        weight,
        rows,
        own,
        geometry.pointers,
        geometry.sources,
        geometry.shares,
        geometry.input_shape[1],
        geometry.output_shape[1],
        places,
        out,
    )


@njit(
    (_I8, _I8, _F4, _I3, _J1, _F2, _J2, _F4, _F4, _F4, _F4, _F1, _J1, _F2)
    + (types.int64[::1], types.int32[::1], types.float64[::1])
    + (_I8, _I8, _I2, types.float64[:, :, ::1]),
    cache=True,
    nogil=True,
    fastmath={"contract"},
)
def _combine(
    first,
    stop,
    stamps,
    corners,
    labels,
    vectors,
    slots,
    coefficients,
    shares,
    mean_coefficients,
    mean_shares,
    weight,
    rows,
    own,
    pointers,
    sources,
    overlaps,
    nx,
    out_nx,
    places,
    out,
):
    """Add the patches of some places; every input pixel that is needed is computed once."""
    size, out_ny = out.shape[1], (len(pointers) - 1) // out_nx
    for m in range(first, stop):
        lowest, highest = 1 << 40, -1
        for j in range(max(0, -places[m, 0]), min(size, out_ny - places[m, 0])):
            for i in range(max(0, -places[m, 1]), min(size, out_nx - places[m, 1])):
                pixel = (places[m, 0] + j) * out_nx + places[m, 1] + i
                for e in range(pointers[pixel], pointers[pixel + 1]):
                    lowest, highest = min(lowest, sources[e]), max(highest, sources[e])
        left = np.full(max(0, highest - lowest + 1), np.nan)
        for j in range(max(0, -places[m, 0]), min(size, out_ny - places[m, 0])):
            for i in range(max(0, -places[m, 1]), min(size, out_nx - places[m, 1])):
                pixel = (places[m, 0] + j) * out_nx + places[m, 1] + i
                total = 0.0
                for e in range(pointers[pixel], pointers[pixel + 1]):
                    value = left[sources[e] - lowest]
                    if np.isnan(value):
                        y = sources[e] // nx
                        value = _weighted_residual(
                            m,
                            y,
                            sources[e] - y * nx,
                            nx,
                            stamps,
                            corners,
                            labels,
                            vectors,
                            slots,
                            coefficients,
                            shares,
                            mean_coefficients,
                            mean_shares,
                            weight,
                            rows,
                            own,
                        )
                        left[sources[e] - lowest] = value
                    total += overlaps[e] * value
                out[m, j, i] += total
