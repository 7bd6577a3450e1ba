"""Measure how two products differ: images, tables and fitted shifts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

PRODUCTS = ("crfints", "psfstack", "psfalign", "psfsub", "i2d")

#: Decimal numbers in a table may differ by their last binary digits.
TABLE_RELATIVE = 1e-12


@dataclass(frozen=True)
class HduDifference:
    """Differences of one image extension of gpucoron from jwst's."""

    product: str  # as "psfsub"
    file: str
    hdu: str
    shape: tuple[int, ...]
    shape_jwst: tuple[int, ...]  # where the shapes differ, all that follows is 0, False or NaN
    same_bits: bool = False  # same type and every value equal; any NaN equals any other
    values: int = 0
    different: int = 0  # values that differ at all
    nan_mismatch: int = 0  # values that are finite in only one of the two
    largest: float = np.nan  # difference where both are finite
    rms: float = np.nan
    largest_jwst: float = np.nan  # of jwst's values
    rms_jwst: float = np.nan

    @property
    def same_shape(self) -> bool:
        """True where the values could be compared."""
        return self.shape == self.shape_jwst

    @property
    def relative_rms(self) -> float:
        """rms(difference) / rms; 0 where nothing differs, NaN where nothing could be compared."""
        return _ratio(self.rms, self.rms_jwst)

    @property
    def relative_largest(self) -> float:
        """Largest difference / largest value."""
        return _ratio(self.largest, self.largest_jwst)


@dataclass(frozen=True)
class TableDifference:
    """Columns of one table extension that differ."""

    product: str
    file: str
    hdu: str
    rows: int
    rows_jwst: int
    columns: tuple[str, ...]


@dataclass(frozen=True)
class ShiftDifference:
    """Differences of the shifts of all references to one exposure's first integration, px."""

    exposure: str
    pairs: int
    largest: float
    rms: float
    left_out: int = 0  # pairs without a shift in gpucoron's product


def _ratio(a: float, b: float) -> float:
    if a == 0:
        return 0.0
    return a / b if b else float("inf") if a > 0 else float("nan")


def product_of(file: str) -> str | None:
    """Return the product type in a file name; None for other files."""
    kind = file.removesuffix(".fits").rpartition("_")[2]
    return kind if kind in PRODUCTS else None


def compare_hdus(
    product: str, file: str, ours: Any, theirs: Any
) -> Iterator[HduDifference | TableDifference]:
    """Compare every extension with data that both files (astropy HDULists) have, but ASDF.

    Where gpucoron's psfalign is 4-D and jwst's 3-D, the first science integration is compared.
    """
    names = {hdu.name for hdu in ours} - {"ASDF"}
    for hdu in theirs:
        if hdu.name not in names or hdu.data is None:
            continue
        data = ours[hdu.name].data
        if hdu.data.dtype.names:
            yield _compare_tables(product, file, hdu.name, data, hdu.data)
        else:
            if product == "psfalign" and data.ndim == 4 and hdu.data.ndim == 3:
                data = data[0]
            yield _compare_images(product, file, hdu.name, data, hdu.data)


def _compare_images(product, file, name, ours, theirs):
    """Compare two arrays, one plane at a time."""
    if ours.shape != theirs.shape:
        return HduDifference(product, file, name, ours.shape, theirs.shape)
    planes = (array.reshape(-1, *array.shape[-2:]) for array in (ours, theirs))
    sums, largest = zip(*(_plane(a, b) for a, b in zip(*planes, strict=True)), strict=True)
    different, nan, both, square, finite, square_jwst = (sum(s) for s in zip(*sums, strict=True))
    same_type = ours.dtype.newbyteorder("=") == theirs.dtype.newbyteorder("=")
    return HduDifference(
        product,
        file,
        name,
        ours.shape,
        theirs.shape,
        same_bits=same_type and different == 0,
        values=ours.size,
        different=different,
        nan_mismatch=nan,
        largest=max(gap for gap, _ in largest),
        rms=float(np.sqrt(square / both)) if both else 0.0,
        largest_jwst=max(value for _, value in largest),
        rms_jwst=float(np.sqrt(square_jwst / finite)) if finite else 0.0,
    )


def _plane(ours, theirs):
    """Counts and sums of squares of one plane, and the largest difference and value."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    differ = ((a != b) | (np.signbit(a) != np.signbit(b))) & ~(np.isnan(a) & np.isnan(b))
    finite_a, finite_b = np.isfinite(a), np.isfinite(b)
    both = finite_a & finite_b
    gap = np.abs(a[both] - b[both])
    values = np.abs(b[finite_b])
    counts = int(np.count_nonzero(differ)), int(np.count_nonzero(finite_a != finite_b))
    squares = gap.size, float(np.sum(gap**2)), values.size, float(np.sum(values**2))
    return (*counts, *squares), (float(gap.max(initial=0.0)), float(values.max(initial=0.0)))


def _compare_tables(product, file, name, ours, theirs):
    rows, rows_jwst = len(ours), len(theirs)
    names = list(theirs.dtype.names)
    columns = [n for n in ours.dtype.names if n not in names]
    if rows == rows_jwst:
        columns += [
            n for n in names if n not in ours.dtype.names or not _same_column(ours[n], theirs[n])
        ]
    return TableDifference(product, file, name, rows, rows_jwst, tuple(columns))


def _same_column(ours, theirs):
    a, b = np.asarray(ours), np.asarray(theirs)
    if a.dtype.kind != b.dtype.kind:
        return False
    if a.dtype.kind == "f":
        return bool(np.allclose(a, b, rtol=TABLE_RELATIVE, atol=0.0, equal_nan=True))
    return bool(np.array_equal(a, b))


def compare_shifts(exposure: str, table: Any, theirs: np.ndarray) -> ShiftDifference:
    """Compare the fitted shifts of one science exposure, by its root name.

    The rows of the first science integration in psfalign's ALIGN table are compared with jwst's x,
    y (px) and beta, (nref, 3).
    """
    first = np.asarray(table)[np.asarray(table["sci_integration"]) == table["sci_integration"][0]]
    if len(first) != len(theirs):
        return ShiftDifference(exposure, 0, float("nan"), float("nan"))
    gap = np.stack([first["x"] - theirs[:, 0], first["y"] - theirs[:, 1]])
    known = np.isfinite(gap).all(axis=0)
    gap = np.abs(gap[:, known])
    rms = float(np.sqrt(np.mean(gap**2))) if gap.size else float("nan")
    return ShiftDifference(
        exposure, int(known.sum()), float(gap.max(initial=0.0)), rms, int((~known).sum())
    )
