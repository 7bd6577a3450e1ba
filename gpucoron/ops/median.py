"""Median of each pixel over integrations, good pixels only."""

from __future__ import annotations

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.device import on_gpu
from gpucoron.errors import InputError

__all__ = ["median"]


def median(images, good=None):
    """Take the median of each pixel over the integrations where it is good.

    Parameters
    ----------
    images : (n, ny, nx) float32 or float64
        The integrations. NaN never counts as good; infinities do.
    good : (n, ny, nx) bool, optional
        False where a pixel must not enter. Default: every pixel may.

    Returns
    -------
    (ny, nx), dtype of `images`
        The middle value, or the mean of the two middle values; NaN where no integration is good.

    Raises
    ------
    InputError
        `images` is not 3-D, not float32 or float64, holds no integration, or `good` has another
        shape.
    TypeError
        Host and device arrays are mixed.

    Notes
    -----
    The mean of two middle values is taken in the dtype of the images, as numpy does, so that the
    result equals ``numpy.nanmedian`` bit for bit; but on a GPU, float32 means below 1.2e-38 are 0.

    CPU: 64 columns are sorted together by exchanges of neighbours (up to 48 integrations), or each
    gathered into a small buffer for quickselect: one read of the stack. GPU: one read of the
    stack, too, for up to 2048 integrations (beyond, one for each step of a bisection); see
    ``kernels/median.cu``.
    """
    images, good = cuda.as_device_arrays(images, good)
    if images.ndim != 3 or images.shape[0] == 0:
        raise InputError(f"images have shape {images.shape}, expected (n, ny, nx) with n > 0")
    if images.dtype.char not in "fd":
        raise InputError(f"images have dtype {images.dtype}, expected float32 or float64")
    if good is not None and good.shape != images.shape:
        raise InputError(f"good has shape {good.shape}, but images have {images.shape}")
    if on_gpu(images, good):
        from gpucoron.ops.cuda.median import column_median

        return column_median(images, good)
    from gpucoron.ops.cpu.median import column_median

    if good is None:
        good = np.ones((1, 1, 1), dtype=np.bool_)
    return column_median(np.ascontiguousarray(images), np.ascontiguousarray(good))
