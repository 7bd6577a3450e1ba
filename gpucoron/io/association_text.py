"""The text of an association: JSON, JSON with trailing commas or comments, or YAML."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from gpucoron.errors import AssociationError, one_line
from gpucoron.io.asdf.guard import AsdfTooComplex, UnsupportedAsdf, check_events

__all__ = ["parse_association"]

log = logging.getLogger("gpucoron")

_LARGEST_MENDED = 4 << 20  # characters; real ones have some thousand
_STRING = r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)'  # or to the end of the text: linear in time
_COMMENT = re.compile(rf"{_STRING}|(//[^\n]*|\#[^\n]*)", re.DOTALL)
_COMMA = re.compile(rf"{_STRING}|(,)(?=\s*[\]}}])", re.DOTALL)


def parse_association(content: bytes, name: str) -> Any:
    """Parse the contents of a file called `name`: JSON, or YAML as earlier versions of jwst write.

    Trailing commas and comments in JSON, and YAML in a file that is not called ``.yaml`` or
    ``.yml``, are read with a warning. All scalars of YAML but null are texts, as they are written:
    a program 01234 would otherwise be an octal number.

    Raises
    ------
    AssociationError
        Neither of the two (with line and column, without the file), a key twice in one object,
        nested too deeply, or YAML with aliases.
    """
    try:
        text = content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        raise AssociationError(f"not valid JSON: byte {error.start} is not text") from error
    named_yaml = name.lower().endswith((".yaml", ".yml"))
    try:
        return _json(text)
    except json.JSONDecodeError as error:
        mended, what = _mended(text)
        if not named_yaml and what:
            table = _json_or_error(mended)
            log.warning("%s: not valid JSON, passing over %s", name, what)
            return table
        if named_yaml or not text.lstrip().startswith(("{", "[")):
            table = _yaml(text, strict=named_yaml)
            if not named_yaml and isinstance(table, dict):
                log.warning("%s: is YAML, expected JSON; read as YAML", name)
            if named_yaml or isinstance(table, dict):
                return table
        raise _not_json(error) from error


def _json_or_error(text: str) -> Any:
    try:
        return _json(text)
    except json.JSONDecodeError as error:
        raise _not_json(error) from error


def _not_json(error: json.JSONDecodeError) -> AssociationError:
    lines = error.doc.splitlines() or [""]
    line = lines[min(error.lineno, len(lines)) - 1].strip()
    return AssociationError(
        f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg} "
        f"(the line reads: {line[:60]})"
    )


def _json(text: str) -> Any:
    """Parse JSON; raise JSONDecodeError where it is none, AssociationError for all else."""

    def no_duplicates(pairs):
        _check_keys((key for key, _ in pairs), "JSON object")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=no_duplicates)
    except RecursionError as error:
        raise AssociationError("not an association: nested too deeply") from error
    except (json.JSONDecodeError, AssociationError):
        raise
    except ValueError as error:
        raise AssociationError(f"not valid JSON: {error}") from error


def _check_keys(keys: Iterable[Any], where: str) -> None:
    twice = next((key for key, count in Counter(keys).items() if count > 1), None)
    if twice is not None:
        raise AssociationError(f"key {twice!r} appears twice in one {where}, expected once")


def _mended(text: str) -> tuple[str, str]:
    """Blank comments and commas before ] or }; return the text, and in words what was blanked."""
    found: list[int] = []  # places

    def blank(match: re.Match) -> str:
        if match[1] is None:
            return match[0]
        found.append(match.start())
        return " " * len(match[0])

    what = []
    for pattern, noun in ((_COMMENT, "comment"), (_COMMA, "trailing comma")):
        found.clear()
        if len(text) <= _LARGEST_MENDED:
            text = pattern.sub(blank, text)
        if found:
            line = text.count("\n", 0, found[0]) + 1
            several = f"{len(found)} {noun}s, the first in line {line}"
            what.append(several if len(found) > 1 else f"a {noun} in line {line}")
    return text, " and ".join(what)


def _yaml(text: str, strict: bool) -> Any:
    """Parse YAML without aliases; where it cannot be, raise, or return None if not `strict`."""
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):
        """Makes dicts, lists, texts and None, and refuses a key that appears twice."""

        yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith(":null")]
            for first, resolvers in base.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node, deep=False):
            _check_keys((key.value for key, _ in node.value if key.id == "scalar"), "YAML mapping")
            return super().construct_mapping(node, deep)

    try:
        check_events(_without_aliases(yaml.parse(text, Loader=base)))
        return yaml.load(text, Loader=Loader)
    except (AsdfTooComplex, UnsupportedAsdf) as problem:
        raise AssociationError(f"not an association: {problem}") from problem
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as problem:
        if isinstance(problem, AssociationError):
            raise
        if not strict:
            return None
        mark = getattr(problem, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        why = one_line(getattr(problem, "problem", None) or problem)
        raise AssociationError(f"not valid YAML{place}: {why}") from problem


def _without_aliases(events: Iterable[Any]) -> Iterator[Any]:
    from yaml.events import AliasEvent

    for event in events:
        if isinstance(event, AliasEvent):
            raise AssociationError(
                f"line {event.start_mark.line + 1}: YAML alias *{event.anchor[:60]}, expected none"
            )
        yield event
