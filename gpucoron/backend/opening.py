"""Start a GPU (CuPy, its context, CUDA libraries) while files are read."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from gpucoron.backend.device import Device, choose_device


class Opening:
    """A thread that chooses a device, then initialises its libraries.

    A context manager. Leaving the block waits for the thread, so that no process ends while CUDA
    starts in it, unless a signal ends the block: then nothing is waited for.
    """

    def __init__(self, spec: str | int | Device):
        self._device: Future[Device] = Future()
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._open, args=(spec,), name="gpucoron-open", daemon=True
        )
        self._thread.start()

    def device(self) -> Device:
        """Wait until the device is chosen, and return it; raises as `choose_device`."""
        return self._device.result()

    def wait(self) -> None:
        """Wait until the libraries are initialised; raise DeviceError if one does not start."""
        self._ready.result()

    def _open(self, spec):
        try:
            self._device.set_result(choose_device(spec))
        except BaseException as problem:
            self._device.set_exception(problem)
            self._ready.set_exception(problem)
            return
        try:
            for index in self._device.result().indices:
                start_libraries(index)
            self._ready.set_result(None)
        except BaseException as problem:
            self._ready.set_exception(problem)

    def __enter__(self) -> Opening:
        return self

    def __exit__(self, kind, *unused) -> None:
        if kind is None or issubclass(kind, Exception):
            self._thread.join()
        if kind is None:
            self.wait()


def start_libraries(index: int) -> None:
    """Initialise cuFFT, cuBLAS and cuSOLVER on a device by a first use."""
    from gpucoron.backend import cuda

    with cuda.errors(f"device {index}, start"):
        cp = cuda.cupy()
        with cp.cuda.Device(index):
            image = cp.ones((16, 16), "f8")
            cuda.cupyx("cupyx.scipy.fft").irfft2(cp.fft.rfft2(image), s=image.shape)
            cp.matmul(image, image)
            cp.linalg.eigh(image)[0].get()
