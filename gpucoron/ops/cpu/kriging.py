"""Interpolation of bad pixels by simple kriging, for the CPU, compiled by numba."""

import numpy as np
from numba import njit

from gpucoron.backend.parallel import over_rows


# sums may be taken in any order, so that the processor's vectors can: half the time
@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, fastmath={"reassoc", "contract"})
def _solve(matrix, right, n):
    """Solve the leading n x n symmetric positive definite system in place (Cholesky)."""
    for j in range(n):
        d = matrix[j, j]
        for k in range(j):
            d -= matrix[j, k] * matrix[j, k]
        if d <= 0.0:
            return False
        d = np.sqrt(d)
        matrix[j, j] = d
        for i in range(j + 1, n):
            s = matrix[i, j]
            for k in range(j):
                s -= matrix[i, k] * matrix[j, k]
            matrix[i, j] = s / d
    for i in range(n):
        s = right[i]
        for k in range(i):
            s -= matrix[i, k] * right[k]
        right[i] = s / matrix[i, i]
    for i in range(n - 1, -1, -1):
        s = right[i]
        for k in range(i + 1, n):
            s -= matrix[k, i] * right[k]
        right[i] = s / matrix[i, i]
    return True


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _gather(image, noise, good, y, x, offsets, which, values):
    """Good neighbours of a pixel: which offsets, their values, mean and mean noise variance."""
    ny, nx = image.shape
    count, mean, variance = 0, 0.0, 0.0
    for m in range(offsets.shape[0]):
        v, u = y + offsets[m, 0], x + offsets[m, 1]
        if 0 <= v < ny and 0 <= u < nx and good[v, u]:
            which[count] = m
            values[count] = image[v, u]
            mean += values[count]
            variance += noise[v, u]
            count += 1
    if count:
        mean /= count
        variance /= count
    return count, mean, variance


def interpolate(image, noise, good, y, x, offsets, between, to_centre, floor, fewest):
    """Predict pixels from their good neighbours, with the variance; NaN where these are too few.

    `between` and `to_centre` hold the correlation of the neighbours with each other and with the
    pixel; `noise` the variance of every pixel; `floor` the least noise as a share of the signal.
    """
    out = np.full((2, y.size), np.nan)
    over_rows(
        _interpolate,
        y.size,
        image,
        noise,
        good,
        np.ascontiguousarray(y),
        np.ascontiguousarray(x),
        offsets,
        between,
        to_centre,
        floor,
        fewest,
        out,
    )
    return out


@njit(cache=True, nogil=True)
def _interpolate(
    first, stop, image, noise, good, y, x, offsets, between, to_centre, floor, fewest, out
):
    size = offsets.shape[0]
    for i in range(first, stop):
        which, values = np.empty(size, np.int64), np.empty(size)
        n, mean, variance = _gather(image, noise, good, y[i], x[i], offsets, which, values)
        if n < fewest:
            continue
        power = 0.0
        for a in range(n):
            power += (values[a] - mean) ** 2
        signal = power / n - variance
        if signal <= 0.3 * variance:  # hardly more than noise: the mean is the best guess
            out[0, i], out[1, i] = mean, max(0.0, signal)
            continue
        matrix, weights = np.empty((n, n)), np.empty(n)
        for a in range(n):
            for b in range(a + 1):
                matrix[a, b] = between[which[a], which[b]]
            matrix[a, a] += max(variance / signal, floor)
            weights[a] = to_centre[which[a]]
        if _solve(matrix, weights, n):
            value, explained = mean, 0.0
            for a in range(n):
                value += weights[a] * (values[a] - mean)
                explained += weights[a] * to_centre[which[a]]
            out[0, i], out[1, i] = value, signal * max(0.0, 1.0 - explained)
        else:
            out[0, i], out[1, i] = mean, signal
