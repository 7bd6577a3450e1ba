"""Run associations on a Dask cluster."""

from __future__ import annotations

import asyncio
import logging
import queue
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.backend.logs import Progress, no_progress
from gpucoron.cluster.requests import AssociationOutcome, RunRequest, make_request, precheck
from gpucoron.cluster.tasks import run_request
from gpucoron.errors import ClusterError, GpucoronError, UsageError, one_line, plural
from gpucoron.pipeline.result import Result
from gpucoron.pipeline.run_options import RunOptions

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger("gpucoron")

TIMEOUT = 5.0  # seconds until an address counts as wrong
PATIENCE = 10.0  # seconds until a connection that broke counts as lost
_POLL = 0.5


@contextmanager
def connect(address: str, timeout: float | None = None) -> Iterator[Client]:
    """Connect to a Dask scheduler (``tcp://host:8786``) while a block runs.

    Raises
    ------
    UsageError
        The package distributed is not installed.
    ClusterError
        No scheduler answers there within `timeout` seconds (default `TIMEOUT`).
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
        text = one_line(problem).rstrip(".")
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


def run_on(client: Client, options: RunOptions, progress: Progress = no_progress) -> Result:
    """Run one association; see `gpucoron.run`, which calls this.

    Raises the errors of `gpucoron.run`; ClusterError where the cluster fails.
    """
    (outcome,) = run_many(client, [make_request(options)], progress)
    if outcome.error is not None:
        raise outcome.error
    done: Any = outcome.done
    return replace(done.result, parameters=options.parameters)


def run_many(
    client: Client, requests: Sequence[RunRequest], progress: Progress = no_progress
) -> list[AssociationOutcome]:
    """Run associations, each as one task; one that fails leaves the others alone.

    Raises
    ------
    ClusterError
        The scheduler is lost.
    UsageError
        Two associations would write the same file.
    """
    outcomes = [
        AssociationOutcome(str(request.options.asn), error=error)
        for request, error in zip(requests, precheck(requests), strict=True)
    ]
    ready = [number for number, outcome in enumerate(outcomes) if outcome.error is None]
    workers = len(client.nthreads())
    log.info(
        "%s on %s at %s%s",
        plural(len(ready), "association"),
        plural(workers, "worker"),
        client.scheduler.address,  # type: ignore[union-attr]
        "" if workers else "; waiting for workers",
    )
    futures: dict[Future, AssociationOutcome] = {}
    try:
        for number in ready:
            key = f"{requests[number].options.asn.stem}-{secrets.token_hex(4)}"
            future = client.submit(
                run_request, requests[number], key=key, pure=False, priority=-number
            )
            futures[future] = outcomes[number]
        _collect(client, futures, progress)
    finally:
        with suppress(Exception):  # the scheduler may be gone
            unfinished = [future for future in futures if not future.done()]
            if unfinished:
                client.cancel(unfinished)
    return outcomes


# ---- waiting


def _collect(client: Client, futures: dict[Future, AssociationOutcome], progress) -> None:
    """Wait for all tasks, and note what became of the associations."""
    ended: queue.SimpleQueue = queue.SimpleQueue()
    for future in futures:
        future.add_done_callback(ended.put)
    done, silent = 0, None
    while done < len(futures):
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
        done += 1
        outcome = futures[future]
        _note(client, future, outcome)
        progress("cluster", done, len(futures), Path(outcome.asn).stem)


def _note(client: Client, future: Future, outcome: AssociationOutcome) -> None:
    """Note how a task ended."""
    if future.status == "finished":
        outcome.done = future.result(timeout=60)
        outcome.log()
    elif future.status == "error":
        outcome.error = _as_error(future.exception(timeout=60), outcome)
    else:
        if client.status != "running":
            raise _lost(client)
        outcome.error = ClusterError(
            f"{outcome.asn}: the scheduler has dropped it (was it "
            "restarted, or the work cancelled?)"
        )


def _as_error(problem: BaseException, outcome: AssociationOutcome) -> Exception:
    """Convert an exception of a worker to an error with a text of one line."""
    from distributed.scheduler import KilledWorker

    name = Path(outcome.asn).name
    if isinstance(problem, GpucoronError):
        return problem
    if isinstance(problem, KilledWorker):
        return ClusterError(
            f"{name}: the workers that took it died, one after another (out of "
            "memory? see their logs)"
        )
    kind, text = type(problem).__name__, one_line(problem)
    return ClusterError(f"{name}: internal error on a worker: {kind}: {text}")


def _lost(client: Client) -> ClusterError:
    return ClusterError(
        "the connection to the Dask scheduler is lost; what is complete stays, "
        "the rest has to be run again"
    )
