"""Projections of faint sources on KL vectors, and their residuals in a drizzled image, by numba."""

from __future__ import annotations

import numpy as np
from numba import njit, types

from gpucoron.backend.parallel import over_rows

__all__ = ["amplitudes", "combined_patches"]

_I8 = types.int64
_F1 = types.Array(types.float64, 1, "C", readonly=True)
_F2 = types.Array(types.float64, 2, "C", readonly=True)
_F3 = types.Array(types.float64, 3, "C", readonly=True)
_I1 = types.Array(types.int64, 1, "C", readonly=True)
_I2 = types.Array(types.int64, 2, "C", readonly=True)
_J1 = types.Array(types.int32, 1, "C", readonly=True)


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


@njit(nogil=True, fastmath={"contract"})
def _weighted_residual(
    m, y, x, nx, stamps, corners, vectors, coefficients, mean, weight, rows, shares
):
    """Return the sum over integrations of weight times residual in one input pixel."""
    pixel = y * nx + x
    if weight[pixel] == 0.0:
        return 0.0
    vector, model = vectors[pixel], 0.0
    if rows[pixel] < 0:
        for c in range(mean.shape[1]):
            model += vector[c] * mean[m, c]
    else:
        for n in range(coefficients.shape[1]):
            share, part = shares[rows[pixel], n], 0.0
            if share != 0.0:
                for c in range(mean.shape[1]):
                    part += vector[c] * coefficients[m, n, c]
                model += share * part
    j, i = y - corners[m, 0], x - corners[m, 1]
    value = 0.0
    if 0 <= j < stamps.shape[1] and 0 <= i < stamps.shape[2]:
        value = stamps[m, j, i]
    return weight[pixel] * (value - model)


def combined_patches(
    stamps, corners, vectors, coefficients, mean, weight, rows, shares, geometry, places, out
):
    """Add weighted residuals to patches (m, size, size) of the output; see ops/injection.py."""
    over_rows(
        _combine,
        len(stamps),
        stamps,
        corners,
        vectors,
        coefficients,
        mean,
        weight,
        rows,
        shares,
        geometry.pointers,
        geometry.sources,
        geometry.shares,
        geometry.input_shape[1],
        geometry.output_shape[1],
        places,
        out,
    )


@njit(
    (_I8, _I8, _F3, _I2, _F2, _F3, _F2, _F1, _J1, _F2)
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
    vectors,
    coefficients,
    mean,
    weight,
    rows,
    shares,
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
        low_y, high_y, low_x, high_x = 1 << 40, -1, 1 << 40, -1
        for j in range(max(0, -places[m, 0]), min(size, out_ny - places[m, 0])):
            for i in range(max(0, -places[m, 1]), min(size, out_nx - places[m, 1])):
                pixel = (places[m, 0] + j) * out_nx + places[m, 1] + i
                for e in range(pointers[pixel], pointers[pixel + 1]):
                    y, x = sources[e] // nx, sources[e] % nx
                    low_y, high_y = min(low_y, y), max(high_y, y)
                    low_x, high_x = min(low_x, x), max(high_x, x)
        if high_y < 0:
            continue
        left = np.full((high_y - low_y + 1, high_x - low_x + 1), np.nan)
        for j in range(max(0, -places[m, 0]), min(size, out_ny - places[m, 0])):
            for i in range(max(0, -places[m, 1]), min(size, out_nx - places[m, 1])):
                pixel = (places[m, 0] + j) * out_nx + places[m, 1] + i
                total = 0.0
                for e in range(pointers[pixel], pointers[pixel + 1]):
                    y, x = sources[e] // nx, sources[e] % nx
                    value = left[y - low_y, x - low_x]
                    if np.isnan(value):
                        value = _weighted_residual(
                            m,
                            y,
                            x,
                            nx,
                            stamps,
                            corners,
                            vectors,
                            coefficients,
                            mean,
                            weight,
                            rows,
                            shares,
                        )
                        left[y - low_y, x - low_x] = value
                    total += overlaps[e] * value
                out[m, j, i] += total
