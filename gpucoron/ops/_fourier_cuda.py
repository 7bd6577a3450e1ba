"""Fourier shifts on a GPU: CuPy's transforms round one kernel."""

import math

import numpy as np

from gpucoron import cuda

ROWS = 16  # of a spectrum, for one block; fourier_shift.cu knows
PLANES = 256  # transformed at a time, so that the memory for temporary arrays has a limit


def spectra(images):
    """See `gpucoron.ops.fourier_shift.spectra`."""
    cp = cuda.cupy()
    n, ny, nx = images.shape
    if n <= PLANES:
        return cp.fft.rfft2(images.astype(np.float64, copy=False))
    out = cp.empty((n, ny, nx // 2 + 1), dtype=np.complex128)
    for k in range(0, n, PLANES):
        out[k : k + PLANES] = spectra(images[k : k + PLANES])
    return out


def shift_spectra(half_spectra, shifts_yx, shape, out=None):
    """See `gpucoron.ops.fourier_shift.shift_spectra`."""
    cp = cuda.cupy()
    irfft2 = cuda.cupyx("cupyx.scipy.fft").irfft2  # cupy.fft's copies the spectra first
    shifts_yx = cp.asarray(shifts_yx, dtype=np.float64)
    n = len(half_spectra)
    if out is None and 0 < n <= PLANES:
        shifted = multiply_phases(half_spectra, shifts_yx, shape, 1.0 / math.prod(shape))
        return irfft2(shifted, s=shape, norm="forward", overwrite_x=True)  # scaled already
    out = cp.empty((n, *shape)) if out is None else out
    for k in range(0, n, PLANES):
        part = slice(k, k + PLANES)
        out[part] = shift_spectra(half_spectra[part], shifts_yx[part], shape)
    return out


def multiply_phases(half_spectra, shifts_yx, shape, scale=1.0):
    """See `gpucoron.ops.fourier_shift.multiply_phases`; all multiplied by `scale`, too."""
    cp = cuda.cupy()
    ny, nx = shape
    half_spectra = cp.ascontiguousarray(half_spectra)
    shifts_yx = cp.ascontiguousarray(cp.asarray(shifts_yx, dtype=np.float64))
    out = cp.empty_like(half_spectra)
    threads = min(256, -(-half_spectra.shape[2] // 32) * 32)
    kernel = cuda.kernel("fourier_shift", "multiply_phases")
    if len(out):
        kernel((-(-ny // ROWS), len(out)), (threads,),
               (half_spectra, shifts_yx, np.int32(ny), np.int32(nx), np.float64(scale), out))
    return out
