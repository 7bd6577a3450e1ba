"""``gpucoron verify``: run jwst and gpucoron on one association and compare them."""

from __future__ import annotations

import argparse
import sys

from gpucoron.cli.options import COMMANDS, Parser, add_logging_options
from gpucoron.cli.run import run_console
from gpucoron.verify import verify

__all__ = ["add_arguments", "main", "run_from_arguments"]

_ABOUT = """\
Runs the installed jwst package and gpucoron with its preset "jwst" on an association, each in its
own process and offline, and reports the differences of all products and of the fitted shifts, wall
time and peak memory. Products, logs and the report (report.txt, report.json) are written to the
output folder.

With NumPy 2, jwst's alignment works in single precision and does not align; its Fourier transforms
are run in double precision unless --single-fft is given."""

_EXIT_CODES = """\
exit codes:
  0  done; with --expect: all differences are within their limits
  1  --expect: a difference exceeds its limit
  2  usage
  3  bad input: association, exposure or psfmask
  5  I/O: the output folder cannot be written
  6  the jwst package is not installed, or failed
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``gpucoron verify``."""
    parser.description, parser.epilog = _ABOUT, _EXIT_CODES
    parser.add_argument("asn", metavar="ASN", help="association (JSON)")
    parser.add_argument(
        "--psfmask",
        metavar="FILE",
        help="psfmask reference file for both (default: from CRDS, else all ones)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="STEP.PARAMETER=VALUE",
        help="set one parameter of a step for both; may be repeated",
    )
    parser.add_argument(
        "--align",
        choices=("each", "first"),
        help="gpucoron's alignment (default: first, as in jwst)",
    )
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="auto|cpu|N",
        help="device for gpucoron (default: cpu)",
    )
    parser.add_argument(
        "--output-dir",
        default="gpucoron-verify",
        metavar="DIR",
        help="output folder: new, empty, or of an earlier comparison (default: gpucoron-verify)",
    )
    parser.add_argument(
        "--expect",
        action="store_true",
        help="exit with 1 where a difference exceeds its limit (docs/verify.md)",
    )
    parser.add_argument(
        "--single-fft",
        action="store_true",
        help="run jwst's alignment as it is, even where NumPy makes it work in single precision",
    )
    add_logging_options(parser)


def run_from_arguments(options: argparse.Namespace) -> int:
    """Run the comparison with parsed arguments; return the exit status."""
    with run_console(options):
        report = verify(
            options.asn,
            options.output_dir,
            psfmask=options.psfmask,
            sets=options.set,
            align=options.align,
            device=options.device,
            double_fft=not options.single_fft,
        )
    if not options.quiet:
        sys.stdout.writelines(line + "\n" for line in report.lines())
    problems = report.problems()
    if not options.expect:
        return 0
    for line in problems:
        sys.stdout.write(f"beyond the limit: {line}\n")
    if not problems:
        sys.stdout.write("all differences are within their limits\n")
    return 1 if problems else 0


def main(argv: list[str]) -> int:
    """Run ``gpucoron verify``."""
    parser = Parser(prog="gpucoron verify", description=COMMANDS["verify"])
    add_arguments(parser)
    return run_from_arguments(parser.parse_args(argv)) or 0
