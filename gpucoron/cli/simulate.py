"""``gpucoron simulate``: simulate an association with known ground truth."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from gpucoron.cli.options import COMMANDS, EXIT_CODES, Parser, add_talk_options
from gpucoron.cli.run import run_console
from gpucoron.simulate import Options, Planet, Simulation, simulate
from gpucoron.simulate.options import INSTRUMENT_NAMES

__all__ = ["add_arguments", "from_arguments", "main"]


def main(argv: list[str]) -> int:
    """Run ``gpucoron simulate``."""
    parser = Parser(prog="gpucoron simulate", description=COMMANDS["simulate"], epilog=EXIT_CODES)
    add_arguments(parser)
    add_talk_options(parser)
    options = parser.parse_args(argv)
    with run_console(options):
        made = from_arguments(options)
    if not options.quiet:
        sys.stdout.write(f"{made.asn}\n")
    return 0


def _pair(text):
    rows, _, columns = text.lower().partition("x")
    return int(rows), int(columns)


def _whole_numbers(text):
    values = tuple(int(v) for v in text.split(","))
    return values[0] if len(values) == 1 else values


def _planet_argument(text):
    values = [float(v) for v in text.split(",")]
    if len(values) != 3:
        raise ValueError(text)
    return Planet(*values)


for _parser, _name in (
    (_pair, "ROWSxCOLUMNS"),
    (_whole_numbers, "whole number(s)"),
    (_planet_argument, "ARCSEC,DEGREES,CONTRAST"),
):
    _parser.__name__ = _name  # argparse names the type in its message


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the simulator's options to a parser.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Gets a positional ``directory`` and one option per field of `Options`.
    """
    default = Options()
    add = parser.add_argument
    add("directory", help="where to write; made if absent")
    add("--instrument", choices=INSTRUMENT_NAMES, default=default.instrument)
    add("--filter", help="filter of the instrument (default: F444W, F1140C, F2300C)")
    add("--seed", type=int, default=default.seed, help="same seed, same pixels (default 0)")
    add(
        "--shape",
        type=_pair,
        metavar="NYxNX",
        help="cut-out round the mask (default: whole subarray)",
    )
    add(
        "--science",
        dest="n_science",
        type=int,
        default=default.n_science,
        metavar="N",
        help="science exposures, one roll each (default 2)",
    )
    add(
        "--integrations",
        dest="n_integrations",
        type=_whole_numbers,
        default=10,
        metavar="N[,N...]",
        help="integrations per science exposure (default 10)",
    )
    add(
        "--references",
        dest="n_references",
        type=int,
        default=default.n_references,
        metavar="N",
        help="reference exposures, one dither position each (default 9)",
    )
    add(
        "--reference-integrations",
        dest="n_reference_integrations",
        type=_whole_numbers,
        default=4,
        metavar="N[,N...]",
        help="integrations per reference exposure (default 4)",
    )
    add(
        "--planet",
        dest="planets",
        type=_planet_argument,
        action="append",
        metavar="SEP,PA,CONTRAST",
        help="arcsec, degrees north over east, flux ratio; repeatable, "
        "in place of the instrument's own three",
    )
    add("--no-planets", dest="planets", action="store_const", const=())
    for name in ("disk", "noise", "cosmic-rays", "bad-pixels"):
        add(f"--no-{name}", dest=name.replace("-", "_"), action="store_false")
    for name, text in (
        ("star-flux-jy", "flux of the science star, Jy"),
        ("reference-brightness", "flux of the reference star in science stars"),
        ("roll-step", "degrees between science exposures"),
        ("dither-px", "step between neighbours of the small-grid dither, px"),
        ("acquisition-px", "rms error of target acquisition, px"),
        ("jitter-px", "rms pointing jitter between integrations, px"),
        ("wavefront-nm", "rms of the fixed wavefront error, nm"),
        ("drift-nm", "rms of the wavefront's drift, nm"),
        ("background-left", "share of the background not subtracted"),
        ("saturation-mjysr", "brightness from which pixels are saturated, MJy/sr"),
    ):
        field = name.replace("-", "_")
        add(f"--{name}", type=float, default=getattr(default, field), metavar="X", help=text)
    add(
        "--optical-states",
        dest="n_optical_states",
        type=int,
        metavar="N",
        help="at most N different wavefronts per exposure, repeated with fresh noise",
    )
    add(
        "--truth-scenes",
        action="store_true",
        help="also write every integration without noise and defects",
    )
    add("--overwrite", action="store_true", help="replace an earlier simulation there")


def from_arguments(arguments: argparse.Namespace) -> Simulation:
    """Run the simulator as a parser with `add_arguments` was told to.

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
