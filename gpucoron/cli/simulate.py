"""``gpucoron simulate``: simulate an association with known ground truth."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from gpucoron.cli.options import COMMANDS, EXIT_CODES, Parser, add_logging_options
from gpucoron.cli.run import run_console
from gpucoron.simulate import Options, Simulation, simulate

__all__ = ["add_arguments", "from_arguments", "main"]


def main(argv: list[str]) -> int:
    """Run ``gpucoron simulate``."""
    parser = Parser(prog="gpucoron simulate", description=COMMANDS["simulate"], epilog=EXIT_CODES)
    add_arguments(parser)
    add_logging_options(parser)
    options = parser.parse_args(argv)
    with run_console(options):
        made = from_arguments(options)
    if not options.quiet:
        sys.stdout.write(f"{made.asn}\n")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the simulator's options to a parser.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Gets a positional ``directory`` and an option for each field of `Options`.
    """
    parser.add_argument("directory", help="where to write; created if absent")
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
            parser.add_argument("--no-planets", dest="planets", action="store_const", const=())
        else:
            parser.add_argument(f"--{name}", **words)


def from_arguments(arguments: argparse.Namespace) -> Simulation:
    """Run the simulator with the values that a parser with `add_arguments` returned.

    Parameters
    ----------
    arguments : argparse.Namespace
        Other attributes are ignored.

    Returns
    -------
    Simulation

    Raises
    ------
    ParameterError, OutputError
        As `simulate`.
    """
    names = {f.name for f in dataclasses.fields(Options)}
    return simulate(arguments.directory, **{k: v for k, v in vars(arguments).items() if k in names})
