"""One header from several exposures' headers, and the HDRTAB table that keeps them all."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpucoron.io.keywords import keywords

__all__ = ["blend", "count_pointings", "header_table", "product_times"]

log = logging.getLogger("gpucoron")

Headers = Mapping[str, Mapping[str, Any]]  # EXTNAME ("" for PRIMARY) -> keyword -> value

_OUTSIDE, _WITHIN = "outside calibration tolerance", "within commanded tolerance"
_GROUP = ("PROGRAM", "OBSERVTN", "VISIT", "VISITGRP", "SEQ_ID", "ACT_ID", "EXPOSURE")


_RULES: dict[str, Callable[[list], Any]] = {
    "multi": lambda values: values[0] if len(set(values)) == 1 else "MULTIPLE",
    "mean": lambda values: sum(values) / len(values),
    "sum": sum,
    "wheeltol": lambda values: _OUTSIDE if _OUTSIDE in values else _WITHIN,
    # dates and times are ISO 8601, where the order of text is the order of time
    **dict.fromkeys(("min", "mintime", "mindate", "mindatetime"), min),
    **dict.fromkeys(("max", "maxtime", "maxdate", "maxdatetime"), max),
}


def _value(headers: Headers, hdu: str, keyword: str):
    """Return a keyword's value, None where it is missing, undefined or infinite."""
    value = headers.get(hdu, {}).get(keyword)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | bool | int | float) else None


def blend(headers: Sequence[Headers]) -> dict[str, dict[str, Any]]:
    """Combine the keywords of exposures by the JWST schemas' rules, by EXTNAME and keyword.

    Only those that have a rule and are in at least one exposure are returned; every other keyword
    of a product is the first exposure's.
    """
    out: dict[str, dict[str, Any]] = {}
    for row in keywords():
        values = [v for h in headers if (v := _value(h, row.hdu, row.keyword)) is not None]
        if row.rule and values:
            out.setdefault(row.hdu, {})[row.keyword] = _combined(row, values)
    return out


def _combined(row, values):
    try:
        value = _RULES[row.rule](values)
    except TypeError:  # texts and numbers
        value = math.nan
    if isinstance(value, float) and not math.isfinite(value):
        text = "%s of the exposures cannot be combined; products have the first one's, %r"
        log.warning(text, row.keyword, values[0])
        return values[0]
    return value


def product_times(headers: Sequence[Headers], n_integrations: int) -> dict[str, dict[str, Any]]:
    """Combine only dates, times and integration counts, for a product made of all `headers`.

    INTSTART and INTEND (where they are used) count the product's own integrations, and DATE-OBS
    and TIME-OBS are those of the exposure that started first (the schemas' rules take each
    smallest by itself, which across midnight is no exposure's). Returns what `blend` returns.
    """
    timed = {
        (k.hdu, k.keyword)
        for k in keywords()
        if k.attribute.startswith("exposure.") or k.rule.startswith(("min", "max"))
    }
    out = {
        hdu: {keyword: value for keyword, value in found.items() if (hdu, keyword) in timed}
        for hdu, found in blend(headers).items()
    }
    primary = out.setdefault("", {})
    primary["NINTS"] = n_integrations
    for keyword, value in (("INTSTART", 1), ("INTEND", n_integrations)):
        if keyword in primary:
            primary[keyword] = value
    starts = [_value(h, "", "DATE-BEG") for h in headers]
    if all(isinstance(s, str) for s in starts):
        first = headers[starts.index(min(starts))]
        for keyword in ("DATE-OBS", "TIME-OBS"):
            if (value := _value(first, "", keyword)) is not None:
                primary[keyword] = value
    return out


def count_pointings(headers: Sequence[Headers]) -> int:
    """Return how many groups of simultaneous exposures there are (NDRIZ)."""
    groups = {tuple(_value(h, "", k) for k in _GROUP) for h in headers}
    return len(groups) if all(None not in g for g in groups) else len(headers)


def header_table(headers: Sequence[Headers]) -> np.ndarray:
    """Return HDRTAB (n,): a row an exposure, a column a keyword that any exposure has.

    Text is byte strings, numbers int64 or float64, flags booleans. A missing value is NaN, so a
    column of integers or of text that misses one becomes float64 or holds "nan".
    """
    columns = {}
    for row in keywords():
        if not row.in_table:
            continue
        values = [_value(h, row.hdu, row.keyword) for h in headers]
        if all(v is None for v in values):
            continue
        column = np.array([np.nan if v is None else v for v in values])
        if column.dtype.kind == "U":
            column = np.char.encode(column, "ascii", "backslashreplace")
        columns[row.keyword] = column
    table = np.empty(len(headers), dtype=[(name, c.dtype) for name, c in columns.items()])
    for name, column in columns.items():
        table[name] = column
    return table
