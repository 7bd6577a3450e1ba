"""Header cards kept as the 80-byte images they had, so that editing a few costs only those few."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gpucoron.io.card import ascii_text, card_comment, card_text, card_value
from gpucoron.io.keywords import keyword_order

__all__ = ["Cards", "ascii_text", "card_text", "card_value", "image_cards", "table_cards"]

_STRUCTURE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|GROUPS|EXTEND|BSCALE|BZERO|BLANK|EXTNAME|EXTVER"
    r"|EXTLEVEL|CHECKSUM|DATASUM|TFIELDS|T(TYPE|FORM|UNIT|NULL|SCAL|ZERO|DISP|BCOL|DIM)\d+"
    r"|DATAMIN|DATAMAX|END"
)
_COMMENTARY = ("", "HISTORY", "COMMENT")
_BITPIX = {"float32": -32, "float64": -64, "int32": 32, "uint32": 32, "uint8": 8, "int16": 16}
_TFORM = {"i1": "B", "i2": "I", "i4": "J", "i8": "K", "f4": "E", "f8": "D", "u1": "B", "b1": "L"}


class Cards:
    """Cards of one HDU, without those that describe the layout of its data.

    Parameters
    ----------
    header : gpucoron.io.card.RawHeader or astropy.io.fits.Header, optional
        Where to start from.
    hdu : str
        EXTNAME ("" for PRIMARY); decides where a new keyword goes.
    """

    def __init__(self, header=None, hdu: str = ""):
        self.hdu = hdu
        self._texts: list[tuple[str, str]] = []
        self.values: dict[str, Any] = {}
        if header is not None:
            self._read(header)

    def _read(self, header):
        text = getattr(header, "text", None)
        if text is None:
            text = header.tostring(sep="", endcard=False, padding=False)
        kept = False
        for start in range(0, len(text), 80):
            image = text[start : start + 80]
            keyword = image[:8].rstrip()
            if keyword != "CONTINUE":
                kept = not _STRUCTURE.fullmatch(keyword)
                if kept:
                    self._texts.append((keyword, image))
            elif kept:  # what goes on from a card that is left out goes, too
                previous, so_far = self._texts[-1]
                self._texts[-1] = (previous, so_far + image)
        for keyword, card in self._texts:
            if keyword not in _COMMENTARY and keyword not in self.values:
                self.values[keyword] = card_value(card)

    def set(self, keyword: str, value: Any, comment: str = "", section: str = "") -> None:
        """Set a keyword; a new one goes to its usual place, under `section` where that is new."""
        text = card_text(keyword, value, comment or self._comment(keyword))
        if keyword in self.values:
            place = next(i for i, (known, _) in enumerate(self._texts) if known == keyword)
            self._texts[place] = (keyword, text)
        else:
            place = self._place(keyword)
            if section and not any(section in known for _, known in self._texts):
                self._texts[place:place] = [
                    ("", line.ljust(80)) for line in ("", " " * 8 + section, "")
                ]
                place += 3
            self._texts.insert(place, (keyword, text))
        self.values[keyword] = value.item() if hasattr(value, "item") else value

    def _comment(self, keyword):
        """Return the comment that the keyword's card has now."""
        if keyword not in self.values:
            return ""
        return card_comment(next(text for known, text in self._texts if known == keyword))

    def _place(self, keyword):
        """Return where a keyword not yet there goes: after the last one that comes before it."""
        order = keyword_order(self.hdu)
        rank = order.get(keyword)
        place = len(self._texts)
        if rank is not None:
            earlier = [
                i
                for i, (known, _) in enumerate(self._texts)
                if order.get(known, len(order) + 10**6) < rank
            ]
            place = earlier[-1] + 1 if earlier else 0
        return place

    def remove(self, keywords: Iterable[str]) -> None:
        """Remove keywords, those that are there."""
        gone = set(keywords)
        self._texts = [item for item in self._texts if item[0] not in gone]
        for keyword in gone:
            self.values.pop(keyword, None)

    def history(self, lines: Iterable[str]) -> None:
        """Append HISTORY cards, long lines over several of them."""
        for line in lines:
            text = ascii_text(line)
            for start in range(0, max(len(text), 1), 72):
                self._texts.append(("HISTORY", f"HISTORY {text[start : start + 72]}".ljust(80)))

    def comment(self, lines: Iterable[str]) -> None:
        """Append COMMENT cards."""
        self._texts += [("COMMENT", f"COMMENT {ascii_text(line)[:72]}".ljust(80)) for line in lines]

    def update(self, values: Mapping[str, Any], section: str = "") -> None:
        """Set several keywords, keeping the comments they have."""
        for keyword, value in values.items():
            self.set(keyword, value, section=section)

    @property
    def text(self) -> str:
        """The cards, end to end."""
        return "".join(text for _, text in self._texts)


def _names(name):
    if not name:
        return []
    return [card_text("EXTNAME", name, "extension name"), card_text("EXTVER", 1, "extension value")]


def image_cards(name: str, dtype: str, shape: tuple[int, ...]) -> str:
    """Return the cards that describe an image; PRIMARY without data where `name` is empty.

    Parameters
    ----------
    name : str
        EXTNAME.
    dtype : str
        NumPy name of the type; uint32 is stored as JWST files have it, with BZERO 2^31.
    shape : tuple of int
        In NumPy's order.
    """
    if name:
        cards = [card_text("XTENSION", "IMAGE", "image extension")]
    else:
        cards = [card_text("SIMPLE", True, "conforms to FITS standard")]
    cards += [
        card_text("BITPIX", _BITPIX[dtype], "array data type"),
        card_text("NAXIS", len(shape), "number of array dimensions"),
    ]
    cards += [card_text(f"NAXIS{i}", n) for i, n in enumerate(reversed(shape), start=1)]
    if name:
        cards += [
            card_text("PCOUNT", 0, "number of parameters"),
            card_text("GCOUNT", 1, "number of groups"),
        ]
    else:
        cards.append(card_text("EXTEND", True))
    if dtype == "uint32":
        cards += [card_text("BSCALE", 1), card_text("BZERO", 2147483648)]
    return "".join(cards + _names(name))


def table_cards(name: str, dtype, n_rows: int, units: Mapping[str, str] | None = None) -> str:
    """Return the cards that describe a binary table.

    Parameters
    ----------
    name : str
        EXTNAME.
    dtype : numpy.dtype
        A structured type of numbers, booleans, byte strings, or bytes in a row.
    n_rows : int
        Rows.
    units : mapping, optional
        Column name to TUNIT.
    """
    units = units or {}
    cards = [
        card_text("XTENSION", "BINTABLE", "binary table extension"),
        card_text("BITPIX", 8, "array data type"),
        card_text("NAXIS", 2, "number of array dimensions"),
        card_text("NAXIS1", dtype.itemsize, "bytes in a row"),
        card_text("NAXIS2", n_rows, "rows"),
        card_text("PCOUNT", 0, "number of group parameters"),
        card_text("GCOUNT", 1, "number of groups"),
        card_text("TFIELDS", len(dtype.names), "number of table fields"),
    ]
    for i, column in enumerate(dtype.names, start=1):
        base, shape = dtype[column].base, dtype[column].shape
        count = "" if not shape else str(shape[0])
        if base.kind == "S":
            form = f"{base.itemsize}A"
        else:
            form = count + _TFORM[base.str[1:]]
        cards += [card_text(f"TTYPE{i}", column), card_text(f"TFORM{i}", form)]
        if column in units:
            cards.append(card_text(f"TUNIT{i}", units[column]))
    return "".join(cards + _names(name))
