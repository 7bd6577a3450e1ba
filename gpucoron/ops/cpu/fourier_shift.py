"""Multiplication of half spectra by separable phases for the CPU, compiled by numba."""

import numpy as np
from numba import njit


def apply_phases(half_spectrum, phase_y, phase_x, corner, both_even):
    """Multiply a spectrum by its row and column factors, in one pass."""
    out = np.empty_like(half_spectrum)
    _apply_phases(half_spectrum, phase_y, phase_x, corner, both_even, out)
    return out


@njit(cache=True, nogil=True)
def _apply_phases(half_spectrum, phase_y, phase_x, corner, both_even, out):
    ny, nh = half_spectrum.shape
    for y in range(ny):
        row = phase_y[y]
        for x in range(nh):
            out[y, x] = half_spectrum[y, x] * row * phase_x[x]
    if both_even:
        out[ny // 2, nh - 1] = half_spectrum[ny // 2, nh - 1] * corner
