"""Associations on the workers of a Dask distributed cluster."""

from __future__ import annotations

import asyncio
import logging
import queue
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.backend.device import Device
from gpucoron.backend.logs import no_progress
from gpucoron.cluster.messages import Order
from gpucoron.cluster.planning import Outcome, cut, held, look_ahead, make_order, tell
from gpucoron.cluster.tasks import do_end, do_part, do_whole, forget
from gpucoron.core.parameters import Parameters
from gpucoron.errors import ClusterError, GpucoronError, OutputError, UsageError
from gpucoron.pipeline.result import Result

if TYPE_CHECKING:
    from os import PathLike

    from distributed import Client, Future

__all__ = ["connect", "run_many", "run_on"]

log = logging.getLogger("gpucoron")

TIMEOUT = 5.0  # seconds until an address counts as wrong
PATIENCE = 10.0  # seconds until a connection that broke counts as lost
_POLL = 0.5


@dataclass
class _Work:
    """An association on the cluster."""

    number: int
    order: Order
    futures: list[Future] = field(default_factory=list)

    @property
    def end(self) -> Future:
        """Return the task that comes last."""
        return self.futures[-1]


@contextmanager
def connect(address: str, timeout: float | None = None) -> Iterator[Client]:
    """Connect to a scheduler, and leave it as it was.

    Parameters
    ----------
    address : str
        As ``tcp://host:8786``.
    timeout : float, s
        How long to try; `TIMEOUT` by default.

    Yields
    ------
    distributed.Client

    Raises
    ------
    UsageError
        The package distributed is not installed.
    ClusterError
        No scheduler answers there.
    """
    try:
        from distributed import Client
    except ImportError as problem:
        raise UsageError(
            "--scheduler needs the package distributed (pip install 'gpucoron[dask]')"
        ) from problem
    timeout = TIMEOUT if timeout is None else timeout
    for name in ("distributed", "distributed.client"):  # they have long words for one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        asyncio.run(_ask(address, timeout))  # a Client that fails takes long to go
        client = Client(address, timeout=timeout, set_as_default=False)
    except Exception as problem:  # whatever answers there may say anything
        text = (str(problem).splitlines() or [""])[0].rstrip(".") or type(problem).__name__
        raise ClusterError(
            f"no Dask scheduler answers at {address} ({text}); expected the address "
            "that dask scheduler shows, as tcp://host:8786"
        ) from None
    try:
        yield client
    finally:
        with suppress(Exception):  # the scheduler may be gone
            client.close(timeout=2)


async def _ask(address: str, timeout: float) -> None:
    """Raise unless a scheduler answers."""
    from distributed.comm import connect as reach
    from distributed.core import send_recv
    from distributed.security import Security

    async with asyncio.timeout(timeout + 1):
        comm = await reach(address, timeout=timeout, **Security().get_connection_args("client"))
        try:
            answer = await send_recv(comm, op="identity", reply=True)
        finally:
            comm.abort()
    if answer.get("type") != "Scheduler":
        raise ClusterError(f"a {answer.get('type')} is there")


def run_on(
    client: Client,
    asn: str | PathLike,
    output_dir: str | PathLike | None,
    parameters: Parameters,
    *,
    device: str | int | Device = "auto",
    save: Collection[str] = (),
    keep: Collection[str] | None = None,
    overwrite: bool = True,
    progress: Callable[..., None] | None = None,
    **settings: Any,
) -> Result:
    """Run one association; see `gpucoron.run`, which calls this.

    Raises
    ------
    UsageError
        No `output_dir`, or `keep`.
    GpucoronError
        As `gpucoron.run`; ClusterError where the cluster fails.
    """
    if output_dir is None or keep:
        raise UsageError("with client= products are files: expected an output_dir, and no keep")
    order = make_order(
        asn, output_dir, parameters, device=device, save=save, overwrite=overwrite, **settings
    )
    (outcome,) = run_many(client, [order], progress=progress)
    if outcome.error is not None:
        raise outcome.error
    done: Any = outcome.done
    return Result(
        tuple(done.products),
        tuple(map(Path, done.files)),
        done.timings,
        tuple(done.warnings),
        parameters,
        done.device,
        tuple(done.spans),
    )


