"""Allocator and GC tuning for processes that gpucoron owns."""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import logging
import os
import sys
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8  # of glibc's mallopt


@functools.cache
def tune_malloc(keep_all: bool = False) -> None:
    """Make malloc reuse freed memory instead of returning it to the system.

    The kernel need not map and clear the same memory again, which took a fifth of the processor
    time of a run with large stacks. All threads share one heap: heaps of their own are given back
    and made again all the time, and the peak is higher with them. With `keep_all` nothing is given
    back before the process ends; without it what is free at the end of the heap is, for processes
    whose memory somebody watches. A Dask nanny sets MALLOC_TRIM_THRESHOLD_ to 64 KiB; under it
    runs took twice the processor time.
    """
    with suppress(OSError, AttributeError):  # another libc
        libc = ctypes.CDLL(None)
        libc.mallopt(_ARENA_MAX, 1)
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_TRIM_THRESHOLD, 64 << 20)
        if keep_all:
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, -1)


def tune_gc() -> None:
    """Run Python's garbage collector less often, for faster imports."""
    gc.set_threshold(1_000_000, 50, 50)


def tune_blas() -> None:
    """Have NumPy and SciPy load their BLAS without threads; see `backend.threads.limited_to`.

    Where the user has chosen a number, that is kept.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


class QuickExit:
    """Ends the process without taking its modules and objects apart, once `code` is set.

    That takes Python 0.15 s with astropy, asdf and numba. Before it threads are joined, as usual,
    and everything is called that was registered to be called at exit after this was made.
    """

    def __init__(self):
        self.code: int | None = None
        atexit.register(self._end)

    def _end(self):
        if self.code is None:  # something else ends the process
            return
        logging.shutdown()  # registered before, so called after
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(self.code)
