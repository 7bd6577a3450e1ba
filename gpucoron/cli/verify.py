"""``gpucoron verify``: run jwst and gpucoron on one association and compare them."""

from __future__ import annotations

import argparse

from gpucoron.cli.options import Parser, add_logging_options, command_parser
from gpucoron.cli.run import run_console
from gpucoron.cli.streams import write_lines
from gpucoron.verify import verify


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
        write_lines(report.lines())
    problems = report.problems()
    if not options.expect:
        return 0
    write_lines(f"beyond the limit: {line}" for line in problems)
    if not problems:
        write_lines(["all differences are within their limits"])
    return 1 if problems else 0


def make_parser() -> Parser:
    """Build the parser of this command."""
    parser = command_parser("verify")
    add_logging_options(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run ``gpucoron verify``."""
    return run_from_arguments(make_parser().parse_args(argv))
