"""Validators of parameter values.

Each check takes a value as given (text from a command line, or anything from a file or a call),
and returns it in its own type or raises ValueError saying what it expected.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

#: A check: the value in its own type, or ValueError.
Check = Callable[[Any], Any]

__all__ = [
    "bit_flags",
    "boolean",
    "choice",
    "circles",
    "file_name",
    "fill_value",
    "in_pixels",
    "integer",
    "length",
    "names",
    "number",
    "optional",
    "pair",
    "pairs",
    "thresholds",
]

_LARGEST = 2**31 - 1
_LARGEST_FLOAT32 = 3.4e38
_NONE = ("", "none", "null", "indef")
_WORDS = dict.fromkeys(("true", "yes", "on", "1"), True)
_WORDS |= dict.fromkeys(("false", "no", "off", "0"), False)


def boolean(value: object) -> bool:
    """Check for true or false, also as words."""
    if isinstance(value, bool):
        return value
    if str(value).strip().lower() in _WORDS:
        return _WORDS[str(value).strip().lower()]
    raise ValueError("expected true or false")


def _float(value: Any) -> float:
    """Return a finite number, or NaN where there is none."""
    try:
        parsed = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return parsed if math.isfinite(parsed) else math.nan


def integer(minimum: int, maximum: int = _LARGEST) -> Check:
    """Make a check for a whole number from `minimum` to `maximum`."""

    def check(value: object) -> int:
        parsed = _float(value)
        if not parsed >= minimum or parsed != int(parsed):
            raise ValueError(f"expected an integer of {minimum} or more")
        if parsed > maximum:
            raise ValueError(f"expected an integer from {minimum} to {maximum}")
        return int(parsed)

    return check


def integers(minimum: int, maximum: int = _LARGEST) -> Check:
    """Make a check for one whole number, or several different ones, within limits."""
    one = integer(minimum, maximum)

    def check(value: Any) -> int | tuple[int, ...]:
        if isinstance(value, str) and "," in value:
            value = [part for part in value.strip("[]() ").split(",") if part.strip()]
        if isinstance(value, str) or not hasattr(value, "__len__"):
            return one(value)
        try:
            several = tuple(one(item) for item in value)
        except ValueError:
            several = ()
        if not several or len(set(several)) < len(several):
            raise ValueError(
                f"expected an integer from {minimum} to {maximum}, or several different ones"
            )
        return several[0] if len(several) == 1 else several

    return check


def number(expected: str = "a number", valid: Callable = lambda x: True) -> Check:
    """Make a check for a number that `valid` accepts, of magnitude up to 2e9."""

    def check(value: object) -> float:
        parsed = _float(value)
        if math.isnan(parsed) or not valid(parsed):
            raise ValueError(f"expected {expected}")
        if abs(parsed) > _LARGEST:
            raise ValueError(f"expected {expected}, of magnitude up to 2e9")
        return parsed

    return check


def length(value: object) -> float | str:
    """Check for a length of 0 or more: pixels, or text with a unit such as ``"0.5arcsec"``."""
    text = str(value).strip().lower()
    number = text
    for unit in ("arcsec", "pixels", "pixel", "px"):
        if text.endswith(unit):
            number, text = text[: -len(unit)].strip(), unit
            break
    parsed = math.nan if isinstance(value, bool) else _float(number)
    if not 0 <= parsed <= _LARGEST:
        raise ValueError("expected a length of 0 or more, pixels or with a unit, as 0.5arcsec")
    return f"{parsed:g}arcsec" if text == "arcsec" else parsed


def in_pixels(value: float | str, scale: float) -> float:
    """Return a length that `length` accepted in pixels of `scale` arcsec."""
    return float(value.removesuffix("arcsec")) / scale if isinstance(value, str) else value


def choice(*names: str) -> Check:
    """Make a check for one of a few words, in any case."""

    def check(value: object) -> str:
        if isinstance(value, str) and value.strip().lower() in names:
            return value.strip().lower()
        raise ValueError("expected " + " or ".join(repr(n) for n in names))

    return check


def pair(item: Check, expected: str) -> Check:
    """Make a check for two values, in a sequence or in text such as ``"10, 20"``."""
    return _values(2, item, expected)


def _values(count: int, item: Check, expected: str) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        parts = value
        if isinstance(value, str):
            parts = value.strip("[]() ").replace(",", " ").split()
        try:
            parts = list(parts)
            if len(parts) != count:
                raise ValueError
            return tuple(item(part) for part in parts)
        except (TypeError, ValueError):
            raise ValueError(f"expected {expected}") from None

    return check


def pairs(item: Check, expected: str) -> Check:
    """Make a check for pairs of values one after another, such as ``"10, 20, 11, 21"``."""

    def check(value: Any) -> tuple[Any, ...]:
        parts = value
        if isinstance(value, str):
            parts = value.translate(str.maketrans("[](),", "     ")).split()
        try:
            parts = list(parts)
            if parts and all(isinstance(part, (list, tuple)) and len(part) == 2 for part in parts):
                parts = [number for part in parts for number in part]
            if not parts or len(parts) % 2:
                raise ValueError
            return tuple(item(part) for part in parts)
        except (TypeError, ValueError):
            raise ValueError(f"expected {expected}") from None

    return check


def circles(farthest: float) -> Check:
    """Make a check for circles: two offsets and a radius each, in numbers up to `farthest`.

    Text has a semicolon between circles: ``"0.5,-1.2,0.3; 2,0,0.4"``.
    """
    expected = (
        f"expected two offsets and a radius above 0 in arcsec, all up to {farthest:g}, as "
        "0.5,-1.2,0.3; several with ';' between them"
    )
    one = _values(3, number("", lambda x: abs(x) <= farthest), expected.removeprefix("expected "))

    def check(value: Any) -> tuple[tuple[float, float, float], ...]:
        parts = value
        if isinstance(value, str):
            parts = [part for part in value.strip("[]() ").split(";") if part.strip()]
        elif _is_triple(value):
            parts = [value]
        try:
            found = tuple(one(part) for part in parts)
        except TypeError:
            found = ()
        if not found or any(radius <= 0 for *_, radius in found):
            raise ValueError(expected)
        return found

    return check


def _is_triple(value: Any) -> bool:
    """Whether a value is one circle, not a sequence of circles."""
    single = (int, float)
    return (
        hasattr(value, "__len__") and bool(len(value)) and all(isinstance(v, single) for v in value)
    )


def names(value: Any) -> tuple[str, ...]:
    """Check for names, in a sequence or in text with commas between them."""
    parts = value.split(",") if isinstance(value, str) else value
    parts = [parts] if isinstance(parts, os.PathLike) else parts
    try:
        found = tuple(os.fspath(part).strip() for part in parts)
    except (TypeError, AttributeError):
        found = ()
    if not found or not all(name and name.isprintable() for name in found):
        raise ValueError("expected a name, or several with commas between them")
    return tuple(dict.fromkeys(found))


def optional(check: Check) -> Check:
    """Make a check that also accepts None, and words for it."""

    def checked(value: object) -> Any:
        if value is None or isinstance(value, str) and value.strip().lower() in _NONE:
            return None
        return check(value)

    return checked


def thresholds(value: object) -> str:
    """Check for one or two positive numbers, kept as the text that jwst's parameter is."""
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    words = text.replace(",", " ").split()
    if not 1 <= len(words) <= 2 or not all(_float(word) > 0 for word in words):
        raise ValueError("expected one or two positive numbers, such as '5.0 4.0'")
    return " ".join(words)


def fill_value(value: object) -> str:
    """Check for a fill value of drizzle, kept as text."""
    text = str(value).strip().upper()
    if text not in ("NAN", "INDEF") and not abs(_float(text)) <= _LARGEST_FLOAT32:
        raise ValueError("expected NAN, INDEF or a number that single precision can hold")
    return text


def bit_flags(value: object) -> str:
    """Check for a selection of DQ bits, kept as text."""
    from gpucoron.ops.dq import interpret_bit_flags

    text = "" if value is None else str(value).strip()
    flags = interpret_bit_flags(text)  # its ValueError says what it expected
    if flags is not None and not 0 <= (~flags if text.startswith("~") else flags) < 1 << 32:
        raise ValueError("expected DQ flags that 32 bits can hold")
    return text


def file_name(value: str | os.PathLike[str] | None) -> str:
    """Check for the name of a file; empty for none."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if value is None:
        return ""
    raise ValueError("expected the name of a file")
