"""What a worker of a cluster does: an association, or some of its science exposures and the end.

A worker is told paths and parameters, reads and writes the files itself, and gives back names,
numbers and small tables.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpucoron import __version__
from gpucoron.backend.device import choose_device
from gpucoron.backend.logs import collected_warnings, no_progress
from gpucoron.backend.prefetch import Background
from gpucoron.backend.process import keep_memory
from gpucoron.backend.threads import limited_to
from gpucoron.cluster.messages import Done, Order, Piece
from gpucoron.errors import GpucoronError, InputError, UsageError
from gpucoron.pipeline.job import Job
from gpucoron.pipeline.planning import SHARE
from gpucoron.pipeline.result import ProductResult, Result
from gpucoron.pipeline.run_record import RunRecord

__all__ = ["do_end", "do_part", "do_whole", "forget"]

log = logging.getLogger("gpucoron")

MOST_LINES = 200  # of a task's log that travel
_ONE_AT_A_TIME = threading.Lock()  # the sizes of thread pools are the process's
_kept: dict[tuple, Any] = {}  # the references that were prepared last


# ---- tasks


def do_whole(order: Order) -> Done:
    """Process an association from beginning to end.

    Parameters
    ----------
    order : Order

    Returns
    -------
    Done

    Raises
    ------
    GpucoronError
        As `gpucoron.run`.
    """
    from gpucoron.cluster.parts import WholeRun

    with _working(order) as work, work.recorded() as record:
        products = [WholeRun(work.job, *which, order).run() for which in work.products()]  # type: ignore[call-arg]
        done = work.done()
        record.timings, record.warnings = done.timings, done.warnings
        _close(order, done, products)
    return done


def do_part(order: Order, product: int, pieces: Sequence[Piece], first: bool) -> Done:
    """Subtract the PSF from some science exposures of a product.

    Parameters
    ----------
    order : Order
    product : int
        Its number in the association, from 0.
    pieces : sequence of Piece
    first : bool
        Whether this task writes the products of the references.

    Returns
    -------
    Done

    Raises
    ------
    GpucoronError
        As `gpucoron.run`.

    Notes
    -----
    References stay prepared in the worker until it is given others, or `forget` is called.
    """
    with _working(order) as work:
        run = _prepared(work, order, product, first)
        run.subtract(pieces)
        done = work.done()
        done.notes = {"product": product, **run.notes(first)}
    return done


def do_end(order: Order, parts: Sequence[Done]) -> Done:
    """Combine what the other tasks of an association have subtracted.

    Parameters
    ----------
    order : Order
    parts : sequence of Done
        What those tasks gave back.

    Returns
    -------
    Done
        With what they did before it.

    Raises
    ------
    GpucoronError
        As `gpucoron.run`.
    """
    from gpucoron.cluster.parts import EndRun

    with _working(order) as work, work.recorded() as record:
        products = [
            EndRun(work.job, *which, order).end(  # type: ignore[call-arg]
                [part.notes for part in parts if part.notes["product"] == number]
            )
            for number, which in enumerate(work.products())
        ]
        done = work.done()
        for part in reversed(parts):
            done.follow(part)
        for file in done.files:
            if not record.has(Path(file)):
                record.wrote(Path(file))
        record.timings, record.warnings = done.timings, done.warnings
        _close(order, done, products)
    return done


def forget() -> None:
    """Drop the prepared references that this worker keeps."""
    _kept.clear()


def _prepared(work: _Work, order: Order, product: int, first: bool):
    """Return a run whose references are prepared: the one that is kept, or a new one."""
    from gpucoron.cluster.parts import PartRun

    which = work.products()[product]
    key = _key(order, which[1], product)
    if key in _kept and not first:  # the first task has the references' products to write
        run = _kept[key]
        run.take(work.job, order)
        log.info("%s: references are still prepared", run.result.name)
        return run
    _kept.clear()  # before others are made: they may be large
    run = PartRun(work.job, *which, order)  # type: ignore[call-arg]
    run.prepare(first)
    _kept[key] = run
    return run


def _key(order: Order, product, number: int) -> tuple:
    """Return what prepared references depend on."""
    files = [member.path for member in (*product.science, *product.psf)]
    if order.psfmask:
        files.append(Path(order.psfmask[1]))
    stats = [(str(path), os.stat(path)) for path in files]
    return (
        order.asn,
        number,
        repr(order.parameters),
        order.device,
        order.psfmask,
        "psfalign" in order.save,
        tuple((p, s.st_mtime_ns, s.st_size) for p, s in stats),
    )


def _close(order: Order, done: Done, products: list[ProductResult]) -> None:
    """Write the report if one is wanted, and leave out what shall not travel."""
    if order.report:
        result = Result(
            tuple(products),
            tuple(map(Path, done.files)),
            done.timings,
            tuple(done.warnings),
            order.parameters,
            done.device,
            tuple(done.spans),
        )
        try:
            done.files.append(str(result.report(order.report, order.star, order.overwrite)))
        except GpucoronError:
            raise
        except Exception as problem:  # the products are whole all the same
            done.warnings.append(f"no report: {type(problem).__name__}: {problem}")
    done.products = [
        ProductResult(p.name, fits=p.fits, psfmask=p.psfmask, left_out=p.left_out) for p in products
    ]


# ---- what all tasks share


class _WorkerJob(Job):
    """A job that minds the memory limit of its worker, too."""

    def budget(self) -> int:
        limit = _worker_limit()
        if self.memory is not None or limit is None:
            return super().budget()
        return min(super().budget(), int(SHARE * limit))


class _LateRecord(RunRecord):
    """A record begun in a task; whoever gave the order holds the lock, and cleans up."""

    def begin(self, names, planned, inputs) -> None:
        folder = planned[0].parent
        self.path = folder / f"{names[0]}_run.json"
        self._files = {path.name: {"name": path.name, "state": "pending"} for path in planned}
        self._content = self._facts(inputs)
        self._summing = threading.Thread(target=self._sum_inputs, name="gpucoron-sums")
        self._summing.start()


def _worker_limit() -> int | None:
    """Return the bytes beyond which a Dask nanny ends this worker, if there is one."""
    try:
        from distributed import get_worker

        return get_worker().memory_manager.memory_limit or None
    except (ImportError, ValueError, AttributeError):
        return None


@dataclass
class _Work:
    """One task under way."""

    job: Job
    warnings: list[str]
    lines: list[tuple[int, str]]
    path: Path
    host: str

    @functools.cached_property
    def association(self) -> tuple:
        """The association and the names of its products, its members looked at."""
        return self.job.read(self.path)

    def products(self) -> list[tuple]:
        """Return (association, product, name) of each product."""
        association, names = self.association
        return [
            (association, product, name)
            for product, name in zip(association.products, names, strict=True)
        ]

    def recorded(self) -> RunRecord:
        """Begin the record of the run, in a task that sees its end."""
        job = self.job
        record = job.record = _LateRecord(
            job.parameters,
            job.device,
            timings=job.timings,
            warnings=self.warnings,
            threads=job.threads,
        )
        association, names = self.association
        files = [job.output_dir / name for name in job.planned(association, names)]
        if files:
            record.begin(names, files, job.inputs(association))
        return record

    def done(self) -> Done:
        """Wait until everything is written, and tell what was done."""
        self.job.background.wait()
        epoch = time.time() - time.perf_counter()
        spans = [(step, epoch + begin, epoch + end) for step, begin, end in self.job.spans]
        return Done(
            [str(p) for p in self.job.files],
            dict(self.job.timings),
            spans,
            list(self.warnings),
            list(self.lines),
            self.job.device,
            [self.host],
        )


@contextmanager
def _working(order: Order) -> Iterator[_Work]:
    """Set up a job, one at a time in a process."""
    host = f"{socket.gethostname()}, process {os.getpid()}"
    if order.version != __version__:
        raise UsageError(
            f"the worker on {host} has gpucoron {__version__}, expected "
            f"{order.version} as where the run was started"
        )
    for path in (order.asn, order.output_dir):
        if not os.path.exists(path):
            raise InputError(
                f"{path}: the worker on {host} does not see it; expected a file "
                "system that all workers share"
            )
    keep_memory()
    with (
        _ONE_AT_A_TIME,
        collected_warnings() as warnings,
        _collected_lines() as lines,
        limited_to(order.threads) as n,
    ):
        job = _WorkerJob(
            order.parameters,
            choose_device(order.device),
            order.save,
            frozenset(),
            True,
            order.psfmask and order.psfmask[1],
            Path(order.output_dir),
            no_progress,
            n,
            order.memory,
            order.skip_bad,
            order.checksums,
        )
        with Background(n > 1) as job.background:
            yield _Work(job, warnings, lines, Path(order.asn), host)


@contextmanager
def _collected_lines() -> Iterator[list[tuple[int, str]]]:
    """Collect what is logged for people to read."""
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
