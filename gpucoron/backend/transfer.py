"""Host/device transfers, asynchronous where possible."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from gpucoron.backend import cuda
from gpucoron.backend.device import Device, lives_on_gpu
from gpucoron.errors import DeviceMemoryError


def backends(device: Device) -> list[CpuBackend | CudaBackend]:
    """Return the backends that share the work of a run: the CPU, or one for each GPU."""
    return [CudaBackend(index) for index in device.indices] or [CpuBackend()]


class PendingArray:
    """An array on its way to the host; the first call waits for it."""

    def __init__(self, fetch: Callable[[], Any]):
        self._fetch: Callable[[], Any] | None = fetch
        self._value: Any = None
        self._lock = threading.Lock()

    def __call__(self) -> Any:
        """Return the value."""
        with self._lock:
            if self._fetch is not None:
                self._value, self._fetch = self._fetch(), None
            return self._value


class CpuBackend:
    """The CPU; transfers do nothing."""

    is_gpu = False

    def activate(self) -> AbstractContextManager:
        """Make this device current."""
        return nullcontext()

    def upload(self, value: Any) -> Any:
        """Copy arrays, or a dataclass of arrays, to the device."""
        return value

    def download_later(self, value: Any, pinned: bool = False) -> PendingArray:
        """Start to copy arrays to the host; return a callable that waits for it, in any thread.

        Pinned memory is faster but scarce: for results that are not kept.
        """
        return PendingArray(lambda: value)

    def finish(self) -> None:
        """Wait until everything is computed."""

    def free_memory(self) -> int | None:
        """Return free device memory, bytes; None on the CPU."""
        return None

    @contextmanager
    def errors(self, where: str):
        """Convert errors of this device to gpucoron's."""
        yield


class CudaBackend(CpuBackend):
    """A CUDA device, by its number.

    The stream that is current when the backend is made computes; where each thread has a default
    stream of its own, one that all of them share does. Files are uploaded by the thread that reads
    them, on a second stream, and results come down on a third one; both through pinned memory,
    which CuPy's pool keeps for the next, unless a result is to stay.
    """

    is_gpu = True

    def __init__(self, index: int):
        self.index, self._cp, self._pinned = index, cuda.cupy(), cuda.cupyx().empty_pinned
        with self._cp.cuda.Device(index):
            self._computing = self._cp.cuda.get_current_stream()
            if self._computing == self._cp.cuda.Stream.ptds:  # another one in every thread
                self._computing = _shared_stream(self._cp, index)
            self._uploading, self._downloading = (
                self._cp.cuda.Stream(non_blocking=True) for _ in range(2)
            )

    @contextmanager
    def activate(self):
        """Make this the current device, and its computing stream the current one."""
        with self._cp.cuda.Device(self.index), self._computing:
            yield

    def upload(self, value: Any) -> Any:
        """Copy to the device; complete on return.

        The memory is taken from, and goes back to, what the computing stream has used before.
        """

        def copy(array):
            if lives_on_gpu(array):
                return array
            out = self._cp.empty(array.shape, array.dtype)
            self._uploading.wait_event(self._computing.record())  # it may still be read there
            staged.append(self._pinned(array.shape, array.dtype))
            staged[-1][...] = array
            out.set(staged[-1], stream=self._uploading)
            return out

        staged: list = []  # until the copies are done
        with self.errors("upload"), self.activate():
            try:
                return _map_arrays(value, copy)
            finally:  # where memory ran out, too, the copies before go on
                self._uploading.synchronize()

    def download_later(self, value: Any, pinned: bool = False) -> PendingArray:
        """Start to copy `value` to the host, in the order of the computing stream."""

        def copy(array):
            if not lives_on_gpu(array):
                return array
            out = self._pinned(array.shape, array.dtype) if pinned else None
            return array.get(stream=self._downloading, out=out)

        with self.activate():
            computed = self._computing.record()

        def download():
            with self.errors("download"), self.activate():
                self._downloading.wait_event(computed)
                return _map_arrays(value, copy)

        return PendingArray(download)

    def finish(self) -> None:
        """Wait until everything is computed."""
        with self.activate():  # the null stream is that of the current device
            self._computing.synchronize()

    def free_memory(self) -> int:
        """Return free device memory, with what CuPy's pool holds, in bytes."""
        cp = self._cp
        with self.activate():
            pool = cp.get_default_memory_pool()
            free = cp.cuda.runtime.memGetInfo()[0] + pool.free_bytes()
            limit = pool.get_limit()
            return min(free, limit - pool.used_bytes()) if limit else free

    @contextmanager
    def errors(self, where: str):
        """Convert CUDA errors to DeviceError, with the number of the device."""
        try:
            with cuda.errors(f"device {self.index}, {where}"):
                yield
        except DeviceMemoryError:
            with self.activate():  # CuPy frees what it keeps on the current device
                self._cp.get_default_memory_pool().free_all_blocks()
            raise


@functools.cache
def _shared_stream(cp, index):
    """Return one stream of a device for the whole process, as CuPy pools memory by stream."""
    return cp.cuda.Stream()


def _map_arrays(value: Any, function: Callable) -> Any:
    """Apply `function` to an array, to those of a tuple, or to those of a dataclass."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(  # type: ignore[type-var]  # it is no class
            value,
            **{name: function(array) for name, array in fields.items() if hasattr(array, "dtype")},
        )
    if isinstance(value, tuple):
        return tuple(_map_arrays(item, function) for item in value)
    return function(value) if hasattr(value, "dtype") else value
