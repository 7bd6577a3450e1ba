"""What array functions that serve both devices need beside `gpucoron.backend.cuda.namespace`."""

import gc
import math

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.device import lives_on_gpu, on_gpu
from gpucoron.errors import DeviceMemoryError, InputError

__all__ = ["fourier", "in_batches", "listed_size", "to_host"]


def fourier(*arrays):
    """Return the module that transforms the arrays: `scipy.fft`, or CuPy's where they live there.

    Raises
    ------
    TypeError
        Host and device arrays are mixed.
    """
    if on_gpu(*arrays):
        return cuda.cupy().fft
    import scipy.fft

    return scipy.fft


def to_host(array) -> np.ndarray:
    """Return a NumPy array; what lives on a GPU is waited for and copied."""
    return cuda.cupy().asnumpy(array) if lives_on_gpu(array) else np.asarray(array)


def listed_size(shape) -> int:
    """Return how many pixels an exposure has, which a kernel is to list by numbers of 32 bits.

    Raises
    ------
    InputError
        There are too many.
    """
    size = math.prod(shape)
    if size >= 2**32:
        raise InputError(
            f"an exposure of {' x '.join(map(str, shape))} has {size} pixels, "
            f"expected fewer than {2**32} on a GPU"
        )
    return size


def in_batches(work, n: int, size: int, where: str) -> None:
    """Call ``work(slice)`` for `n` items, `size` at a time; fewer where a GPU's memory is full.

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
