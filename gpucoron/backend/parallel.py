"""Run numba loops and matrix products in several threads.

numba's own way, ``parallel=True``, does the same but takes a second more to compile for each loop,
and has a lock (see `gpucoron.backend.threads`).
A BLAS's own threads wait by spinning: on a machine with anything else to do a product of 36 images
took fifty times longer with two of them than with one. And what they compute depends on their
number.
"""

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gpucoron.backend.threads import current_threads, set_threads

BLOCK = 8192  # pixels of a stack multiplied at a time


def over_blocks(work, n_pixels):
    """Call ``work(slice)`` for all blocks of pixels in parallel; return its results in order.

    The BLAS uses one thread meanwhile, and the blocks have a fixed size: results do not depend on
    the number of threads.
    """
    blocks = [slice(k, min(k + BLOCK, n_pixels)) for k in range(0, n_pixels, BLOCK)]
    return over_products(work, blocks)


def over_products(work, items):
    """Call ``work(item)`` for all items in parallel; return its results in order.

    The BLAS uses one thread meanwhile.
    """
    with _pools().limit(limits=1, user_api="blas"):
        return over_items(work, items)


@functools.lru_cache(2)
def _pool(n_threads, pid):
    """Return a thread pool in which loops use one thread each; a new one after a fork."""
    return ThreadPoolExecutor(n_threads, "gpucoron", set_threads, (1,))


@functools.cache
def _pools():
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def over_items(work, items):
    """Call ``work(item)`` for all items in parallel; return its results in order.

    Loops inside use one thread.
    """
    n_threads = min(current_threads(), len(items))
    if n_threads < 2:
        return [work(item) for item in items]
    return list(_pool(n_threads, os.getpid()).map(work, items))


def map_items(work, items, xp):
    """Return ``work(item)`` of all items: as `over_items` for NumPy, in turn on a GPU."""
    return over_items(work, items) if xp is np else [work(item) for item in items]


def map_parts(work, shape, xp):
    """Return ``work(rows)`` of all parts of images (ny, nx): slices of rows, in order.

    For NumPy they are in parallel, of about `BLOCK` pixels, which stay in the cache. A GPU takes
    all rows at once.
    """
    size = max(1, BLOCK // shape[1]) if xp is np else shape[0]
    return map_items(work, [slice(y, y + size) for y in range(0, shape[0], size)], xp)


def over_rows(work, n_rows, *arguments):
    """Run compiled ``work(first, stop, ...)`` over all rows in parallel."""
    n_threads = min(current_threads(), n_rows)
    if n_threads < 2:
        work(0, n_rows, *arguments)
        return
    pieces = np.linspace(0, n_rows, 4 * n_threads + 1).astype(int)
    pool = _pool(n_threads, os.getpid())
    list(pool.map(lambda a, b: work(a, b, *arguments), pieces[:-1], pieces[1:]))
