"""One number for all thread pools: numba's, the BLAS's and the FFT's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from gpucoron.device import cpu_threads
from gpucoron.errors import UsageError

__all__ = ["default_threads", "limited_to"]

_VARIABLES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")


def default_threads() -> int:
    """Return how many threads a run uses unless told.

    Returns
    -------
    int
        The processors that this process may use, or fewer where NUMBA_NUM_THREADS or
        OMP_NUM_THREADS say so.
    """
    limits = [os.environ.get(name, "") for name in _VARIABLES]
    return min([cpu_threads(), *(int(text) for text in limits if text.isdecimal() and int(text))])


@contextmanager
def limited_to(threads: int | None = None) -> Iterator[int]:
    """Give all thread pools the same size while a block runs, and their old sizes back after it.

    Parameters
    ----------
    threads : int, optional
        Default: `default_threads`.

    Yields
    ------
    int
        The number of threads.

    Raises
    ------
    UsageError
        Fewer than one, or more than numba was started with.

    Notes
    -----
    The pools never run at the same time, so each may have all the threads.
    """
    import numba
    import scipy.fft
    from threadpoolctl import threadpool_limits

    n = default_threads() if threads is None else threads
    if not 1 <= n <= numba.config.NUMBA_NUM_THREADS:
        raise UsageError(f"threads is {n}, expected 1 to {numba.config.NUMBA_NUM_THREADS}")
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(n)
        with threadpool_limits(n), scipy.fft.set_workers(n):
            yield n
    finally:
        numba.set_num_threads(before)
