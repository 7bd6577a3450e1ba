"""Run an association, or estimate what a run takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from gpucoron.backend.device import Device, choose_device, is_open
from gpucoron.backend.logs import Progress, no_progress
from gpucoron.core.parameters import Parameters
from gpucoron.core.products import PRODUCTS
from gpucoron.errors import UsageError
from gpucoron.pipeline.association import plan_association, run_association
from gpucoron.pipeline.planning import Plan
from gpucoron.pipeline.result import Result
from gpucoron.pipeline.run_options import DEFAULT_SAVE, RunOptions

__all__ = ["PRODUCTS", "plan", "run"]


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
    """Run PSF subtraction and resampling on an association (calwebb_coron3).

    Parameters
    ----------
    asn : path
        A level-3 association (JSON or YAML) of ``_calints`` exposures.
    device : str, int or Device
        "auto", "cpu", or the number of a CUDA device; "0,1" shares the work between two. "auto"
        is decided when the association is known.
    output_dir : path, optional
        Where products are written; nothing is written without it.
    align : {"joint", "each", "first"}, optional
        Short for ``align_refs_align``: one position for every image from fits of some pairs (the
        default), a fit of every pair, or of the first integration of an exposure only.
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
        More step parameters: ``klip_truncate=10``, ``klip={"truncate": 10}``, or with a short name
        ``star=(151, 175)`` (the star's pixel, counted from 1), ``exclude=[(0.5, -1.2, 0.3)]``.

    Returns
    -------
    Result

    Raises
    ------
    GpucoronError
        One of its kinds, with one line that says what was found and what was expected.
    """
    if client is None and not is_open(device):
        device = choose_device(device)
    if client is not None and (output_dir is None or keep):
        raise UsageError("with client= products are files: expected an output_dir, and no keep")
    if client is not None:
        keep = ()
    elif keep is None:
        keep = set(PRODUCTS) - ({"psfalign"} if output_dir else set())
    options = RunOptions(
        Path(asn),
        _parameters(parameters, preset, align, keywords),
        device,
        None if output_dir is None else Path(output_dir),
        save=DEFAULT_SAVE if save is None else frozenset(save),
        keep=frozenset(keep),
        psfmask=psfmask,
        overwrite=overwrite,
        skip_bad=skip_bad,
        checksums=checksums,
        resume=resume,
        threads=threads,
        memory=memory,
    )
    if output_dir is None:
        options = replace(options, save=frozenset())
    progress = progress or no_progress
    if client is None:
        return run_association(options, progress)
    from gpucoron.cluster.client import run_on

    return run_on(client, options, progress)


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
    """Estimate time, memory and disk of a run, for each product, from headers alone.

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
    options = RunOptions(
        Path(asn),
        _parameters(parameters, preset, align, keywords),
        save=DEFAULT_SAVE if save is None else frozenset(save),
        threads=threads,
        memory=memory,
    )
    return plan_association(options)


def _parameters(
    parameters: Parameters | Mapping[str, Any] | None,
    preset: str | None,
    align: str | None,
    keywords: Mapping[str, Any],
) -> Parameters:
    """Return the step parameters that were given in one way or another."""
    if not isinstance(parameters, Parameters):
        return Parameters.from_sources(
            preset=preset, keywords={**(parameters or {}), "align": align, **keywords}
        )
    if keywords or preset not in (None, parameters.preset):
        raise UsageError("give either a Parameters object or single parameters, not both")
    if align is None:
        return parameters
    return replace(parameters, align_refs=replace(parameters.align_refs, align=align))
