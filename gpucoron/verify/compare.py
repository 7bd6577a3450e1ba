"""How much two products differ: images, tables and fitted shifts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "HduDifference",
    "ShiftDifference",
    "TableDifference",
    "compare_hdus",
    "compare_shifts",
    "product_of",
]

PRODUCTS = ("crfints", "psfstack", "psfalign", "psfsub", "i2d")

#: Decimal numbers in a table may differ by their last binary digits.
TABLE_RELATIVE = 1e-12


@dataclass(frozen=True)
class HduDifference:
    """One image extension, ours against jwst's.

    Parameters
    ----------
    product, file, hdu : str
        As "psfsub", the file's name, "SCI".
    shape, shape_jwst : tuple of int
        Where the shapes differ, nothing below is known (0 and NaN).
    same_bits : bool
        Same type and every value equal bit for bit; any NaN equals any other.
    values : int
        How many there are.
    different : int
        Values that differ at all.
    nan_mismatch : int
        Values that are a number in one of the two only.
    largest, rms : float
        Of the difference, where both are numbers.
    largest_jwst, rms_jwst : float
        Of jwst's values.
    """

    product: str
    file: str
    hdu: str
    shape: tuple[int, ...]
    shape_jwst: tuple[int, ...]
    same_bits: bool = False
    values: int = 0
    different: int = 0
    nan_mismatch: int = 0
    largest: float = np.nan
    rms: float = np.nan
    largest_jwst: float = np.nan
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
    """One table extension: its columns that differ."""

    product: str
    file: str
    hdu: str
    rows: int
    rows_jwst: int
    columns: tuple[str, ...]


@dataclass(frozen=True)
class ShiftDifference:
    """The fitted shifts of all references to one science exposure's first integration, px."""

    exposure: str
    pairs: int
    largest: float
    rms: float
    left_out: int = 0  # pairs without a shift in ours


def _ratio(a: float, b: float) -> float:
    if a == 0:
        return 0.0
    return a / b if b else float("inf") if a > 0 else float("nan")


def product_of(file: str) -> str | None:
    """Return the product type that a file name ends in; None where it is none."""
    kind = file.removesuffix(".fits").rpartition("_")[2]
    return kind if kind in PRODUCTS else None


def compare_hdus(
    product: str,
    file: str,
    ours: Any,
    theirs: Any,
) -> Iterator[HduDifference | TableDifference]:
    """Compare every extension with data that both files have.

    Parameters
    ----------
    product, file : str
        What they are called.
    ours, theirs : astropy HDUList
        Where a psfalign of ours is 4-D and jwst's 3-D, the first science integration is compared.
    """
    known = {hdu.name for hdu in ours}
    for hdu in theirs:
        if hdu.name not in known or hdu.name == "ASDF" or hdu.data is None:
            continue
        mine = ours[hdu.name]
        if hdu.data.dtype.names:
            yield _compare_tables(product, file, hdu.name, mine.data, hdu.data)
        else:
            data = mine.data
            if product == "psfalign" and data.ndim == 4 and hdu.data.ndim == 3:
                data = data[0]
            yield compare_images(product, file, hdu.name, data, hdu.data)


def compare_images(product: str, file: str, name: str, ours, theirs) -> HduDifference:
    """Compare two arrays, a plane at a time."""
    if ours.shape != theirs.shape:
        return HduDifference(product, file, name, ours.shape, theirs.shape)
    same = ours.dtype.newbyteorder("=") == theirs.dtype.newbyteorder("=")
    parts = [_plane(a, b) for a, b in zip(_planes(ours), _planes(theirs), strict=True)]
    different, nan, both, square, square_jwst, finite = (
        sum(column) for column in list(zip(*parts, strict=True))[:6]
    )
    largest, largest_jwst = (max(column) for column in list(zip(*parts, strict=True))[6:])
    return HduDifference(
        product,
        file,
        name,
        ours.shape,
        theirs.shape,
        same and different == 0,
        ours.size,
        different,
        nan,
        largest,
        float(np.sqrt(square / both)) if both else 0.0,
        largest_jwst,
        float(np.sqrt(square_jwst / finite)) if finite else 0.0,
    )


def _planes(array):
    return array.reshape(-1, *array.shape[-2:])


def _plane(ours, theirs):
    """Counts, sums of squares and largest values of one plane."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    differ = ((a != b) | (np.signbit(a) != np.signbit(b))) & ~(np.isnan(a) & np.isnan(b))
    finite_a, finite_b = np.isfinite(a), np.isfinite(b)
    both = finite_a & finite_b
    gap = np.abs(a[both] - b[both])
    values = np.abs(b[finite_b])
    return (
        int(np.count_nonzero(differ)),
        int(np.count_nonzero(finite_a != finite_b)),
        gap.size,
        float(np.sum(gap**2)),
        float(np.sum(values**2)),
        values.size,
        float(gap.max(initial=0.0)),
        float(values.max(initial=0.0)),
    )


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
    """Compare the fits of one science exposure.

    Parameters
    ----------
    exposure : str
        Root name.
    table : structured array
        psfalign's ALIGN table; the rows of its first science integration count.
    theirs : (nref, 3) float64
        jwst's x, y (px) and beta.
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


def shifts_from_json(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Turn lists of x, y, beta by exposure into arrays."""
    return {name: np.array(rows, dtype=np.float64).reshape(-1, 3) for name, rows in found.items()}