def run_many(
    client: Client, orders: Sequence[Order], *, progress: Callable[..., None] | None = None
) -> list[Outcome]:
    """Run associations; one that fails leaves the others alone.

    Parameters
    ----------
    client : distributed.Client
    orders : sequence of Order
        From `make_order`.
    progress : callable, optional
        As `gpucoron.run`.

    Returns
    -------
    list of Outcome
        In the order of `orders`.

    Raises
    ------
    ClusterError
        The scheduler is lost.
    UsageError
        Two associations would write the same file.
    """
    outcomes = [Outcome(order.asn) for order in orders]
    aheads: list[Any] = look_ahead(orders)
    with held(orders, aheads, outcomes) as ready:
        works = [_Work(number, orders[number]) for number in ready]
        workers = len(client.nthreads())
        log.info(
            "%d association%s on %d worker%s at %s%s",
            len(works),
            "s"[: len(works) != 1],
            workers,
            "s"[: workers != 1],
            client.scheduler.address,  # type: ignore[union-attr]
            "" if workers else "; waiting for workers",
        )
        try:
            for work in works:
                _submit(client, work, aheads[work.number].integrations, workers, len(works))
            _collect(client, works, outcomes, progress or no_progress)
        finally:
            _clear_up(client, works)
    return outcomes


# ---- what is cut into which tasks


def _submit(client: Client, work: _Work, integrations, workers: int, associations: int) -> None:
    """Give an association to the cluster."""
    parameters, token = work.order.parameters, secrets.token_hex(4)
    stem = Path(work.order.asn).stem
    may_slice = (
        parameters.align_refs.align == "each"
        and not parameters.klip.skip
        and ("psfalign" not in work.order.save or parameters.align_refs.skip)
    )
    tasks = cut(integrations, workers, associations, may_slice)
    common = {"pure": False, "priority": -work.number}
    if not tasks:
        work.futures = [client.submit(do_whole, work.order, key=f"{stem}-{token}", **common)]
        return
    scratch = Path(work.order.output_dir, f".{stem}.{token}.part")
    try:
        scratch.mkdir()
    except OSError as problem:
        raise OutputError(f"cannot make folder {scratch}: {problem.strerror}") from problem
    work.order = replace(work.order, scratch=str(scratch))
    begun: set[int] = set()
    for number, (product, pieces) in enumerate(tasks):
        work.futures.append(
            client.submit(
                do_part,
                work.order,
                product,
                pieces,
                product not in begun,
                key=f"{stem}-{token}-{number}",
                **common,
            )
        )
        begun.add(product)
    work.futures.append(
        client.submit(do_end, work.order, list(work.futures), key=f"{stem}-{token}-end", **common)
    )


# ---- waiting


def _collect(client: Client, works, outcomes, progress) -> None:
    """Wait for all tasks, and note what became of the associations."""
    ended: queue.SimpleQueue = queue.SimpleQueue()
    waiting = {}
    for work in works:
        for future in work.futures:
            waiting[future.key] = work
            future.add_done_callback(ended.put)
    total, silent = len(waiting), None
    while waiting:
        try:
            future = ended.get(timeout=_POLL)
        except queue.Empty:
            if client.status == "running":
                silent = None
                continue
            silent = silent or time.monotonic()
            if time.monotonic() - silent > PATIENCE or client.status == "closed":
                raise _lost(client) from None
            continue
        work = waiting.pop(future.key, None)
        if work is None:
            continue
        _look(client, work, future, outcomes[work.number])
        progress("cluster", total - len(waiting), total, Path(work.order.asn).stem)


def _look(client: Client, work: _Work, future: Future, outcome: Outcome) -> None:
    """Note how a task ended."""
    if future.status == "finished":
        if future is not work.end:
            return
        outcome.done = future.result(timeout=60)
        tell(outcome)
    elif future.status == "error":
        if outcome.error is None:
            outcome.error = _told(future.exception(timeout=60), work)
            client.cancel([f for f in work.futures if not f.done()])
    elif outcome.error is None:
        if client.status != "running":
            raise _lost(client)
        outcome.error = ClusterError(
            f"{work.order.asn}: the scheduler has dropped it (was it "
            "restarted, or the work cancelled?)"
        )


def _told(problem: BaseException, work: _Work) -> Exception:
    """Return an error of one line."""
    from distributed.scheduler import KilledWorker

    name = Path(work.order.asn).name
    if isinstance(problem, GpucoronError):
        return problem
    if isinstance(problem, KilledWorker):
        return ClusterError(
            f"{name}: the workers that took it died, one after another (out of "
            "memory? their logs tell)"
        )
    text = (str(problem).splitlines() or [""])[0]
    return ClusterError(f"{name}: internal error on a worker: {type(problem).__name__}: {text}")


def _lost(client: Client) -> ClusterError:
    return ClusterError(
        "the connection to the Dask scheduler is lost; what is complete stays, "
        "the rest has to be run again"
    )


def _clear_up(client: Client, works) -> None:
    """Stop what still waits, and free what workers keep."""
    with suppress(Exception):  # the scheduler may be gone
        unfinished = [f for work in works for f in work.futures if not f.done()]
        if unfinished:
            client.cancel(unfinished)
        if client.status == "running":
            client.run(forget, on_error="ignore")
    for work in works:
        if work.order.scratch:
            shutil.rmtree(work.order.scratch, ignore_errors=True)
