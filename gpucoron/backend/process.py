"""Allocator and GC tuning for processes that gpucoron owns."""

from __future__ import annotations

import ctypes
import functools
import gc
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


@functools.cache
def tune_malloc() -> None:
    """Make malloc reuse freed memory instead of returning it to the system.

    The kernel need not map and clear the same memory again: a tenth of a second of a short run. A
    Dask nanny sets MALLOC_TRIM_THRESHOLD_ to 64 KiB; under it runs took twice the processor time.
    """
    with suppress(OSError, AttributeError):  # another libc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def tune_gc() -> None:
    """Run Python's garbage collector less often, for faster imports."""
    gc.set_threshold(200_000, 50, 50)


def spare_gc() -> None:
    """Keep the garbage collector from the objects of a process that is about to end.

    Python collects several times while it ends, half a second for those of astropy, asdf and numba.
    """
    gc.freeze()
