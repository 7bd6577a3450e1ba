"""cuSOLVER's eigenvectors of many symmetric matrices at once, which CuPy does not offer."""

from __future__ import annotations

import ctypes
import functools
import threading

import numpy as np

from gpucoron.backend.cuda import cupy
from gpucoron.errors import DeviceError

__all__ = ["eigh_batch"]

_NAMES = ("libcusolver.so.12", "libcusolver.so.11", "cusolver64_12.dll", "cusolver64_11.dll")
_VECTORS, _LOWER, _DOUBLE = ctypes.c_int(1), ctypes.c_int(0), ctypes.c_int(1)  # CUDA's constants
_MOST = 2**31 - 1  # elements of all matrices together
_KEPT = threading.local()  # the last call's memory on the host, which may still be in use


def eigh_batch(matrices):
    """Decompose symmetric matrices by XsyevBatched; one by one where cuSOLVER has no such function.

    The matrices (batch, n, n) are float64, C-contiguous, finite, on the device; overwritten.
    Returns eigenvalues (batch, n), ascending, and a vector in each row. What does not converge is
    not reported: check the result.
    """
    cp, library = cupy(), _library(cupy())
    batch, n, _ = matrices.shape
    if library is None or matrices.size > _MOST:
        pairs = [cp.linalg.eigh(matrix) for matrix in matrices]
        return (
            cp.stack([values for values, _ in pairs]),
            cp.stack([columns.T for _, columns in pairs]),
        )
    values, info = cp.empty((batch, n)), cp.empty(batch, np.int32)
    handle, params = cp.cuda.device.get_cusolver_handle(), ctypes.c_void_p()

    def call(name, *arguments):
        status = getattr(library, f"cusolverDn{name}")(*arguments)
        if status:
            raise DeviceError(f"KLIP: cuSOLVER's {name} fails with status {status}")

    handle = ctypes.c_void_p(handle)
    call("SetStream", handle, ctypes.c_void_p(cp.cuda.get_current_stream().ptr))
    call("CreateParams", ctypes.byref(params))
    try:
        size, count = ctypes.c_int64(n), ctypes.c_int64(batch)
        problem = (
            handle,
            params,
            _VECTORS,
            _LOWER,
            size,
            _DOUBLE,
            _pointer(matrices),
            size,
            _DOUBLE,
            _pointer(values),
            _DOUBLE,
        )
        device_bytes, host_bytes = ctypes.c_size_t(), ctypes.c_size_t()
        call(
            "XsyevBatched_bufferSize",
            *problem,
            ctypes.byref(device_bytes),
            ctypes.byref(host_bytes),
            count,
        )
        on_device = cp.empty(max(1, device_bytes.value), np.uint8)
        on_host = _KEPT.workspace = np.empty(max(1, host_bytes.value), np.uint8)
        call(
            "XsyevBatched",
            *problem,
            _pointer(on_device),
            device_bytes,
            ctypes.c_void_p(on_host.ctypes.data),
            host_bytes,
            _pointer(info),
            count,
        )
    finally:
        library.cusolverDnDestroyParams(params)
    return values, matrices


def _pointer(array):
    return ctypes.c_void_p(array.data.ptr)


@functools.cache
def _library(cp):
    """Return the library that CuPy has loaded, if it has the function (CUDA 12.6 and later)."""
    device = getattr(cp.cuda, "device", None)  # the emulated device of the tests has none
    if device is None:
        return None
    device.get_cusolver_handle()  # loads it
    for name in _NAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        return library if hasattr(library, "cusolverDnXsyevBatched") else None
    return None
