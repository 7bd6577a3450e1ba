"""Header keywords: which a product inherits, where a new one goes, values as plain Python."""

from __future__ import annotations

import copy
import math
import re
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from astropy.io import fits

from gpucoron.io.keywords import keyword_order

__all__ = [
    "add_history",
    "ascii_text",
    "header_values",
    "inherited",
    "layout",
    "number_pair",
    "plain_value",
    "quiet",
    "set_keyword",
]

_LAYOUT = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|GROUPS|EXTEND|BSCALE|BZERO|BLANK|EXTNAME|EXTVER"
    r"|EXTLEVEL|CHECKSUM|DATASUM|TFIELDS|T(TYPE|FORM|UNIT|NULL|SCAL|ZERO|DISP|BCOL|DIM)\d+"
    r"|DATAMIN|DATAMAX|THEAP"
)
_COMMENTARY = ("", "HISTORY", "COMMENT")
_LINE = 72  # characters of a HISTORY card
_filters = threading.RLock()  # Python's warning filters belong to all threads


@contextmanager
def quiet() -> Iterator[None]:
    """Silence astropy's warnings on harmless breaches of the FITS standard."""
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def ascii_text(text: Any) -> str:
    """Return `text` with what a FITS header cannot hold written as backslash escapes."""
    plain = str(text).encode("ascii", "backslashreplace").decode("ascii")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in plain)


def layout(header: fits.Header) -> fits.Header:
    """Return copies of the cards that describe the data of an HDU: BITPIX, NAXIS, TFORM, ..."""
    return fits.Header(copy.copy(c) for c in header.cards if _LAYOUT.fullmatch(c.keyword))


def inherited(header: fits.Header | None) -> fits.Header:
    """Return copies of the cards that do not describe the data of an HDU; none of None."""
    cards = () if header is None else header.cards
    return fits.Header(copy.copy(c) for c in cards if not _LAYOUT.fullmatch(c.keyword))


def plain_value(value: Any) -> Any:
    """Return a card's value: None if undefined, a float if an integer that NumPy cannot take."""
    if isinstance(value, int) and abs(value) >= 2**63:
        return float(value)
    return None if isinstance(value, fits.card.Undefined) else value


def number_pair(header: Any, first: str, second: str) -> tuple[float, float] | None:
    """Return two keywords that are finite numbers; None where either is not."""
    values = [header.get(keyword) for keyword in (first, second)]
    if all(type(value) in (int, float) and math.isfinite(value) for value in values):
        return float(values[0]), float(values[1])
    return None


def header_values(header: fits.Header) -> dict[str, Any]:
    """Return the first value of each keyword, as `plain_value` has it."""
    values: dict[str, Any] = {}
    for card in header.cards:
        if card.keyword in _COMMENTARY or card.rawkeyword in values:
            continue
        values[card.rawkeyword] = plain_value(card.rawvalue)
    return values


def set_keyword(
    header: fits.Header,
    keyword: str,
    value: Any,
    comment: str = "",
    *,
    hdu: str = "",
    section: str = "",
) -> None:
    """Set a keyword of a product's header, in place; a new one goes to its usual place in `hdu`.

    Parameters
    ----------
    header : astropy Header
        Without the cards that describe the data.
    keyword : str
    value : str, bool, int or float
        What is not ASCII in a text becomes backslash escapes.
    comment : str
        Empty keeps the keyword's present comment.
    hdu : str
        EXTNAME, "" for PRIMARY.
    section : str
        Title to put above a new keyword, unless the header has it already.
    """
    if isinstance(value, str):
        value = ascii_text(value)
    if keyword in header:
        header[keyword] = (value, comment) if comment else value
        return
    place = _place(header, keyword, hdu)
    if section and not any(section in str(line) for line in header.get("", ())):
        for line in ("", section, ""):
            header.insert(place, ("", line), useblanks=False)
            place += 1
    header.insert(place, (keyword, value, comment), useblanks=False)


def _place(header: fits.Header, keyword: str, hdu: str) -> int:
    """Return where a new keyword goes: after the last one that comes before it."""
    order = keyword_order(hdu)
    if keyword not in order:
        return len(header)
    before = {known for known, rank in order.items() if rank < order[keyword]}
    return max((i for i, known in enumerate(header, start=1) if known in before), default=0)


def add_history(header: fits.Header, lines: Iterable[str], keyword: str = "HISTORY") -> None:
    """Append HISTORY (or COMMENT) cards, a long line over several of them."""
    for line in lines:
        text = ascii_text(line)
        for start in range(0, max(len(text), 1), _LINE):
            header.append((keyword, text[start : start + _LINE]), end=True)
