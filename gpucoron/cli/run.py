"""Running one association as the options of the command line say."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from gpucoron.core.products import PRODUCTS
from gpucoron.errors import GpucoronError, OutputError

__all__ = ["chosen_products", "fail", "read_parameters", "run_association", "run_console"]

log = logging.getLogger("gpucoron")


def run_console(options: argparse.Namespace):
    """Make the Console that the options of `add_talk_options` ask for."""
    from gpucoron.cli.console import Console

    return Console(
        -1 if options.quiet else options.verbose,
        options.log_file,
        log_json=getattr(options, "log_json", None),
    )


def run_association(options: argparse.Namespace, console):
    """Run the pipeline as the options of `add_run_options` say; return its result."""
    from gpucoron.backend.device import choose_device, is_open

    start = time.perf_counter()
    parameters = read_parameters(options)
    device = options.device
    if not is_open(device):  # else the pipeline tells when it knows
        device = choose_device(device)
        log.info("device %s: %s (%s)", device.label, device.description, device.reason)
    from gpucoron import api as pipeline

    result = pipeline.run(
        options.asn,
        device=device,
        output_dir=options.output_dir,
        align=parameters.align_refs.align,
        psfmask=options.psfmask,
        preset=parameters.preset,
        parameters=parameters,
        save=chosen_products(options, parameters),
        keep=(),
        overwrite=options.overwrite,
        skip_bad=options.skip_bad,
        checksums=options.checksums,
        progress=console.progress,
        threads=options.threads,
        memory=options.memory,
        resume=options.resume,
    )
    written = [*result.files, *_report(options, console, result)]
    console.summary(result, time.perf_counter() - start)
    if not options.quiet:
        for path in written:
            sys.stdout.write(f"{path}\n")
    return result


def read_parameters(options: argparse.Namespace):
    """Return the parameters of a run, written down where that is asked for."""
    from gpucoron.core.parameters import Parameters

    parameters = Parameters.from_sources(
        options.params, options.set, options.preset, {"align": options.align}
    )
    if options.save_params:
        _write_text(options.save_params, parameters.to_toml())
    return parameters


def _report(options: argparse.Namespace, console, result) -> list[Path]:
    """Write the report if one is wanted."""
    where = options.report
    if where is None and console.terminal:
        where = options.output_dir
    if not where:
        return []
    start = time.perf_counter()
    try:
        return [result.report(where, getattr(options, "star", None), options.overwrite)]
    except GpucoronError:
        raise
    except Exception as problem:  # the products are whole all the same
        log.warning("no report: %s: %s", type(problem).__name__, problem)
        return []
    finally:
        result.timings["report"] = time.perf_counter() - start


def chosen_products(options: argparse.Namespace, parameters) -> frozenset[str]:
    """Return the products to write."""
    chosen = options.save
    if chosen is None:
        median = parameters.outlier_detection.save_intermediate_results
        chosen = frozenset(PRODUCTS) - (frozenset() if median else {"median"})
    return chosen - options.no_save


def _write_text(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as problem:
        raise OutputError(f"{path}: cannot write: {problem.strerror}") from None


def fail(message: str, code: int) -> int:
    """Say in one line what went wrong; return the exit code."""
    text = " ".join(message.split("\n"))
    try:
        sys.stderr.write(f"gpucoron: error: {text}\n")
        sys.stderr.flush()
    except OSError:
        pass
    return code
