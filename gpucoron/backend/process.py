"""The process of a run: its peak memory, and how it allocates and collects."""

from __future__ import annotations

import ctypes
import functools
import gc
import re
import sys
from contextlib import suppress
from pathlib import Path

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


def peak_memory() -> int:
    """Return the most memory that this process has used so far, in bytes.

    On Linux from /proc: what `resource` says there begins with the memory of the parent process.
    """
    with suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        if found := re.search(r"VmHWM:\s*(\d+) kB", status):
            return 1024 * int(found[1])
    if sys.platform != "win32":
        with suppress(ImportError):
            import resource

            unit = 1 if sys.platform == "darwin" else 1024
            return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    import psutil

    used = psutil.Process().memory_info()
    return getattr(used, "peak_wset", used.rss)


def tune_gc() -> None:
    """Run Python's garbage collector less often, for faster imports."""
    gc.set_threshold(200_000, 50, 50)


def spare_gc() -> None:
    """Keep the garbage collector from the objects of a process that is about to end.

    Python collects several times while it ends, half a second for those of astropy, asdf and numba.
    """
    gc.freeze()
