"""Compare two folders of products; the report as text and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from gpucoron.errors import InputError
from gpucoron.verify.compare import (
    PRODUCTS,
    HduDifference,
    ShiftDifference,
    TableDifference,
    compare_hdus,
    compare_shifts,
    product_of,
)
from gpucoron.verify.headers import KeywordDifference, compare_headers

#: File with the shifts that jwst fitted, in the folder of its products.
SHIFTS_FILE = "shifts.json"


@dataclass
class Report:
    """Result of a comparison: everything that was compared, but only keywords that differ."""

    images: list[HduDifference] = field(default_factory=list)
    tables: list[TableDifference] = field(default_factory=list)
    shifts: list[ShiftDifference] = field(default_factory=list)
    keywords: list[KeywordDifference] = field(default_factory=list)
    #: A line for each file that only one of the two wrote.
    missing: list[str] = field(default_factory=list)
    #: By "jwst" and "gpucoron": versions, wall time (s) and peak memory (MiB), if they were run.
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: Changes of the input, such as integrations that were left out.
    notes: list[str] = field(default_factory=list)
    #: Those of both runs that are not the preset's defaults, by full name.
    parameters: dict[str, Any] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Return a line for each difference that exceeds its limit (docs/verify.md)."""
        from gpucoron.verify.expect import problems

        return problems(self)

    def to_json(self) -> str:
        """Return everything as JSON; what is not a finite number is null."""
        content = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        content["problems"] = self.problems()
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def lines(self) -> Iterator[str]:
        """Yield the report as text."""
        from gpucoron.verify.text import report_lines

        return report_lines(self)


def _plain(value):
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        extra = {}
        if isinstance(value, HduDifference):
            extra = {"relative_rms": value.relative_rms, "relative_largest": value.relative_largest}
        return _plain({**dataclasses.asdict(value), **extra})
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def compare_products(
    ours_dir: str | PathLike,
    theirs_dir: str | PathLike,
    *,
    shifts: Mapping[str, np.ndarray] | None = None,
) -> Report:
    """Compare gpucoron's products in one folder with jwst's in another, by file name.

    Parameters
    ----------
    ours_dir, theirs_dir : path
        With crfints, psfstack, psfalign, psfsub and i2d files; others are ignored.
    shifts : mapping of str to (nref, 3) array, optional
        jwst's fits (x, y in px, beta) by root name of the science exposure. Default: those in
        ``shifts.json`` among jwst's products, if it exists.

    Returns
    -------
    Report

    Raises
    ------
    InputError
        A folder that holds no product.
    """
    from astropy.io import fits

    ours, theirs = (_products(Path(folder)) for folder in (ours_dir, theirs_dir))
    if shifts is None:
        file = Path(theirs_dir, SHIFTS_FILE)
        shifts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    report = Report()
    for only, other, whose in ((ours, theirs, "jwst"), (theirs, ours, "gpucoron")):
        report.missing += [
            f"{name}: {whose} did not write it" for name in only if name not in other
        ]
    for name in (n for n in ours if n in theirs):
        product = str(product_of(name))
        with fits.open(ours[name]) as mine, fits.open(theirs[name]) as other:
            for difference in compare_hdus(product, name, mine, other):
                is_image = isinstance(difference, HduDifference)
                found: list = report.images if is_image else report.tables
                found.append(difference)
            report.keywords += compare_headers(product, name, mine, other)
            root = name.rsplit("_", 2)[0]
            if product == "psfalign" and root in shifts and "ALIGN" in mine:
                fits_jwst = np.array(shifts[root], dtype=np.float64).reshape(-1, 3)
                report.shifts.append(compare_shifts(root, mine["ALIGN"].data, fits_jwst))
    return report


def _products(folder: Path) -> dict[str, Path]:
    """Return a folder's products by name, in the order of the steps."""
    found = {p.name: p for p in folder.glob("*.fits") if product_of(p.name)}
    if not found:
        raise InputError(f"{folder}: holds no product, expected files such as *_psfsub.fits")
    names = sorted(found, key=lambda n: (PRODUCTS.index(product_of(n)), n))
    return {name: found[name] for name in names}
