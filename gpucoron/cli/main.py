"""Entry point of the command line; dispatches to the commands. Imports nothing heavy itself."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from gpucoron.backend.signals import EXITS, STOP_CODES, Terminated, graceful_shutdown, stopped_by
from gpucoron.cli.options import COMMANDS, run_parser
from gpucoron.cli.run import fail, run_console, run_one, run_options
from gpucoron.cli.streams import TolerantStream, discard, prepare_streams, write_lines
from gpucoron.errors import GpucoronError, OutputError, UsageError, printable, why

log = logging.getLogger("gpucoron")

_ON_GPU = (
    "batches, memory and time are those of a run on the CPU; a GPU takes as many integrations",
    "at a time as its free memory holds, less with --memory",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The words after ``gpucoron``; those of this process by default.

    Returns
    -------
    int
        The exit code; ``gpucoron --help`` lists them.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    prepare_streams()
    try:
        with graceful_shutdown():
            try:
                code = _dispatch(argv)
            except SystemExit as done:  # --help, --version
                code = int(done.code or 0)
            sys.stdout.flush()
            return code
    except GpucoronError as error:
        return fail(_with_notes(str(error), error), error.exit_code)
    except BrokenPipeError:  # nobody reads any more
        discard(sys.stdout)
        return 141
    except OSError as error:
        discard(sys.stdout)
        where = f"{error.filename}: " if error.filename else ""
        return fail(_with_notes(f"{where}{why(error)}", error), OutputError.exit_code)
    except (KeyboardInterrupt, Terminated, Exception) as error:
        # interrupted, or a defect: one line, and the traceback with -v
        text, code = EXITS.get(type(stopped_by(error) or error)) or (
            _describe_defect(error, argv),
            GpucoronError.exit_code,
        )
        return fail(_with_notes(text, error), code)


def script() -> None:
    """Console entry point; exits with 128 + signal if interrupted."""
    from gpucoron.backend.compiling import allow_second_compiler
    from gpucoron.backend.process import QuickExit, tune_blas, tune_gc, tune_malloc

    at_exit = QuickExit()
    tune_blas()
    tune_gc()
    tune_malloc(keep_all=True)
    allow_second_compiler()
    code = main()
    if code in STOP_CODES:  # threads that still read a file are not waited for
        TolerantStream(sys.stderr).flush()
        os._exit(code)
    at_exit.code = code
    sys.exit(code)


def _dispatch(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        return import_module(f"gpucoron.cli.{argv[0]}").main(argv[1:])
    parser = run_parser()
    if not argv:
        raise UsageError("no association given (see gpucoron --help)")
    parser.more = "associations"
    options = parser.parse_args(argv)
    options.associations.insert(0, options.asn)
    return _run(options)


# ---- gpucoron ASN


def _run(options: argparse.Namespace) -> int:
    _guess_command(options.asn)
    with run_console(options) as console:
        if options.dry_run:
            for asn in options.associations:
                _print_plan(asn, options)
        elif options.scheduler or len(options.associations) > 1:
            from gpucoron.cli import many as cli_many

            return cli_many.run(options, console)
        else:
            run_one(options, console)
    return 0


def _print_plan(asn: str, options: argparse.Namespace) -> None:
    """Print the estimated time, memory and disk of a run."""
    from gpucoron.pipeline.association import plan_association

    options.asn = asn
    for plan in plan_association(run_options(options)):
        write_lines(plan.lines())
    if options.device not in ("auto", "cpu"):
        write_lines(_ON_GPU)


def _guess_command(asn: str) -> None:
    """Raise UsageError if the association looks like a misspelt command."""
    close = difflib.get_close_matches(asn, COMMANDS, n=1, cutoff=0.7)
    if close and not Path(asn).exists():
        raise UsageError(f"there is no file {asn}; did you mean the command {close[0]!r}?")


# ---- ways to end


def _with_notes(text: str, error: BaseException) -> str:
    """Append the notes that a run has added to its error."""
    return "; ".join([text, *getattr(error, "__notes__", ())])


def _describe_defect(error: BaseException, argv: list[str]) -> str:
    """Describe an internal error; print its traceback with -v."""
    import traceback

    text = f"internal error: {type(error).__name__}: {error}"
    if not any(word in ("-v", "-vv", "--verbose") for word in argv):
        return f"{text} (run with -v for the traceback)"
    lines = "".join(traceback.format_exception(error)).splitlines()
    TolerantStream(sys.stderr).write("\n".join(map(printable, lines)) + "\n")
    return text
