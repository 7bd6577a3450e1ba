"""Running compiled loops in several threads.

numba's own way, ``parallel=True``, does the same but takes a second more to compile for each loop.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

__all__ = ["over_rows"]


def over_rows(work, n_rows, *arguments):
    """Run compiled ``work(first, stop, ...)`` over all rows, in the threads that numba may use."""
    import numba

    n_threads = min(numba.get_num_threads(), n_rows)
    if n_threads < 2:
        work(0, n_rows, *arguments)
        return
    pieces = np.linspace(0, n_rows, 4 * n_threads + 1).astype(int)
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(lambda a, b: work(a, b, *arguments), pieces[:-1], pieces[1:]))
