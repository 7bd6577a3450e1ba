"""Run one association with the options of the command line."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpucoron.cli.streams import TolerantStream, write_lines
from gpucoron.core.products import PRODUCTS
from gpucoron.errors import InputError, OutputError, printable

if TYPE_CHECKING:
    from gpucoron.pipeline.result import Result
    from gpucoron.pipeline.run_options import RunOptions


def run_console(options: argparse.Namespace):
    """Make the Console that the options of `add_logging_options` ask for."""
    from gpucoron.cli.console import Console

    return Console(
        -1 if options.quiet else options.verbose,
        options.log_file,
        log_json=getattr(options, "log_json", None),
    )


def run_options(
    options: argparse.Namespace, parameters=None, report: str | None = None
) -> RunOptions:
    """Return the settings of a run that the options of `add_run_options` ask for."""
    from gpucoron.pipeline.run_options import RunOptions

    parameters = read_parameters(options) if parameters is None else parameters
    return RunOptions(
        Path(options.asn),
        parameters,
        options.device,
        Path(options.output_dir),
        save=chosen_products(options, parameters),
        psfmask=options.psfmask,
        overwrite=options.overwrite,
        skip_bad=options.skip_bad,
        checksums=options.checksums,
        resume=options.resume,
        threads=options.threads,
        memory=options.memory,
        contrast=getattr(options, "contrast", False),
        report=report,
        # by which the report measures candidates; it is not in the products of an earlier run
        forward_model=report is not None and not options.resume,
        protected=tuple(filter(None, (*options.params, options.log_file, options.log_json))),
    )


def run_one(options: argparse.Namespace, console) -> Result:
    """Run an association as the options of `add_run_options` say; return its result."""
    from gpucoron.backend.threads import default_threads
    from gpucoron.io.second_process import second_process

    start = time.perf_counter()
    folder = report_folder(options, console)
    with second_process((options.threads or default_threads()) > 1):
        from gpucoron.pipeline.association import run_association

        result = run_association(run_options(options, report=folder), console.progress)
        if folder:
            radec = getattr(options, "star_radec", None)
            result = result.with_report(folder, radec, options.overwrite)
    console.summary(result, time.perf_counter() - start)
    write_lines(map(str, result.files), needed=False)
    return result


def report_folder(options: argparse.Namespace, console) -> str | None:
    """Return where the report goes; from a terminal, the output folder by default."""
    if options.report is None and console.terminal:
        return options.output_dir
    return options.report or None


def read_parameters(options: argparse.Namespace):
    """Return the parameters of a run, written down where that is asked for."""
    from gpucoron.core.parameters import SHORT, Parameters

    parameters = Parameters.from_sources(
        options.params,
        options.set,
        options.preset,
        {name: getattr(options, name) for name in SHORT},
    )
    if options.save_params:
        _save_parameters(Path(options.save_params), parameters.to_toml(), options.params)
    return parameters


def _save_parameters(path: Path, text: str, read: Sequence[str]) -> None:
    """Write a parameter file, in place of nothing but one that was written here before."""
    from gpucoron.io.files import SameFiles, check_replaceable, open_input, output_file

    check_replaceable(path)
    if path in SameFiles(read):
        raise OutputError(f"cannot write {path}: would replace a parameter file that is read")
    if path.exists():
        with open_input(path, InputError, "a file to replace") as file:
            start = file.readline(200).strip()
        if start and start != text.partition("\n")[0].encode():
            raise OutputError(
                f"cannot write {path}: the file holds something else, expected a new file or "
                "parameters that --save-params has written"
            )
    with output_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def chosen_products(options: argparse.Namespace, parameters) -> frozenset[str]:
    """Return the products to write."""
    chosen = options.save
    if chosen is None:
        median = parameters.outlier_detection.save_intermediate_results
        chosen = frozenset(PRODUCTS) - (frozenset() if median else {"median"})
    return chosen - options.no_save


def fail(message: str, code: int) -> int:
    """Print an error in one line; return the exit code."""
    stream = TolerantStream(sys.stderr)
    stream.write(f"gpucoron: error: {printable(' '.join(message.splitlines()))}\n")
    stream.flush()
    return code
