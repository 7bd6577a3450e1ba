"""The wall time of each step."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class StepClock:
    """Adds up the wall time of each step, from any thread."""

    def __init__(self):
        self.timings: dict[str, float] = {}  # seconds by step
        self.spans: list[tuple[str, float, float]] = []  # step, start, end; as perf_counter counts
        self._lock = threading.Lock()

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the wall time of a block to a step's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            with self._lock:
                self.timings[step] = self.timings.get(step, 0.0) + end - start
                self.spans.append((step, start, end))
