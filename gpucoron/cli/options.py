"""What the command line understands: commands, options, and their help."""

from __future__ import annotations

import argparse
import difflib
import sys

from gpucoron import __version__
from gpucoron.core.products import PRODUCTS
from gpucoron.errors import UsageError

__all__ = [
    "COMMANDS",
    "EXIT_CODES",
    "Parser",
    "add_run_options",
    "add_talk_options",
    "run_parser",
]

#: What ``--save`` and ``--no-save`` choose from; all but the median are written by default.
_LISTED = sorted(PRODUCTS, key="median".__eq__)  # which is not written by default comes last

COMMANDS = {
    "simulate": "make a realistic association to try things on",
    "demo": "simulate, run, and compare what was found with the truth",
    "compile": "compile kernels and loops ahead of the first run",
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


def run_parser() -> Parser:
    """Build the parser of ``gpucoron ASN``."""
    commands = "\n".join(f"  gpucoron {name:<9s} {text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="gpucoron",
        usage=f"gpucoron ASN [ASN ...] [options]\n       gpucoron {{{','.join(COMMANDS)}}} ...",
        description="Subtract the star from JWST coronagraphic images: reads a level-3 "
        "association,\nwrites its products. A file that is named like a command is "
        f"reached as ./info.\n\ncommands (each has --help):\n{commands}",
        epilog="\n".join([EXAMPLES, EXIT_CODES, _parameter_list()]),
    )
    parser.add_argument(
        "asn",
        metavar="ASN",
        help="association (JSON) with science and psf members; or several, done in turn",
    )
    add_run_options(parser)
    return parser


def add_run_options(parser: Parser, output_dir: bool = True) -> None:
    """Add the options that say how a run works; `output_dir` tells whether that is one of them."""
    work = parser.add_argument_group("the work")
    work.add_argument(
        "--device",
        default="auto",
        metavar="auto|cpu|N",
        help="where to compute: the CPU, or CUDA devices by number: 0, or 0,1 (default: auto)",
    )
    work.add_argument(
        "--psfmask",
        metavar="FILE",
        help="psfmask reference file (default: found through crds, else all ones)",
    )
    work.add_argument(
        "--align",
        choices=("each", "first"),
        help="align the references to each science integration, or to the first one "
        "of an exposure only (default: each)",
    )
    work.add_argument(
        "--preset", choices=("jwst",), help="give the jwst package's results, oddities included"
    )
    work.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="STEP.PARAMETER=VALUE",
        help="set one parameter of a step; may be repeated, wins over --params",
    )
    work.add_argument(
        "--params",
        action="append",
        default=[],
        metavar="FILE",
        help="parameter file: TOML, or ASDF as jwst writes it; may be repeated",
    )
    work.add_argument(
        "--threads", type=int, metavar="N", help="threads to use (default: the processors allowed)"
    )
    work.add_argument(
        "--memory", metavar="SIZE", help="memory to use, as 4GiB (default: half of what is free)"
    )
    files = parser.add_argument_group("files")
    if output_dir:
        work.add_argument(
            "--scheduler",
            metavar="ADDRESS",
            help="work on the Dask cluster there, as tcp://host:8786",
        )
        work.add_argument(
            "--dry-run", action="store_true", help="tell what the work would take, and leave"
        )
        files.add_argument(
            "--output-dir",
            default=".",
            metavar="DIR",
            help="where products go (default: the current folder)",
        )
    files.add_argument(
        "--save",
        type=_products,
        metavar="PRODUCT,...",
        help=f"write only these, of {', '.join(_LISTED)}, or all (default: all but median)",
    )
    files.add_argument(
        "--no-save",
        type=_products,
        metavar="PRODUCT,...",
        default=frozenset(),
        help="do not write these",
    )
    files.add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="replace products that exist (default), or stop",
    )
    files.add_argument(
        "--resume", action="store_true", help="go on from what an earlier run has completed there"
    )
    files.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out members that cannot be used or do not go with the others, and tell which",
    )
    files.add_argument(
        "--no-checksums",
        dest="checksums",
        action="store_false",
        help="do not compare inputs with the checksums in their headers",
    )
    files.add_argument(
        "--report",
        metavar="PATH",
        help="write the report there: a folder, or a name in .html (default: beside "
        "the products, where people are watching on a terminal)",
    )
    files.add_argument(
        "--no-report", dest="report", action="store_const", const="", help="write no report"
    )
    files.add_argument(
        "--save-params", metavar="FILE", help="write the parameters of this run as TOML"
    )
    add_talk_options(parser)
    parser.add_argument("--version", action=_Version, help="show the version and leave")


def add_talk_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how much is told."""
    talk = parser.add_argument_group("what is told")
    talk.add_argument("-v", "--verbose", action="count", default=0, help="tell everything")
    talk.add_argument("-q", "--quiet", action="store_true", help="tell warnings and errors only")
    talk.add_argument("--log-file", metavar="FILE", help="write a full log")
    talk.add_argument(
        "--log-json",
        metavar="FILE",
        help="write a log for machines, one JSON object a line; - is standard error, "
        "which then shows nothing else",
    )


def _products(text: str) -> frozenset[str]:
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in (*PRODUCTS, "all"):
            close = difflib.get_close_matches(name, PRODUCTS, n=1)
            hint = f"did you mean {close[0]}?" if close else "expected " + ", ".join(_LISTED)
            raise argparse.ArgumentTypeError(f"there is no product {name!r}; {hint}")
    return frozenset(PRODUCTS if "all" in names else names)


def _parameter_list() -> str:
    from gpucoron.core.parameters import describe_parameters

    lines = [
        "step parameters (--set) and their defaults:",
        f"  {'STEP.skip = false':<40s} leave a step out",
    ]
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
