"""Read the next file and write the last one while computing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """A background thread that runs one task at a time, or none (`threaded=False`).

    What fails there is raised by the next `submit` or `wait`. Leaving the block as a context
    manager waits for what is under way; its failure is raised unless something failed before.
    """

    def __init__(self, threaded: bool = True):
        self._pool = ThreadPoolExecutor(1, "gpucoron-write") if threaded else None
        if self._pool is not None:
            # start the thread now: if a signal came while it starts, the pool would not know it,
            # and nobody would wait for what it writes
            self._pool.submit(int).result()
        self._pending: Future | None = None
        self._lock = threading.Lock()

    def submit(self, work: Callable[..., Any], *arguments) -> None:
        """Wait for the previous task, then start this one; may be called from any thread."""
        with self._lock:
            self._wait()
            if self._pool is None:
                work(*arguments)
            else:
                self._pending = self._pool.submit(work, *arguments)

    def wait(self) -> None:
        """Wait for the submitted task, and raise its exception."""
        with self._lock:
            self._wait()

    def _wait(self):
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind, *exception) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()


def read_ahead(read: Callable[[Any], T], items: Iterable, threaded: bool = True) -> Iterator[T]:
    """Read items in order, each in the background while the caller uses the previous one.

    Yields what `read` returns, in order; what it raises is raised where its turn comes. With
    `threaded=False` each is read when it is asked for.
    """
    if not threaded:
        yield from map(read, items)
        return
    pending: list[Future] = []
    with ThreadPoolExecutor(1, "gpucoron-read") as pool:
        for item in items:
            pending.append(pool.submit(read, item))
            if len(pending) == 2:
                yield pending.pop(0).result()
        for last in pending:
            yield last.result()
