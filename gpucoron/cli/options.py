"""Parsers of the command line, made from ``options.toml``."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import textwrap
import tomllib
from collections.abc import Mapping
from importlib import resources
from itertools import groupby
from typing import Any

from gpucoron import __version__
from gpucoron.core.products import PRODUCTS
from gpucoron.errors import UsageError

#: What ``--save`` and ``--no-save`` choose from; all but the median are written by default.
_LISTED = sorted(PRODUCTS, key="median".__eq__)  # which is not written by default comes last

_TABLES = tomllib.loads(
    resources.files(__package__).joinpath("options.toml").read_text(encoding="utf-8")
)

#: Every command with its help.
COMMANDS: dict[str, str] = _TABLES["commands"]


_TEXT = re.compile(r" *\S.*?  +(?=\S)")
_LONG, _NEGATIVE = re.compile("--[a-z][a-z-]*$"), re.compile(r"-\.?[0-9]")


class _Formatter(argparse.HelpFormatter):
    """Fills paragraphs; an indented line keeps its place and is continued below its last column."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for is_paragraph, group in groupby(
            text.strip().splitlines(), lambda x: x[:1].strip() != ""
        ):
            for line in [" ".join(group)] if is_paragraph else group:
                lines += _wrapped(line, width)
        return "\n".join(lines)


def _wrapped(line: str, width: int) -> list[str]:
    """Wrap a line; text after two spaces is continued below itself."""
    column = _TEXT.match(line)
    start = column.end() if column and column.end() < 2 * width // 3 else 6
    return textwrap.wrap(
        line,
        width,
        subsequent_indent=" " * (start if line.startswith(" ") else 0),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]


class Parser(argparse.ArgumentParser):
    """Argument parser that raises UsageError and suggests the nearest option.

    Further positional arguments go to the list that `more` names.
    """

    more: str | None = None

    def __init__(self, **kwargs):
        kwargs.setdefault("formatter_class", _Formatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str):
        """Raise an argparse error as UsageError."""
        raise UsageError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")

    def parse_known_args(self, args=None, namespace=None):
        """Parse; a value such as -0.5,1.2,0.3 after an option is not taken for an option."""
        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            if words and _NEGATIVE.match(word) and _LONG.match(words[-1]):
                words[-1] += f"={word}"
            else:
                words.append(word)
        return super().parse_known_args(words, namespace)

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
        if "--set" in self._option_string_actions and (assignment := _assignment(extra)):
            hint = f"did you mean --set {assignment}?"
        what = "unknown option" if word.startswith("-") else "one argument too many:"
        raise UsageError(f"{what} {word}; {hint}")


def _assignment(words: list[str]) -> str:
    """Return ``klip.truncate=5`` where ``strun`` would take ``--steps.klip.truncate=5``."""
    from gpucoron.core.parameters import STEPS

    option = next((word for word in words if word.startswith("--")), "")
    after = words[words.index(option) + 1 :] if option else []
    name, equals, value = option.removeprefix("--").removeprefix("steps.").partition("=")
    step, dot, parameter = name.partition(".")
    if not (dot and parameter and step in STEPS):
        return ""
    return f"{name}={value if equals else (after or ['VALUE'])[0]}"


def run_parser() -> Parser:
    """Build the parser of ``gpucoron ASN``."""
    words = _TABLES["run"]
    commands = "\n".join(f"  gpucoron {name:<10s}  {text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="gpucoron",
        usage=f"gpucoron ASN [ASN ...] [options]\n       gpucoron {{{','.join(COMMANDS)}}} ...",
        description=words["description"].format(commands=commands),
        epilog=words["epilog"].format(
            exit_codes=_TABLES["exit_codes"], parameters=_parameter_list()
        ),
    )
    add_options(parser, words["arguments"])
    add_run_options(parser, "run")
    return parser


def command_parser(command: str, **values: Any) -> Parser:
    """Build the parser of a command, without the options that it shares with others.

    Parameters
    ----------
    command : str
        One of `COMMANDS`.
    **values
        Filled in for what stands in braces in its description and help.
    """
    words = _TABLES[command]
    parser = Parser(
        prog=f"gpucoron {command}",
        description=words.get("description", COMMANDS[command]).format(**values),
        epilog=words.get("epilog", "").format(exit_codes=_TABLES["exit_codes"]),
    )
    add_options(parser, words["arguments"], **values)
    return parser


def add_options(
    group: Any, table: Mapping[str, Mapping[str, Any]], command: str = "", **values: Any
) -> None:
    """Add options of ``options.toml`` to a parser or group, but those of other commands only."""
    for flags, entry in table.items():
        words = dict(entry)
        if command not in words.pop("only", [command]):
            continue
        words["help"] = words["help"].format(**values)
        if "type" in words:
            words["type"] = _TYPES[words["type"]]
        if words.get("action") == "boolean":
            words["action"] = argparse.BooleanOptionalAction
        group.add_argument(*flags.split(), **words)


def add_run_options(parser: Parser, command: str) -> None:
    """Add the options of a run, for ``gpucoron ASN`` ("run") or another command."""
    for title in ("processing", "files"):
        group = parser.add_argument_group(title)
        add_options(group, _TABLES[title], command, products=", ".join(_LISTED))
    add_logging_options(parser)
    parser.add_argument(
        "--version",
        action="version",
        version=f"gpucoron {__version__}",
        help="print the version and exit",
    )


def add_logging_options(parser: Parser) -> None:
    """Add the logging options."""
    add_options(parser.add_argument_group("logging"), _TABLES["logging"])


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
    lines = (f"  {left:<38s}  {text}" for left, text in rows)
    return "\n".join(["step parameters (--set) and their defaults:", *lines])


_TYPES = {"int": int, "float": float, "products": _products}
