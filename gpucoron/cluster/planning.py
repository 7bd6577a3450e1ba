"""Before associations are run together: orders, tasks, and whose names in a folder they are."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gpucoron.backend.device import Device, cpu_device
from gpucoron.backend.logs import no_progress
from gpucoron.cluster.messages import Done, Order, Piece
from gpucoron.core.parameters import Parameters
from gpucoron.errors import GpucoronError, UsageError
from gpucoron.pipeline.job import Job
from gpucoron.pipeline.output_lock import FolderLock

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["Ahead", "Outcome", "cut", "held", "look_ahead", "make_order", "tell"]

log = logging.getLogger("gpucoron")


@dataclass
class Outcome:
    """What became of an association: `done`, or `error`."""

    asn: str
    done: Done | None = None
    error: Exception | None = None


def tell(outcome: Outcome) -> None:
    """Log what was logged where an association was processed."""
    if outcome.done is not None:
        name = Path(outcome.asn).stem
        for level, text in outcome.done.lines:
            log.log(level, "%s: %s", name, text)
        log.info("%s: %d files", name, len(outcome.done.files))


def make_order(
    asn: str | PathLike,
    output_dir: str | PathLike,
    parameters: Parameters,
    *,
    device: str | int | Device = "auto",
    psfmask: str | PathLike | None = None,
    **settings: Any,
) -> Order:
    """Make an order that means the same in any folder of any node.

    Parameters
    ----------
    asn, output_dir, parameters, device, psfmask, **settings
        As `gpucoron.run` and `Order`.

    Returns
    -------
    Order
    """
    resample = parameters.resample
    if resample.output_wcs:
        full = os.path.abspath(resample.output_wcs)
        parameters = replace(parameters, resample=replace(resample, output_wcs=full))
    mask = None if psfmask is None else (str(psfmask), os.path.abspath(psfmask))
    settings["save"] = frozenset(settings.get("save", ()))
    return Order(
        os.path.abspath(asn),
        os.path.abspath(output_dir),
        parameters,
        str(device),
        psfmask=mask,
        **settings,
    )


class Ahead(NamedTuple):
    """What is known of an association before it is run.

    Attributes
    ----------
    integrations : list of list of int
        Of each science exposure of each product.
    names : tuple of str
        The products.
    """

    integrations: list[list[int]]
    names: tuple[str, ...]


def look_ahead(orders: Sequence[Order]) -> list[Ahead | GpucoronError]:
    """Read all associations, and make sure before any work that products can be written.

    Parameters
    ----------
    orders : sequence of Order

    Returns
    -------
    list of Ahead or GpucoronError
        The error that stands against running an association.

    Raises
    ------
    UsageError
        Two associations would write the same file.

    Notes
    -----
    Checksums are compared where the work is done, unless what is bad is to be left out: then all
    must agree on what that is.
    """
    found: list[Ahead | GpucoronError] = []
    owner: dict[str, int] = {}
    for number, order in enumerate(orders):
        try:
            job = Job(
                order.parameters,
                cpu_device(),
                order.save,
                frozenset(),
                order.overwrite,
                None,
                Path(order.output_dir),
                no_progress,
                skip_bad=order.skip_bad,
                checksums=order.checksums and order.skip_bad,
            )
            association, names = job.read(Path(order.asn))
            files = job.planned(association, names)
            job.preflight(association, names)
            found.append(Ahead(_integrations(job, association), names))
        except GpucoronError as problem:
            found.append(problem)
            continue
        for path in (os.path.join(order.output_dir, name) for name in files):
            other = owner.setdefault(path, number)
            if other != number:
                raise UsageError(
                    f"{orders[other].asn} and {order.asn} would both write {path}; "
                    "run them into different folders"
                )
    return found


@contextmanager
def held(
    orders: Sequence[Order], aheads: Sequence[Ahead | GpucoronError], outcomes: Sequence[Outcome]
) -> Iterator[list[int]]:
    """Keep the products' names in their folders to this run; note what stands against it.

    Yields
    ------
    list of int
        The associations that can be run.
    """
    _allow_files(len(orders))
    with ExitStack() as stack:
        ready = []
        for number, (order, ahead) in enumerate(zip(orders, aheads, strict=True)):
            try:
                if isinstance(ahead, GpucoronError):
                    raise ahead
                if order.save:
                    for name in dict.fromkeys(ahead.names):
                        stack.callback(FolderLock(Path(order.output_dir), name).release)
                ready.append(number)
            except GpucoronError as problem:
                outcomes[number].error = problem
        yield ready


def _allow_files(n: int) -> None:
    """Let this process have a file open for each of `n` locks, if it may."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * n + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _integrations(job: Job, association) -> list[list[int]]:
    return [
        [job.exposures[m.path, m.exptype].shape[0] for m in product.science]
        for product in association.products
    ]


def cut(
    integrations: Sequence[Sequence[int]], workers: int, associations: int, may_slice: bool
) -> list[tuple[int, list[Piece]]]:
    """Cut an association into tasks.

    Parameters
    ----------
    integrations : sequence of sequences of int
        Of each science exposure of each product.
    workers : int
        That are there now.
    associations : int
        That are to be done.
    may_slice : bool
        Whether the integrations of one exposure may go to several workers.

    Returns
    -------
    list of (int, list of Piece)
        Product and pieces of each task; empty where one task does it all.

    Notes
    -----
    References are prepared once in each worker that has a task of the association. So an
    association is one task where there are many; a task is one exposure where there are few, and
    some of its integrations where there are fewer exposures than workers.
    """
    exposures = sum(map(len, integrations))
    if workers and associations >= 2 * workers:
        return []
    share = -(-workers // (exposures * associations)) if may_slice else 1
    tasks = []
    for product, counts in enumerate(integrations):
        for exposure, n in enumerate(counts):
            parts = min(share, n)
            if parts < 2:
                tasks.append((product, [Piece(exposure)]))
                continue
            edges = [n * k // parts for k in range(parts + 1)]
            tasks += [
                (product, [Piece(exposure, a, b)])
                for a, b in zip(edges[:-1], edges[1:], strict=True)
            ]
    return tasks if len(tasks) > 1 else []
