"""The task of a Dask worker: run one association.

A worker is given paths and parameters, reads and writes the files itself, and gives back names,
numbers and small tables.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from gpucoron import __version__
from gpucoron.backend.process import tune_malloc
from gpucoron.cluster.requests import RunRequest, TaskResult
from gpucoron.errors import InputError, UsageError
from gpucoron.pipeline.association import run_association
from gpucoron.pipeline.result import ProductResult, Result

log = logging.getLogger("gpucoron")

MOST_LINES = 200  # of a task's log that travel
_ONE_AT_A_TIME = threading.Lock()  # the sizes of thread pools are the process's


def run_request(request: RunRequest) -> TaskResult:
    """Run an association from beginning to end; raises as `gpucoron.run`."""
    worker = f"{socket.gethostname()}, process {os.getpid()}"
    _check(request, worker)
    tune_malloc()
    options = replace(request.options, keep=frozenset(), memory_limit=_worker_limit())
    with _ONE_AT_A_TIME, _collected_lines() as lines:
        result = run_association(options)
    if options.report:
        result = result.with_report(options.report, request.star, options.overwrite)
    return TaskResult(_without_images(result), lines, worker)


def _check(request: RunRequest, worker: str) -> None:
    """Check version and file system of this worker."""
    if request.version != __version__:
        raise UsageError(
            f"the worker on {worker} has gpucoron {__version__}, expected "
            f"{request.version} as where the run was started"
        )
    for path in (request.options.asn, request.options.folder):
        if not os.path.exists(path):
            raise InputError(
                f"{path}: the worker on {worker} does not see it; expected a file "
                "system that all workers share"
            )


def _worker_limit() -> int | None:
    """Return the bytes beyond which a Dask nanny ends this worker, if there is one."""
    try:
        from distributed import get_worker

        return get_worker().memory_manager.memory_limit or None
    except (ImportError, ValueError, AttributeError):
        return None


def _without_images(result: Result) -> Result:
    """Return a result without images."""
    products = (
        ProductResult(
            p.name,
            fits=p.fits,
            stars=p.stars,
            star=p.star,
            psfmask=p.psfmask,
            left_out=p.left_out,
        )
        for p in result.products
    )
    return replace(result, products=tuple(products))


@contextmanager
def _collected_lines() -> Iterator[list[tuple[int, str]]]:
    """Collect log messages of level INFO and above."""
    lines: list[tuple[int, str]] = []

    class Collector(logging.Handler):
        def emit(self, record):
            if len(lines) < MOST_LINES:
                lines.append((record.levelno, record.getMessage()))

    handler, before = Collector(logging.INFO), log.level
    log.addHandler(handler)
    if not log.isEnabledFor(logging.INFO):
        log.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
