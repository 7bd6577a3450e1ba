"""Multiplication of half spectra by separable phases for the CPU, compiled by numba."""

import numpy as np
from numba import njit, prange


@njit(cache=True, parallel=True)
def apply_phases(half_spectra, phase_y, phase_x, corner, both_even):
    """Multiply each spectrum by its row and column factors, in one pass."""
    n, ny, nh = half_spectra.shape
    out = np.empty_like(half_spectra)
    for t in prange(n * ny):
        k, y = t // ny, t % ny
        row = phase_y[k, y]
        for x in range(nh):
            out[k, y, x] = half_spectra[k, y, x] * row * phase_x[k, x]
        if both_even and y == ny // 2:
            out[k, y, nh - 1] = half_spectra[k, y, nh - 1] * corner[k]
    return out
