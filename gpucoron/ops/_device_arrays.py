"""What array functions that serve both devices need beside `gpucoron.cuda.namespace`."""

import numpy as np

from gpucoron import cuda
from gpucoron.device import lives_on_gpu, on_gpu

__all__ = ["fourier", "to_host"]


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
