"""Requests to workers and their results (no pixels), and the checks before a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpucoron import __version__
from gpucoron.errors import GpucoronError, UsageError
from gpucoron.io.files import SameFiles
from gpucoron.pipeline.association import check_outputs
from gpucoron.pipeline.inputs import read_inputs
from gpucoron.pipeline.run_options import RunOptions

if TYPE_CHECKING:
    from gpucoron.pipeline.result import Result

log = logging.getLogger("gpucoron")


@dataclass(frozen=True)
class RunRequest:
    """A request to run one association on a worker."""

    options: RunOptions  # with full paths, which mean the same in any folder of any node
    star: tuple[float, float] | None = None  # for the report: ra, dec, degrees
    version: str = __version__  # of the gpucoron that asks


@dataclass
class TaskResult:
    """The result of a task."""

    result: Result  # its products have nothing but names, fits, stars, psfmask and left_out
    lines: list[tuple[int, str]]  # level and text of what was logged
    worker: str  # host and process


@dataclass
class AssociationOutcome:
    """How an association ended: `done`, or `error`."""

    asn: str
    done: TaskResult | None = None
    error: Exception | None = None

    def log(self) -> None:
        """Log what was logged where the association was processed."""
        if self.done is not None:
            name = Path(self.asn).stem
            for level, text in self.done.lines:
                log.log(level, "%s: %s", name, text)
            log.info("%s: %d files", name, len(self.done.result.files))


def make_request(options: RunOptions) -> RunRequest:
    """Make a request with full paths, valid in any folder of any node."""
    parameters, resample = options.parameters, options.parameters.resample
    align_refs = parameters.align_refs
    if align_refs.star_model:
        full = os.path.abspath(align_refs.star_model)
        parameters = replace(parameters, align_refs=replace(align_refs, star_model=full))
    for name in ("star_spectrum", "filter_curve", "psf"):
        if file := getattr(parameters.analysis, name):
            analysis = replace(parameters.analysis, **{name: os.path.abspath(file)})
            parameters = replace(parameters, analysis=analysis)
    if parameters.klip.subtract_model:
        full = os.path.abspath(parameters.klip.subtract_model)
        parameters = replace(parameters, klip=replace(parameters.klip, subtract_model=full))
    if resample.output_wcs:
        full = os.path.abspath(resample.output_wcs)
        parameters = replace(parameters, resample=replace(resample, output_wcs=full))
    mask = options.psfmask
    options = replace(
        options,
        asn=options.asn.absolute(),
        output_dir=options.folder.absolute(),
        parameters=parameters,
        psfmask=None if mask is None else os.path.abspath(mask),
        psfmask_name=None if mask is None else str(mask),
        device=str(options.device),
        report=os.path.abspath(options.report) if options.report else None,
        protected=tuple(os.path.abspath(path) for path in options.protected),
    )
    return RunRequest(options)


def precheck(requests: Sequence[RunRequest]) -> list[GpucoronError | None]:
    """Check all associations and output files before any processing.

    Returns for each association why it cannot be run, or None. Raises UsageError if two would write
    the same file, or one would replace an input of another. Checksums of inputs are compared only
    when an association is run.
    """
    errors: list[GpucoronError | None] = []
    owners: dict[Path, Path] = {}
    read: list[Path] = []
    for options in (request.options for request in requests):
        try:
            inputs = read_inputs(replace(options, checksums=False))
            planned = check_outputs(options, inputs)
        except GpucoronError as problem:
            errors.append(problem)
            continue
        errors.append(None)
        read += inputs.files(options)
        for path in planned:
            other = owners.setdefault(path, options.asn)
            if other != options.asn:
                raise UsageError(
                    f"{other} and {options.asn} would both write {path}; "
                    "run them into different folders"
                )
    inputs_of_all = SameFiles(read)
    for path, asn in owners.items():
        if path in inputs_of_all:
            raise UsageError(
                f"{asn} would write {path}, an input of another association; "
                "run it into another folder"
            )
    return errors
