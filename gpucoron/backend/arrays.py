"""Helpers for array functions that run on both CPU and GPU."""

import gc
import math

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.device import lives_on_gpu, on_gpu
from gpucoron.errors import DeviceMemoryError, InputError


def fft_module(*arrays):
    """Return the FFT module for the arrays: `scipy.fft`, or CuPy's for arrays on a GPU."""
    if on_gpu(*arrays):
        return cuda.cupy().fft
    import scipy.fft

    return scipy.fft


def to_host(array) -> np.ndarray:
    """Return a NumPy array; copy it from the GPU if it is there."""
    return cuda.cupy().asnumpy(array) if lives_on_gpu(array) else np.asarray(array)


def listed_size(shape) -> int:
    """Return the number of pixels of an exposure, fewer than 2**32: kernels index with 32 bits."""
    size = math.prod(shape)
    if size >= 2**32:
        raise InputError(
            f"an exposure of {' x '.join(map(str, shape))} has {size} pixels, "
            f"expected fewer than {2**32} on a GPU"
        )
    return size


def in_batches(work, n: int, size: int, where: str) -> None:
    """Call ``work(slice)`` for batches of `size` items; use smaller batches if GPU memory is full.

    Raises
    ------
    DeviceError
        From the GPU; DeviceMemoryError where one item is too much. `where` begins the line.
    """
    start, size = 0, min(size, max(1, n))
    while start < n:
        try:
            with cuda.errors(where):
                work(slice(start, min(start + size, n)))
            start += size
            continue
        except DeviceMemoryError:
            if size == 1:
                raise
        size = (size + 1) // 2
        gc.collect()  # what failed still holds its arrays
