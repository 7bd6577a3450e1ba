"""The command line: ``gpucoron ASN`` and its companions. Imports nothing heavy by itself."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gpucoron import __version__
from gpucoron.errors import GpucoronError, OutputError, UsageError
from gpucoron.signals import STOPPED, Terminated, prompt_end

__all__ = ["PRODUCTS", "main"]

log = logging.getLogger("gpucoron")

#: What ``--save`` and ``--no-save`` choose from; all but the median are written by default.
PRODUCTS = ("crfints", "psfstack", "psfalign", "psfsub", "i2d", "median")

COMMANDS = {
    "simulate": "make a realistic association to try things on",
    "demo": "simulate, run, and compare what was found with the truth",
    "info": "versions and devices; what an association holds",
    "verify": "run the installed jwst package beside gpucoron and compare",
}

EXIT_CODES = """\
exit codes:
  0  done
  1  internal error (a defect in gpucoron)
  2  usage: an option, parameter or value that does not exist
  3  bad input: association, exposure, psfmask or parameter file
  4  device or cluster: not there, or failed
  5  I/O: a product or log cannot be written
  130, 143  interrupted (Ctrl-C), terminated; 141  the reader of the output went away
"""

EXAMPLES = """\
examples:
  gpucoron jw01386-c1020_coron3_asn.json --output-dir out
  gpucoron asn.json --psfmask jwst_nircam_psfmask_0019.fits --set klip.truncate=10
  gpucoron asn.json --align first --no-save psfalign,crfints -q
  gpucoron asn.json --preset jwst              (the jwst package's results, oddities included)
  gpucoron *_asn.json --scheduler tcp://node1:8786      (on a Dask cluster)
  gpucoron asn.json --params pars-coron3pipeline.asdf --save-params used.toml
  gpucoron demo                                (no data at hand? makes some, and runs)
"""


class Parser(argparse.ArgumentParser):
    """Argument parser that raises UsageError, naming the nearest option.

    Words that are no options and too many go to the list that `more` names.
    """

    more: str | None = None

    def __init__(self, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str):
        """Turn argparse's complaint into a UsageError."""
        raise UsageError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")

    def parse_args(self, args=None, namespace=None):
        """Parse, naming what was not understood and the option that may have been meant."""
        parsed, extra = self.parse_known_args(args, namespace)
        if self.more and not any(e.startswith("-") for e in extra):
            setattr(parsed, self.more, extra)
            return parsed
        if not extra:
            return parsed
        word = next((e for e in extra if e.startswith("-")), extra[0]).partition("=")[0]
        close = difflib.get_close_matches(word, self._option_string_actions, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}?" if close else f"see {self.prog} --help"
        what = "unknown option" if word.startswith("-") else "one argument too many:"
        raise UsageError(f"{what} {word}; {hint}")


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
    try:
        with prompt_end():
            code = _dispatch(argv)
            sys.stdout.flush()
            return code
    except GpucoronError as error:
        return fail(_noted(str(error), error), error.exit_code)
    except SystemExit as done:  # --help, --version
        return done.code or 0
    except KeyboardInterrupt as stop:
        return fail(_noted("interrupted", stop), 130)
    except Terminated as stop:
        return fail(_noted("terminated", stop), 143)
    except BrokenPipeError:
        # Nobody reads any more: keep Python from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return fail(_noted(f"{where}{error.strerror or error}", error), OutputError.exit_code)
    except Exception as error:  # a defect: one line, and the traceback for those who ask
        return fail(_noted(_defect(error, argv), error), GpucoronError.exit_code)


def script() -> None:
    """Be the command: run `main`, and leave as one does who was told to stop."""
    from gpucoron.own_process import collect_rarely, keep_memory

    collect_rarely()
    keep_memory()
    code = main()
    if code in STOPPED:  # threads that still read a file are not waited for
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _dispatch(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        return _COMMANDS[argv[0]](argv[1:])
    parser = run_parser()
    if not argv:
        raise UsageError("no association given (see gpucoron --help)")
    parser.more = "associations"
    options = parser.parse_args(argv)
    options.associations.insert(0, options.asn)
    return _run(options)


# ---- gpucoron ASN


def run_parser() -> Parser:
    """Build the parser of ``gpucoron ASN``."""
    commands = "\n".join(f"  gpucoron {name:<9s} {text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="gpucoron",
        usage="gpucoron ASN [ASN ...] [options]\n       gpucoron {simulate,demo,info,verify} ...",
        description="Subtract the star from JWST coronagraphic images: reads a level-3 "
                    "association,\nwrites its products. A file that is named like a command is "
                    f"reached as ./info.\n\ncommands (each has --help):\n{commands}",
        epilog="\n".join([EXAMPLES, EXIT_CODES, _parameter_list()]))
    parser.add_argument(
        "asn", metavar="ASN",
        help="association (JSON) with science and psf members; or several, done in turn")
    add_run_options(parser)
    return parser


def add_run_options(parser: Parser, output_dir: bool = True) -> None:
    """Add the options that say how a run works; `output_dir` tells whether that is one of them."""
    work = parser.add_argument_group("the work")
    work.add_argument("--device", default="auto", metavar="auto|cpu|N",
                      help="where to compute: the CPU, or CUDA devices by number: 0, or 0,1 "
                           "(default: auto)")
    work.add_argument("--psfmask", metavar="FILE",
                      help="psfmask reference file (default: found through crds, else all ones)")
    work.add_argument("--align", choices=("each", "first"),
                      help="align the references to each science integration, or to the first one "
                           "of an exposure only (default: each)")
    work.add_argument("--preset", choices=("jwst",),
                      help="give the jwst package's results, oddities included")
    work.add_argument("--set", action="append", default=[], metavar="STEP.PARAMETER=VALUE",
                      help="set one parameter of a step; may be repeated, wins over --params")
    work.add_argument("--params", action="append", default=[], metavar="FILE",
                      help="parameter file: TOML, or ASDF as jwst writes it; may be repeated")
    work.add_argument("--threads", type=int, metavar="N",
                      help="threads to use (default: the processors allowed)")
    work.add_argument("--memory", metavar="SIZE",
                      help="memory to use, as 4GiB (default: half of what is free)")
    files = parser.add_argument_group("files")
    if output_dir:
        work.add_argument("--scheduler", metavar="ADDRESS",
                          help="work on the Dask cluster there, as tcp://host:8786")
        work.add_argument("--dry-run", action="store_true",
                          help="tell what the work would take, and leave")
        files.add_argument("--output-dir", default=".", metavar="DIR",
                           help="where products go (default: the current folder)")
    files.add_argument("--save", type=_products, metavar="PRODUCT,...",
                       help=f"write only these, of {', '.join(PRODUCTS)}, or all "
                            "(default: all but median)")
    files.add_argument("--no-save", type=_products, metavar="PRODUCT,...", default=frozenset(),
                       help="do not write these")
    files.add_argument("--overwrite", action=argparse.BooleanOptionalAction, default=True,
                       help="replace products that exist (default), or stop")
    files.add_argument("--resume", action="store_true",
                       help="go on from what an earlier run has completed there")
    files.add_argument("--skip-bad", action="store_true",
                       help="leave out members that cannot be used or do not go with the others, "
                            "and tell which")
    files.add_argument("--no-checksums", dest="checksums", action="store_false",
                       help="do not compare inputs with the checksums in their headers")
    files.add_argument("--report", metavar="PATH",
                       help="write the report there: a folder, or a name in .html (default: beside "
                            "the products, where people are watching on a terminal)")
    files.add_argument("--no-report", dest="report", action="store_const", const="",
                       help="write no report")
    files.add_argument("--save-params", metavar="FILE",
                       help="write the parameters of this run as TOML")
    add_talk_options(parser)
    parser.add_argument("--version", action=_Version, help="show the version and leave")


def add_talk_options(parser: Parser) -> None:
    """Add the options that say how much is told."""
    talk = parser.add_argument_group("what is told")
    talk.add_argument("-v", "--verbose", action="count", default=0, help="tell everything")
    talk.add_argument("-q", "--quiet", action="store_true", help="tell warnings and errors only")
    talk.add_argument("--log-file", metavar="FILE", help="write a full log")
    talk.add_argument("--log-json", metavar="FILE",
                      help="write a log for machines, one JSON object a line; - is standard error, "
                           "which then shows nothing else")


def run_console(options: argparse.Namespace):
    """Make the Console that the options of `add_talk_options` ask for."""
    from gpucoron.console import Console

    return Console(-1 if options.quiet else options.verbose, options.log_file,
                   log_json=getattr(options, "log_json", None))


def _run(options: argparse.Namespace) -> int:
    _guess_command(options.asn)
    with run_console(options) as console:
        if options.dry_run:
            for asn in options.associations:
                _tell_plan(asn, options)
        elif options.scheduler or len(options.associations) > 1:
            from gpucoron import cli_many

            return cli_many.run(options, console)
        else:
            run_association(options, console)
    return 0


def _tell_plan(asn: str, options: argparse.Namespace) -> None:
    """Print what the run would take."""
    from gpucoron import pipeline
    from gpucoron.parameters import Parameters

    parameters = Parameters.from_sources(
        options.params, options.set, options.preset, {"align": options.align})
    for plan in pipeline.plan(
            asn, parameters=parameters, save=chosen_products(options, parameters),
            threads=options.threads, memory=options.memory):
        sys.stdout.write("\n".join(plan.lines()) + "\n")
    if options.device not in ("auto", "cpu"):
        sys.stdout.write("batches, memory and time are those of a run on the CPU; a GPU takes as "
                         "many integrations\nat a time as its free memory holds, less with "
                         "--memory\n")


def run_association(options: argparse.Namespace, console):
    """Run the pipeline as the options of `add_run_options` say; return its result."""
    from gpucoron.device import choose_device

    start = time.perf_counter()
    parameters = read_parameters(options)
    device = choose_device(options.device)
    log.info("device %s: %s (%s)", device.label, device.description, device.reason)
    from gpucoron import pipeline

    result = pipeline.run(
        options.asn, device=device, output_dir=options.output_dir,
        align=parameters.align_refs.align, psfmask=options.psfmask, preset=parameters.preset,
        parameters=parameters, save=chosen_products(options, parameters), keep=(),
        overwrite=options.overwrite, skip_bad=options.skip_bad, checksums=options.checksums,
        progress=console.progress, threads=options.threads,
        memory=options.memory, resume=options.resume)
    written = [*result.files, *_report(options, console, result)]
    console.summary(result, time.perf_counter() - start)
    if not options.quiet:
        for path in written:
            sys.stdout.write(f"{path}\n")
    return result


def read_parameters(options: argparse.Namespace):
    """Return the parameters of a run, written down where that is asked for."""
    from gpucoron.parameters import Parameters

    parameters = Parameters.from_sources(
        options.params, options.set, options.preset, {"align": options.align})
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
    try:
        return [result.report(where, getattr(options, "star", None))]
    except GpucoronError:
        raise
    except Exception as problem:  # the products are whole all the same
        log.warning("no report: %s: %s", type(problem).__name__, problem)
        return []


def chosen_products(options: argparse.Namespace, parameters) -> frozenset[str]:
    """Return the products to write."""
    chosen = options.save
    if chosen is None:
        median = parameters.outlier_detection.save_intermediate_results
        chosen = frozenset(PRODUCTS) - (frozenset() if median else {"median"})
    return chosen - options.no_save


def _products(text: str) -> frozenset[str]:
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in (*PRODUCTS, "all"):
            close = difflib.get_close_matches(name, PRODUCTS, n=1)
            hint = f"did you mean {close[0]}?" if close else "expected " + ", ".join(PRODUCTS)
            raise argparse.ArgumentTypeError(f"there is no product {name!r}; {hint}")
    return frozenset(PRODUCTS if "all" in names else names)


def _guess_command(asn: str) -> None:
    """Raise where the association is rather a misspelt command."""
    close = difflib.get_close_matches(asn.lower(), COMMANDS, n=1, cutoff=0.7)
    if close and not Path(asn).exists():
        raise UsageError(f"there is no file {asn}; did you mean the command {close[0]!r}?")


def _parameter_list() -> str:
    from gpucoron.parameters import describe_parameters

    lines = ["step parameters (--set) and their defaults:",
             f"  {'STEP.skip = false':<40s} leave a step out"]
    for name, default, text in describe_parameters():
        if not name.endswith(".skip"):
            shown = "not set" if default in (None, "") else default
            shown = str(shown).lower() if isinstance(shown, bool) else shown
            lines.append(f"  {f'{name} = {shown}':<40s} {text}")
    return "\n".join(lines)


class _Version(argparse.Action):
    """Show the version and leave."""

    def __init__(self, option_strings, dest, **kwargs):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser, *unused):
        sys.stdout.write(f"gpucoron {__version__}\n")
        parser.exit()


def _write_text(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as problem:
        raise OutputError(f"{path}: cannot write: {problem.strerror}") from None


# ---- the other commands, each imported when it is called for


def _simulate(argv: list[str]) -> int:
    from gpucoron import simulate

    parser = Parser(prog="gpucoron simulate", description=COMMANDS["simulate"], epilog=EXIT_CODES)
    simulate.add_arguments(parser)
    add_talk_options(parser)
    options = parser.parse_args(argv)
    with run_console(options):
        made = simulate.from_arguments(options)
    if not options.quiet:
        sys.stdout.write(f"{made.asn}\n")
    return 0


def _demo(argv: list[str]) -> int:
    from gpucoron import cli_demo

    return cli_demo.main(argv)


def _info(argv: list[str]) -> int:
    from gpucoron import cli_info

    return cli_info.main(argv)


def _verify(argv: list[str]) -> int:
    try:
        from gpucoron import verify
    except ImportError as problem:
        if problem.name not in ("gpucoron", "gpucoron.verify"):
            raise
        raise UsageError("verify is not part of this version") from None
    parser = Parser(prog="gpucoron verify", description=COMMANDS["verify"])
    verify.add_arguments(parser)
    return verify.run_from_arguments(parser.parse_args(argv)) or 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "simulate": _simulate, "demo": _demo, "info": _info, "verify": _verify,
}


# ---- ways to end


def _noted(text: str, error: BaseException) -> str:
    """Add what a run has noted on its way out."""
    return "; ".join([text, *getattr(error, "__notes__", ())])


def _defect(error: Exception, argv: list[str]) -> str:
    """Describe an error that should not be; show the traceback if all is to be told."""
    import traceback

    text = f"internal error: {type(error).__name__}: {error}"
    if not any(word in ("-v", "-vv", "--verbose") for word in argv):
        return f"{text} (run with -v for the traceback)"
    traceback.print_exception(error)
    return text


def fail(message: str, code: int) -> int:
    """Say in one line what went wrong; return the exit code."""
    text = " ".join(message.split("\n"))
    try:
        sys.stderr.write(f"gpucoron: error: {text}\n")
        sys.stderr.flush()
    except OSError:
        pass
    return code
