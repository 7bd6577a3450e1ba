"""``gpucoron completion``: scripts by which a shell completes commands, options and files."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gpucoron.cli.options import COMMANDS, Parser, command_parser, run_parser
from gpucoron.cli.streams import write_lines
from gpucoron.errors import UsageError


def main(argv: list[str]) -> int:
    """Run ``gpucoron completion``."""
    options = make_parser().parse_args(argv)
    try:
        import shtab
    except ImportError:
        raise UsageError("completion needs the package shtab: pip install shtab") from None

    write_lines(_script(shtab, options.shell).splitlines())
    return 0


def make_parser() -> Parser:
    """Build the parser of this command."""
    return command_parser("completion")


# shtab knows words that are commands and words that are files; the first one here may be either.
_FIRST_WORD = "_gpucoron_first_word"
_BASH = f"""
{_FIRST_WORD}() {{
  compgen -W "{" ".join(COMMANDS)}" -- "$1"
  compgen -f -- "$1"
}}
"""
_ZSH = (
    "_describe 'gpucoron commands' _commands",
    "_describe 'gpucoron commands' _commands\n  _files",
)
_FISH = "\ncomplete -c gpucoron -n 'test (count (commandline -opc)) -eq 1' -F"


def _script(shtab: Any, shell: str) -> str:
    whole = run_parser()
    asn: Any = next(action for action in whole._actions if action.dest == "asn")
    asn.complete = {"bash": _FIRST_WORD}
    if shell != "bash":
        whole._remove_action(asn)
    commands = whole.add_subparsers()
    for name, text in COMMANDS.items():
        own = import_module(f"gpucoron.cli.{name}").make_parser()
        commands.add_parser(name, help=text, parents=[own], add_help=False)
    for parser in (whole, *commands.choices.values()):
        action: Any
        for action in parser._actions:
            if action.metavar in _FILES and action is not asn:
                action.complete = shtab.FILE
            elif action.metavar == "DIR" or action.dest == "directory":
                action.complete = shtab.DIRECTORY
    script = shtab.complete(whole, shell, preamble={"bash": _BASH})
    return script.replace(*_ZSH) + _FISH * (shell == "fish")


_FILES = ("ASN", "FILE", "PATH")
