"""Run an association, or estimate what a run takes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from gpucoron.backend.device import Device, choose_device, is_open
from gpucoron.backend.logs import Progress, collected_warnings, no_progress
from gpucoron.backend.prefetch import Background
from gpucoron.backend.threads import default_threads, limited_to
from gpucoron.core.parameters import Parameters
from gpucoron.core.products import PRODUCTS
from gpucoron.errors import ParameterError, UsageError
from gpucoron.pipeline.association import open_device, plan_association, run_association
from gpucoron.pipeline.job import Job
from gpucoron.pipeline.planning import Plan
from gpucoron.pipeline.result import Result
from gpucoron.pipeline.run_record import RunRecord

__all__ = ["PRODUCTS", "plan", "run"]

log = logging.getLogger("gpucoron")


def run(
    asn: str | PathLike,
    device: str | int | Device = "auto",
    output_dir: str | PathLike | None = None,
    align: str | None = None,
    *,
    psfmask: str | PathLike | None = None,
    preset: str | None = None,
    parameters: Parameters | Mapping[str, Any] | None = None,
    save: Collection[str] | None = None,
    keep: Collection[str] | None = None,
    overwrite: bool = True,
    skip_bad: bool = False,
    checksums: bool = True,
    progress: Progress | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    client: Any = None,
    resume: bool = False,
    **keywords: Any,
) -> Result:
    """Run the whole pipeline on an association.

    Parameters
    ----------
    asn : path
        A level-3 association (JSON) of ``_calints`` exposures.
    device : str, int or Device
        "auto", "cpu", or the number of a CUDA device; "0,1" shares the work between two. "auto"
        is decided when the association is known.
    output_dir : path, optional
        Where products are written; nothing is written without it.
    align : {"each", "first"}, optional
        Short for ``align_refs_align``: align the references to every science integration (the
        default), or to the first of an exposure only.
    psfmask : path, optional
        The psfmask. Default: CRDS where it is set up, else ones everywhere.
    preset : {"jwst"}, optional
        Reproduce the jwst package, oddities included.
    parameters : Parameters or mapping, optional
        Step parameters; ``{"klip.truncate": 10}`` or a `gpucoron.core.parameters.Parameters`.
    save : collection of str, optional
        What to write (`PRODUCTS`); default all but "median".
    keep : collection of str, optional
        What the result holds in memory. Default: everything; with an `output_dir`, all but
        "psfalign", which can be larger than memory.
    overwrite : bool
        Replace files that exist.
    skip_bad : bool
        Leave out members that cannot be used or do not go with the others, each with a warning
        and in `ProductResult.left_out`, instead of stopping.
    checksums : bool
        Compare inputs with the checksums in their headers, where there are any.
    progress : callable, optional
        Called as ``progress(step, done, total, text)``.
    threads : int, optional
        Of every thread pool. Default: the processors that this process may use.
    memory : int or str, optional
        What the run may use, bytes or ``"4GiB"``. Default: half of what is free.
    client : distributed.Client, optional
        Run on the workers of this Dask cluster; needs an `output_dir` that all of them see, and
        keeps only fits in memory. `device`, `threads` and `memory` are then those of a worker.
    resume : bool
        Go on from what an earlier run with the same inputs and parameters has completed in
        `output_dir`, by its ``*_run.json``; from the beginning where there is none.
    **keywords
        More step parameters: ``klip_truncate=10``, ``klip={"truncate": 10}``.

    Returns
    -------
    Result

    Raises
    ------
    GpucoronError
        One of its kinds, with one line that says what was found and what was expected.
    """
    chosen = None if client is not None or is_open(device) else choose_device(device)
    if not isinstance(parameters, Parameters):
        parameters = Parameters.from_sources(
            preset=preset, keywords={**(parameters or {}), "align": align, **keywords}
        )
    elif keywords or preset not in (None, parameters.preset):
        raise UsageError("give either a Parameters object or single parameters, not both")
    elif align is not None:
        parameters = replace(parameters, align_refs=replace(parameters.align_refs, align=align))
    if parameters.stack_refs.skip:
        raise ParameterError("stack_refs.skip is true, but klip needs the stacked references")
    save = _selection("save", save, set(PRODUCTS) - {"median"})
    if resume and (output_dir is None or not overwrite or client is not None):
        what = (
            "an output folder"
            if output_dir is None
            else "overwriting"
            if not overwrite
            else "a run without a cluster"
        )
        raise UsageError(f"resume needs {what}")
    if client is not None:
        from gpucoron.cluster.client import run_on

        return run_on(
            client,
            asn,
            output_dir,
            parameters,
            device=device,
            save=save,
            keep=keep,
            psfmask=psfmask,
            overwrite=overwrite,
            progress=progress,
            threads=threads,
            memory=memory,
            skip_bad=skip_bad,
            checksums=checksums,
        )
    if output_dir is None:
        save = frozenset()
    keep = _selection("keep", keep, set(PRODUCTS) - ({"psfalign"} if output_dir else set()))
    with collected_warnings() as warnings, limited_to(threads) as n, ExitStack() as stack:
        job = Job(
            parameters,
            chosen,
            save,
            keep,
            overwrite,
            psfmask,
            None if output_dir is None else Path(output_dir),
            progress or no_progress,
            n,
            memory,
            skip_bad,
            checksums,
            stack=stack,
        )
        open_device(job, device)
        job.record = RunRecord(parameters, chosen, resume, job.timings, warnings, n)
        with job.record, Background(n > 1) as job.background:
            products = run_association(job, Path(asn))
    return Result(
        products,
        tuple(job.files),
        job.timings,
        tuple(warnings),
        parameters,
        job.device,
        tuple(job.spans),
    )


def plan(
    asn: str | PathLike,
    align: str | None = None,
    *,
    preset: str | None = None,
    parameters: Parameters | Mapping[str, Any] | None = None,
    save: Collection[str] | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    **keywords: Any,
) -> tuple[Plan, ...]:
    """Predict what `run` would take, product by product, from the headers alone.

    Parameters
    ----------
    asn, align, preset, parameters, save, threads, memory, **keywords
        As for `run`.

    Returns
    -------
    tuple of Plan

    Raises
    ------
    GpucoronError
        As `run`, as far as headers tell.
    """
    if not isinstance(parameters, Parameters):
        parameters = Parameters.from_sources(
            preset=preset, keywords={**(parameters or {}), "align": align, **keywords}
        )
    save = _selection("save", save, set(PRODUCTS) - {"median"})
    job = Job(
        parameters,
        choose_device("cpu"),
        save,
        frozenset(),
        True,
        None,
        None,
        no_progress,
        threads or default_threads(),
        memory,
    )
    return plan_association(job, Path(asn))


def _selection(
    name: str, given: Collection[str] | None, default: Collection[str]
) -> frozenset[str]:
    if given is None:
        return frozenset(default)
    unknown = sorted(set(given) - set(PRODUCTS))
    if unknown:
        raise UsageError(f"{name} holds {unknown[0]!r}; expected some of {', '.join(PRODUCTS)}")
    return frozenset(given)
