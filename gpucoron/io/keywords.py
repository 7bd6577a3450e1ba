"""What the JWST schemas say about each header keyword.

The table, `keywords.json`, is written by tests/io/keyword_facts.py.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

__all__ = ["Keyword", "keyword_order", "keywords"]

_TABLE = Path(__file__).with_name("keywords.json")


class Keyword(NamedTuple):
    """One header keyword of a JWST integration cube."""

    attribute: str  # below "meta", dotted
    keyword: str
    hdu: str  # EXTNAME, "" for PRIMARY
    type: str  # s, n, i or b: string, number, integer, boolean
    rule: str  # how values of several exposures become one; "" for the first exposure's
    in_table: int  # 1 or 0: whether HDRTAB has a column for it


@functools.cache
def keywords() -> tuple[Keyword, ...]:
    """Return every keyword, in the order of headers and of HDRTAB's columns."""
    return tuple(map(Keyword._make, json.loads(_TABLE.read_text())))


@functools.cache
def keyword_order(hdu: str) -> dict[str, int]:
    """Return the place of each keyword of `hdu` ("" for PRIMARY) in the usual order."""
    return {k.keyword: i for i, k in enumerate(keywords()) if k.hdu == hdu}
