"""Multiplication of half spectra by separable phases for the CPU, compiled by numba."""

import numpy as np
from numba import njit

from gpucoron.ops._threads import over_rows


def apply_phases(half_spectra, phase_y, phase_x, corner, both_even):
    """Multiply each spectrum by its row and column factors, in one pass."""
    out = np.empty_like(half_spectra)
    over_rows(_apply_phases, out.shape[0] * out.shape[1], half_spectra, phase_y, phase_x, corner,
              both_even, out)
    return out


@njit(cache=True, nogil=True)
def _apply_phases(first, stop, half_spectra, phase_y, phase_x, corner, both_even, out):
    _, ny, nh = half_spectra.shape
    for t in range(first, stop):
        k, y = t // ny, t % ny
        row = phase_y[k, y]
        for x in range(nh):
            out[k, y, x] = half_spectra[k, y, x] * row * phase_x[k, x]
        if both_even and y == ny // 2:
            out[k, y, nh - 1] = half_spectra[k, y, nh - 1] * corner[k]
