"""Fourier shifts on a GPU: CuPy's transforms round one kernel."""

import math
import threading

import numpy as np

from gpucoron.backend import cuda

ROWS = 16  # of a spectrum, for one block; fourier_shift.cu knows
_CUFFT_INVERSE = 1  # cuFFT's number
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
    shifts_yx = cp.asarray(shifts_yx, dtype=np.float64)
    n, scale = len(half_spectra), 1.0 / math.prod(shape)
    out = cp.empty((n, *shape)) if out is None else out
    if not (out.flags.c_contiguous and out.dtype.char == "d"):  # cuFFT writes to no other
        out[...] = shift_spectra(half_spectra, shifts_yx, shape)
        return out
    for k in range(0, n, PLANES):
        part = slice(k, k + PLANES)
        _inverse(multiply_phases(half_spectra[part], shifts_yx[part], shape, scale), out[part])
    return out


class _Plans(threading.local):
    """cuFFT's plans of this thread, each with the memory that it works in."""

    most = 8

    def __init__(self):
        self.kept = {}


_PLANS = _Plans()


def _inverse(half_spectra, out):
    """Transform back straight into `out`, unscaled; the spectra are spoilt.

    CuPy's irfft2 takes no `out`: what it gives would have to be copied.
    """
    key = (cuda.cupy().cuda.runtime.getDevice(), *out.shape)
    if key not in _PLANS.kept:
        if len(_PLANS.kept) == _PLANS.most:
            _PLANS.kept.clear()
        _PLANS.kept[key] = cuda.cupyx("cupyx.scipy.fft").get_fft_plan(
            half_spectra, out.shape[1:], axes=(1, 2), value_type="C2R"
        )
    _PLANS.kept[key].fft(half_spectra, out, _CUFFT_INVERSE)


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
        kernel(
            (-(-ny // ROWS), len(out)),
            (threads,),
            (half_spectra, shifts_yx, np.int32(ny), np.int32(nx), np.float64(scale), out),
        )
    return out
