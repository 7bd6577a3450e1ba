"""One number of threads for numba loops, BLAS and FFT.

numba's own pool is never started: a process forked from one that has loaded numba, and killed
while it starts that pool, leaves a lock that all its relatives then wait for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from gpucoron.backend.device import cpu_threads
from gpucoron.errors import UsageError

_VARIABLES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")
_of_thread = threading.local()


def default_threads() -> int:
    """Return the default number of threads of a run.

    The processors that this process may use, or fewer where NUMBA_NUM_THREADS or OMP_NUM_THREADS
    say so.
    """
    limits = [os.environ.get(name, "") for name in _VARIABLES]
    return min([cpu_threads(), *(int(text) for text in limits if text.isdecimal() and int(text))])


def current_threads() -> int:
    """Return the number of threads that loops use when called from this thread."""
    return getattr(_of_thread, "threads", None) or default_threads()


def set_threads(threads: int | None) -> None:
    """Set the number of threads that loops use when called from this thread.

    None is `default_threads`.
    """
    _of_thread.threads = threads


@contextmanager
def limited_to(threads: int | None = None) -> Iterator[int]:
    """Set the number of threads of loops and FFTs while a block runs; yield it.

    None is `default_threads`. The BLAS has one: its own threads wait by spinning, which took a
    tenth of the processor time of a run with two, and what they compute depends on their number.
    Products of large matrices are split instead, see `gpucoron.backend.parallel`.

    Raises
    ------
    UsageError
        Fewer than one, or more than the processors that this process may use.
    """
    import scipy.fft
    from threadpoolctl import threadpool_limits

    n, most = default_threads() if threads is None else threads, cpu_threads()
    if not 1 <= n <= most:
        raise UsageError(f"threads is {n}, expected 1 to {most}")
    before = getattr(_of_thread, "threads", None)
    try:
        set_threads(n)
        with threadpool_limits(1, user_api="blas"), scipy.fft.set_workers(n):
            yield n
    finally:
        set_threads(before)
