"""``gpucoron simulate``: simulate an association with known ground truth."""

from __future__ import annotations

import argparse
import dataclasses

from gpucoron.cli.options import Parser, add_logging_options, command_parser
from gpucoron.cli.run import run_console
from gpucoron.cli.streams import write_lines
from gpucoron.simulate import Options, simulate


def main(argv: list[str]) -> int:
    """Run ``gpucoron simulate``."""
    options = make_parser().parse_args(argv)
    chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(Options)}
    with run_console(options):
        made = simulate(options.directory, **chosen)
    write_lines([str(made.asn)], needed=False)
    return 0


def make_parser() -> Parser:
    """Build the parser of this command."""
    parser = command_parser("simulate")
    add_arguments(parser)
    add_logging_options(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field of `gpucoron.simulate.Options`."""
    for field in dataclasses.fields(Options):
        name = field.name.removeprefix("n_").replace("_", "-")
        words = {"dest": field.name, "help": field.metadata["help"]}
        if field.default is True:
            parser.add_argument(f"--no-{name}", action="store_false", **words)
            continue
        if field.default is False:
            parser.add_argument(f"--{name}", action="store_true", **words)
            continue
        words |= {"default": field.default, "metavar": field.metadata["metavar"]}
        if field.name == "planets":
            parser.add_argument("--planet", action="append", **words)
            text = "no planets"
            parser.add_argument(
                "--no-planets", dest="planets", action="store_const", const=(), help=text
            )
        else:
            parser.add_argument(f"--{name}", **words)
