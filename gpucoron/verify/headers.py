"""Compare header keywords; list those that may differ, with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

__all__ = ["EXPECTED_EXTENSIONS", "EXPECTED_KEYWORDS", "KeywordDifference", "compare_headers"]


_VERSION = (
    "jwst's own version; gpucoron keeps the version that calibrated the exposures, and writes its "
    "own in GPUCORON"
)
_CRDS = (
    "jwst writes the CRDS context even where the psfmask is given; gpucoron names the psfmask in "
    "R_PSFMAS and keeps the exposures' CRDS keywords"
)
_CRPIX = "px; gpucoron inverts the output grid in closed form, jwst by iteration"
_S_REGION = "the same polygon, listed from another corner; corners within 2e-9 degrees"
_UNKNOWN = (
    "an extension of the exposure that no JWST schema describes (such as those that the publisher "
    "of a data set added): jwst carries it along, gpucoron does not"
)


class Expected(NamedTuple):
    """A keyword that may differ.

    `within` says how far: None is no limit, a number is the largest absolute difference, and
    "polygon" means the same polygon, from any corner.
    """

    products: str  # separated by blanks; * is all
    hdu: str
    keyword: str  # may hold wildcards
    within: float | str | None
    reason: str


#: Every keyword that may differ; docs/deviations.md shows the same table.
EXPECTED_KEYWORDS: tuple[Expected, ...] = (
    Expected("*", "PRIMARY", "DATE", None, "time at which the file was written"),
    Expected("*", "PRIMARY", "GPUCORON", None, "gpucoron's version, only in its own products"),
    Expected("*", "PRIMARY", "CAL_VER", None, _VERSION),
    Expected("*", "PRIMARY", "CAL_VCS", None, "as CAL_VER"),
    Expected("psfalign", "PRIMARY", "CRDS_*", None, _CRDS),
    Expected("*", "ASDF", "NAXIS1", None, "length of the ASDF extension: gpucoron's holds less"),
    Expected("*", "ASDF", "TFORM1", None, "as NAXIS1"),
    Expected("*", "ASDF", "EXTVER", None, "gpucoron numbers this extension as it does the others"),
    Expected("i2d", "SCI", "CRPIX?", 1e-6, _CRPIX),
    Expected("i2d", "SCI", "CRVAL?", 1e-9, "degrees; rounding of sums"),
    Expected("i2d", "SCI", "PC?_?", 1e-9, "rounding of sines and cosines"),
    Expected("i2d", "SCI", "CDELT?", 1e-15, "degrees; rounding"),
    Expected("i2d", "SCI", "S_REGION", "polygon", _S_REGION),
)

#: Extensions that only one of the two has; docs/deviations.md shows the same table.
EXPECTED_EXTENSIONS: tuple[tuple[str, str, str], ...] = (
    ("psfalign", "ALIGN", "the fitted shifts, only in gpucoron's product"),
    ("crfints psfsub", "*", _UNKNOWN),
)

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
