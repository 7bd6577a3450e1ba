"""The ``.cfg`` files of earlier versions of jwst, such as ``calwebb_coron3.cfg``.

jwst reads them with the package configobj, which is installed with jwst only; this is the part of
its syntax that they have: no values of several lines, and two levels of sections.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["parse_cfg"]

_LEVELS = 2  # [steps] and [[klip]]
_LONGEST = 4000  # characters of a line
_QUOTED = r"""\"[^\"]*\"|'[^']*'"""
_SECTION = re.compile(r"(\[+)([^\[\]]+)(\]+)\s*(#.*)?")
_ENTRY = re.compile(rf"(\w+)\s*=((?:{_QUOTED}|[^#\"'])*)(#.*)?")
_ITEM = re.compile(rf"(?:{_QUOTED}|[^,\"'])+")
_WORDS = {"true": True, "false": False, "none": None}


def parse_cfg(text: str) -> dict[str, Any]:
    """Parse a ``.cfg`` file into nested dicts.

    Returns
    -------
    dict
        Values are True, False, None, numbers, texts or lists of these; sections are dicts.

    Raises
    ------
    ValueError
        A line is neither NAME = VALUE nor a section, or repeats one of these.
    """
    open_sections: list[dict[str, Any]] = [{}]
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        fits = len(line) <= _LONGEST
        section, entry = fits and _SECTION.fullmatch(line), fits and _ENTRY.fullmatch(line)
        value: Any
        if section:
            level, name, value = len(section[1]), section[2].strip(" \"'"), {}
            known = len(section[3]) == level <= min(len(open_sections), _LEVELS)
        else:
            level, known = len(open_sections), bool(entry)
            name, value = (entry[1], _value(entry[2])) if entry else ("", None)
        if not known or name in open_sections[level - 1]:
            raise ValueError(
                f"line {number} is {line[:60]!r}, expected NAME = VALUE or [SECTION], each once"
            )
        open_sections[level - 1][name] = value
        if section:
            open_sections[level:] = [value]
    return open_sections[0]


def _value(text: str) -> Any:
    """Return a list where there are commas outside quotes, otherwise one value."""
    items = [item.strip() for item in _ITEM.findall(text)]
    if "," in re.sub(_QUOTED, "", text):
        return [_scalar(item) for item in items if item]
    return _scalar(text.strip())


def _scalar(text: str) -> Any:
    """Return a number, True, False, None, or the text; quotes make no difference."""
    if text[:1] in ("'", '"'):
        text = text[1:-1]
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
