"""Progress and warnings of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("gpucoron")

Progress = Callable[..., None]


def no_progress(step: str, done: int, total: int, text: str = "") -> None:
    """Ignore progress events."""


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect the texts of all logged warnings, each once."""
    texts: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record):
            if record.getMessage() not in texts:
                texts.append(record.getMessage())

    handler = Collector(logging.WARNING)
    log.addHandler(handler)
    try:
        yield texts
    finally:
        log.removeHandler(handler)


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Keep a library's log records off stderr if no handler has been set up for them."""
    library, handler = logging.getLogger(name), logging.NullHandler()
    library.addHandler(handler)
    try:
        yield
    finally:
        library.removeHandler(handler)
