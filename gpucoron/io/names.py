"""Parts of the names of products."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpucoron.errors import AssociationError

__all__ = [
    "LONGEST",
    "check_names",
    "exposure_root",
    "program_id",
    "report_path",
    "slug",
    "text_or_none",
]

LONGEST = 200  # bytes; file systems allow 255, suffix and name while being written included
_NOTHING = {"", "none", "null", "n/a", "noprogram", "full"}


def exposure_root(path: str | Path) -> str:
    """Return the file name without ``.fits`` and without ``_calints`` or ``_cal``.

    Products of one exposure are named ``<root>_<asn_id>_<suffix>.fits``.
    """
    return re.sub(r"(_calints|_cal)?(\.fits)?$", "", Path(path).name, count=1)


def check_names(names: Sequence[str | None]) -> None:
    """Raise AssociationError where two products' names are the same, whatever their case."""
    seen: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if name is None:
            continue
        first = seen.setdefault(name.lower(), number)
        if first != number:
            raise AssociationError(
                f"products {first} and {number} would both be named "
                f"{name}; expected a name of its own for each"
            )


def report_path(where: str | os.PathLike, names: Sequence[str], asn: str | None) -> Path:
    """Name the report of a run: `where` itself if it ends in .html, else a file in that folder.

    `names` are those of its products; that of several is named after the association file `asn`.
    """
    where = Path(where)
    if where.suffix.lower() in (".html", ".htm") and not where.is_dir():
        return where
    return where / f"{names[0] if len(names) == 1 or not asn else Path(asn).stem}_report.html"


def text_or_none(value: Any) -> str | None:
    """Return a text or number as text; None where it says nothing."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    text = str(value).strip()
    return None if text.lower() in _NOTHING else text


def program_id(value: Any) -> str | None:
    """Return a programme's number with five digits, or its other name; None for nothing."""
    text = text_or_none(value)
    return text.zfill(5) if text and text.isdigit() else slug(text) or None


def slug(value: str | None) -> str:
    """Return `value` in lower case without what has no place in a file name; "" for nothing."""
    text = (value or "").strip().lower()
    return "" if text in _NOTHING else re.sub(r"[^a-z0-9_+.]", "", text)
