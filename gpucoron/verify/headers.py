"""Compare header keywords; list those that may differ, with the reason."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any, NamedTuple

import numpy as np


class Expected(NamedTuple):
    """A keyword that may differ, as ``expected.toml`` describes it."""

    products: str
    hdu: str
    keyword: str
    reason: str
    within: float | str | None = None


class ExpectedExtension(NamedTuple):
    """An extension that only one of the two has."""

    products: str
    extension: str
    reason: str


_TABLES = tomllib.loads(
    resources.files(__package__).joinpath("expected.toml").read_text(encoding="utf-8")
)
EXPECTED_KEYWORDS = tuple(Expected(**row) for row in _TABLES["keywords"])
EXPECTED_EXTENSIONS = tuple(ExpectedExtension(**row) for row in _TABLES["extensions"])

_NOT_COMPARED = {"", "HISTORY", "COMMENT", "CHECKSUM", "DATASUM"}
_EXTENSIONS = ("SCI", "ERR", "DQ", "AREA", "INT_TIMES", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")
_POLYGON_DEG = 2e-9


@dataclass(frozen=True)
class KeywordDifference:
    """A keyword that differs, or with an empty `keyword` a whole extension.

    `ours` or `theirs` is None where it is absent; `reason` is empty where it should not differ.
    """

    product: str
    file: str
    hdu: str
    keyword: str
    ours: Any
    theirs: Any
    reason: str = ""


def compare_headers(product: str, file: str, ours: Any, theirs: Any) -> Iterator[KeywordDifference]:
    """Compare two files' extensions and keywords (astropy HDULists) without comments."""
    mine, other = ([hdu.name for hdu in hdus] for hdus in (ours, theirs))
    for name in [*mine, *(n for n in other if n not in mine)]:
        if (name in mine) != (name in other):
            yield KeywordDifference(
                product,
                file,
                name,
                "",
                name if name in mine else None,
                name if name in other else None,
                _extension_reason(product, name, name in mine),
            )
    shared = [name for name in mine if name in other]
    if shared != [name for name in other if name in mine]:
        yield KeywordDifference(product, file, "", "", " ".join(mine), " ".join(other))
    for name in shared:
        yield from _compare(product, file, name, ours[name].header, theirs[name].header)


def _compare(product, file, hdu, ours, theirs):
    for keyword in dict.fromkeys([*ours, *theirs]):
        if keyword in _NOT_COMPARED:
            continue
        a, b = ours.get(keyword), theirs.get(keyword)
        if a is b or (type(a) is type(b) and a == b):
            continue
        yield KeywordDifference(
            product, file, hdu, keyword, _plain(a), _plain(b), _reason(product, hdu, keyword, a, b)
        )


def _plain(value):
    return value if isinstance(value, str | bool | int | float) or value is None else str(value)


def _applies(products: str, product: str) -> bool:
    return products == "*" or product in products.split()


def _extension_reason(product, name, is_ours):
    for products, extension, reason in EXPECTED_EXTENSIONS:
        if not _applies(products, product):
            continue
        if extension == name or (extension == "*" and not is_ours and name not in _EXTENSIONS):
            return reason
    return ""


def _reason(product, hdu, keyword, ours, theirs):
    for row in EXPECTED_KEYWORDS:
        if (
            _applies(row.products, product)
            and row.hdu == hdu
            and fnmatchcase(keyword, row.keyword)
            and _within(ours, theirs, row.within)
        ):
            return row.reason
    return ""


def _within(ours, theirs, limit) -> bool:
    if limit is None:
        return True
    if limit == "polygon":
        return _same_polygon(str(ours), str(theirs))
    numbers = all(isinstance(v, float | int) and not isinstance(v, bool) for v in (ours, theirs))
    return numbers and abs(ours - theirs) <= limit


def _same_polygon(ours: str, theirs: str) -> bool:
    """Compare two S_REGION texts, starting at any corner, in the same sense."""
    frame, other = (re.split(r"\d", text, maxsplit=1)[0].strip(" -") for text in (ours, theirs))
    if frame != other:
        return False
    a, b = (np.array(re.findall(r"-?\d+\.?\d*", text), dtype=float) for text in (ours, theirs))
    if a.size != b.size or a.size % 2 or not a.size:
        return False
    a, b = a.reshape(-1, 2), b.reshape(-1, 2)
    return any(
        np.allclose(np.roll(a, k, axis=0), b, rtol=0, atol=_POLYGON_DEG) for k in range(len(a))
    )
