"""Commands and options of the command line, with their help."""

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
    "add_logging_options",
    "run_parser",
]

#: What ``--save`` and ``--no-save`` choose from; all but the median are written by default.
_LISTED = sorted(PRODUCTS, key="median".__eq__)  # which is not written by default comes last

COMMANDS = {
    "simulate": "simulate an association with known planets and disk",
    "demo": "simulate an association, run it, and compare recovered with injected planets",
    "compile": "compile CUDA kernels and numba loops ahead of the first run",
    "info": "show versions and devices, or the contents of an association",
    "verify": "run the installed jwst package and gpucoron, and compare all products",
}

EXIT_CODES = """\
exit codes:
  0  done
  1  internal error (a defect in gpucoron)
  2  usage: an option, parameter or value that does not exist
  3  bad input: association, exposure, psfmask or parameter file
  4  device or cluster: not available, or failed
  5  I/O: a product or log cannot be written
  130, 143  interrupted (Ctrl-C), terminated; 141  broken pipe
"""

EXAMPLES = """\
examples:
  gpucoron jw01386-c1020_coron3_asn.json --output-dir out
  gpucoron asn.json --psfmask jwst_nircam_psfmask_0019.fits --set klip.truncate=10
  gpucoron asn.json --align first --no-save psfalign,crfints -q
  gpucoron asn.json --preset jwst              (reproduce the jwst package)
  gpucoron *_asn.json --scheduler tcp://node1:8786      (on a Dask cluster)
  gpucoron asn.json --params pars-coron3pipeline.asdf --save-params used.toml
  gpucoron demo                                (no data at hand: simulate some, and run)
"""


class Parser(argparse.ArgumentParser):
    """Argument parser that raises UsageError and suggests the nearest option.

    Further positional arguments go to the list that `more` names.
    """

    more: str | None = None

    def __init__(self, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str):
        """Raise an argparse error as UsageError."""
        raise UsageError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")

    def parse_args(self, args=None, namespace=None):
        """Parse; raise UsageError for an unknown option, and suggest the nearest."""
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
        description="PSF subtraction for JWST coronagraphy: runs calwebb_coron3 on a level-3 "
        "association,\non the CPU or a GPU. Give a file that has the name of a command as "
        "./info.\n\n"
        f"commands (each has --help):\n{commands}",
        epilog="\n".join([EXAMPLES, EXIT_CODES, _parameter_list()]),
    )
    parser.add_argument(
        "asn",
        metavar="ASN",
        help="level-3 association (JSON) with science and psf members; several run in turn",
    )
    add_run_options(parser)
    return parser


def add_run_options(parser: Parser, output_dir: bool = True) -> None:
    """Add the options of a run; `output_dir` tells whether that is one of them."""
    work = parser.add_argument_group("processing")
    work.add_argument(
        "--device",
        default="auto",
        metavar="auto|cpu|N",
        help="device: the CPU, or CUDA devices by number, as 0 or 0,1 (default: auto)",
    )
    work.add_argument(
        "--psfmask",
        metavar="FILE",
        help="psfmask reference file (default: from CRDS if that is set up, else all ones)",
    )
    work.add_argument(
        "--align",
        choices=("each", "first"),
        help="align the references to each science integration, or only to the first of "
        "an exposure (default: each)",
    )
    work.add_argument(
        "--preset",
        choices=("jwst",),
        help="reproduce the results of the jwst package, its defects included",
    )
    work.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="STEP.PARAMETER=VALUE",
        help="set a step parameter; may be repeated, overrides --params",
    )
    work.add_argument(
        "--params",
        action="append",
        default=[],
        metavar="FILE",
        help="parameter file: TOML, or ASDF of the jwst package; may be repeated",
    )
    work.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="number of threads (default: the processors that this process may use)",
    )
    work.add_argument(
        "--memory", metavar="SIZE", help="memory limit, as 4GiB (default: half of the free memory)"
    )
    files = parser.add_argument_group("files")
    if output_dir:
        work.add_argument(
            "--scheduler",
            metavar="ADDRESS",
            help="run on the Dask cluster with this scheduler, as tcp://host:8786",
        )
        work.add_argument(
            "--dry-run", action="store_true", help="estimate time, memory and disk, then exit"
        )
        files.add_argument(
            "--output-dir",
            default=".",
            metavar="DIR",
            help="output folder (default: the current folder)",
        )
    files.add_argument(
        "--save",
        type=_products,
        metavar="PRODUCT,...",
        help=f"products to write, of {', '.join(_LISTED)}, or all (default: all but median)",
    )
    files.add_argument(
        "--no-save",
        type=_products,
        metavar="PRODUCT,...",
        default=frozenset(),
        help="products not to write",
    )
    files.add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="overwrite existing products (default), or stop",
    )
    files.add_argument(
        "--resume", action="store_true", help="continue an interrupted run in the output folder"
    )
    files.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out members that are unusable or do not match the others, with a warning each",
    )
    files.add_argument(
        "--no-checksums",
        dest="checksums",
        action="store_false",
        help="do not verify the checksums of inputs",
    )
    files.add_argument(
        "--report",
        metavar="PATH",
        help="write an HTML report: a folder, or a file name in .html (default: in the "
        "output folder if run from a terminal)",
    )
    files.add_argument(
        "--no-report", dest="report", action="store_const", const="", help="write no report"
    )
    files.add_argument(
        "--save-params", metavar="FILE", help="write the parameters of this run to a TOML file"
    )
    add_logging_options(parser)
    parser.add_argument("--version", action=_Version, help="print the version and exit")


def add_logging_options(parser: argparse.ArgumentParser) -> None:
    """Add the logging options."""
    talk = parser.add_argument_group("logging")
    talk.add_argument("-v", "--verbose", action="count", default=0, help="log debug messages, too")
    talk.add_argument("-q", "--quiet", action="store_true", help="log warnings and errors only")
    talk.add_argument("--log-file", metavar="FILE", help="write a full log to a file")
    talk.add_argument(
        "--log-json",
        metavar="FILE",
        help="write a log as JSON lines; - writes it to standard error instead of the "
        "messages for people",
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

    rows = [("STEP.skip = false", "skip a step")]
    for name, default, text in describe_parameters():
        if not name.endswith(".skip"):
            shown = "not set" if default in (None, "") else default
            shown = str(shown).lower() if isinstance(shown, bool) else shown
            rows.append((f"{name} = {shown}", text))
    lines = (f"  {left:<40s} {text}" for left, text in rows)
    return "\n".join(["step parameters (--set) and their defaults:", *lines])


class _Version(argparse.Action):
    """Print the version and exit."""

    def __init__(self, option_strings, dest, **kwargs):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser, *unused):
        sys.stdout.write(f"gpucoron {__version__}\n")
        parser.exit()
