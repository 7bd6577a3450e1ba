"""Single header cards: writing, and reading values and comments.

What is plainly text, a number or a flag is read and written here, a text over several CONTINUE
cards among it; for anything else astropy is asked, whose import takes 0.3 s.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Any

__all__ = ["RawHeader", "ascii_text", "card_comment", "card_text", "card_value"]

_PLAIN = re.compile(
    r"[A-Z0-9_-]{1,8} *= *(?:'((?:[^']|'')*)'|([TF])|([+-]?\d+(?:\.\d*)?(?:E[+-]?\d+)?)|)"
    r" *(?:/ *(.*?) *)?$"
)
_PIECE = re.compile(r"(?:[A-Z0-9_-]{1,8} *=|CONTINUE {2}) *'((?:[^']|'')*)' *(?:/ *(.*?) *)?$")
_WIDTH, _COMMENT_WIDTH = 67, 64  # of a piece of text, or comment, in one of several cards


def ascii_text(text: Any) -> str:
    """Return `text` with what a FITS header cannot hold written as backslash escapes."""
    plain = str(text).encode("ascii", "backslashreplace").decode("ascii")
    return "".join(c if 32 <= ord(c) < 127 else f"\\x{ord(c):02x}" for c in plain)


def card_text(keyword: str, value: Any, comment: str = "") -> str:
    """Return the card (80 characters, or several times 80) of one keyword."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, str):
        value = ascii_text(value)
        shown = "'" + value.replace("'", "''").ljust(8 if value else 0) + "'"
        if len(shown) > 70:
            return _long_text(keyword, value, comment) or _astropy_text(keyword, value, comment)
    elif isinstance(value, bool | int):
        shown = str(value)[:1].rjust(20) if isinstance(value, bool) else str(value).rjust(20)
    elif isinstance(value, float) and math.isfinite(value):
        shown, comment = _float(value).rjust(20), comment[:47]
    else:
        return _astropy_text(keyword, value, comment[:47])
    text = f"{keyword:8}= {shown.ljust(20)}"
    return (f"{text} / {comment}" if comment else text)[:80].ljust(80)


def _astropy_text(keyword, value, comment):
    from astropy.io import fits

    return str(fits.Card(keyword, value, comment))


def _float(value: float) -> str:
    """Return a float in at most 20 characters, digits beyond cut off as astropy does."""
    mantissa, e, exponent = str(value).replace("e", "E").partition("E")
    return mantissa[: 20 - len(e + exponent)] + e + exponent


def _pieces(text: str, width: int) -> list[str]:
    """Cut a text behind blanks, or within words that are longer than `width`."""
    pieces = []
    while True:
        if len(text) < width:
            return [*pieces, text]
        cut = text.rfind(" ", 0, width) + 1 or width
        pieces.append(text[:cut])
        text = text[cut:]
        if not text:
            return pieces


def _long_text(keyword, value, comment):
    """Return a text over several cards; None where a doubled quote would be torn apart."""
    pieces = _pieces(value.replace("'", "''"), _WIDTH)
    if any(piece.count("'") % 2 for piece in pieces):
        return None
    lines = [f"'{piece}&'" for piece in pieces]
    if comment:
        parts = _pieces(comment, _COMMENT_WIDTH)
        lines += [f"'&' / {part}" for part in parts[:-1]] + [f"'' / {parts[-1]}"]
    else:
        lines[-1] = f"'{pieces[-1]}'"
    heads = [f"{keyword:8}= "] + ["CONTINUE  "] * (len(lines) - 1)
    return "".join(f"{head}{line}".ljust(80) for head, line in zip(heads, lines, strict=True))


def _long_parts(text):
    """Return what the pieces of a long text and its comments say; None where it is not plain."""
    values, comments = [], []
    for start in range(0, len(text), 80):
        found = _PIECE.match(text[start : start + 80])
        if found is None:
            return None
        piece = found[1].rstrip()
        last = start + 80 >= len(text)  # where nothing follows, an ampersand is one
        values.append(piece if last else piece.removesuffix("&"))
        if found[2]:
            comments.append(found[2])
    return "".join(values).replace("''", "'").rstrip(), " ".join(comments)


def card_value(text: str) -> Any:
    """Return the value of a card, None where it is undefined; of huge integers a float."""
    if len(text) > 80:
        parts = _long_parts(text)
        if parts is not None:
            return parts[0]
    elif found := _PLAIN.match(text):
        string, flag, number, _ = found.groups()
        if string is not None:
            return string.replace("''", "'").rstrip()
        if flag is not None:
            return flag == "T"
        if number is None:
            return None
        return float(number) if "." in number or "E" in number else _integer(int(number))
    from astropy.io import fits

    value = fits.Card.fromstring(text).value
    if isinstance(value, int):
        return _integer(value)
    return None if isinstance(value, fits.card.Undefined) else value


def _integer(value: int) -> int | float:
    """Return an integer, or a float where it is beyond 64 bits, which NumPy cannot take."""
    return value if abs(value) < 2**63 else float(value)


def card_comment(text: str) -> str:
    """Return the comment of a card."""
    if len(text) > 80:
        parts = _long_parts(text)
        if parts is not None:
            return parts[1]
    elif found := _PLAIN.match(text):
        return found[4] or ""
    from astropy.io import fits

    return fits.Card.fromstring(text).comment


class RawHeader:
    """A header as text. Values are parsed when asked for, astropy's object only on request.

    Parameters
    ----------
    text : str
        The cards, 80 characters each, without END; all can be parsed.
    """

    def __init__(self, text: str):
        self.text = text

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        """Where the first card of each keyword is."""
        text = self.text
        return {text[i : i + 8].rstrip(): i for i in range(len(text) - 80, -1, -80)}

    def __contains__(self, keyword: str) -> bool:
        return keyword in self._places

    def get(self, keyword: str, default: Any = None) -> Any:
        """Return the value of a keyword in upper case, `default` where it is not there."""
        start = self._places.get(keyword)
        if start is None:
            return default
        end = start + 80
        while self.text[end : end + 8] == "CONTINUE":
            end += 80
        return card_value(self.text[start:end])

    @functools.cached_property
    def astropy(self):
        """The same as an astropy Header, to which changes stick."""
        from astropy.io import fits

        return fits.Header.fromstring(self.text)

    @property
    def current(self):
        """The astropy Header where one was made, which may have been changed since; else this."""
        return self.__dict__.get("astropy", self)
