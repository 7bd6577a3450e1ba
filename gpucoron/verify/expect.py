"""Limits of the differences from jwst with the preset "jwst", and what exceeds them."""

from __future__ import annotations

from collections.abc import Iterator

from gpucoron.verify.compare import HduDifference, ShiftDifference, TableDifference
from gpucoron.verify.headers import KeywordDifference

SHIFT_PX = 1e-6

#: rms(difference) / rms for the SCI, ERR and VAR_* that are not equal bit for bit.
RELATIVE_RMS = 1e-4

#: Largest difference of WHT over its largest value.
RELATIVE_WEIGHT = 1e-6

#: An ERR this small relative to SCI (rms over rms) is rounding error of 0.
ROUNDING = 1e-6

#: The measure of each extension that has a limit: "bits", or a property of HduDifference.
LIMITS: dict[tuple[str, str], tuple[str, float]] = {
    ("crfints", "*"): ("bits", 0.0),
    ("psfstack", "*"): ("bits", 0.0),
    ("psfalign", "SCI"): ("relative_rms", RELATIVE_RMS),
    ("psfalign", "ERR"): ("relative_rms", RELATIVE_RMS),
    ("psfalign", "*"): ("bits", 0.0),
    ("psfsub", "SCI"): ("relative_rms", RELATIVE_RMS),
    ("psfsub", "ERR"): ("relative_rms", RELATIVE_RMS),
    ("psfsub", "*"): ("bits", 0.0),
    ("i2d", "CON"): ("bits", 0.0),
    ("i2d", "WHT"): ("relative_largest", RELATIVE_WEIGHT),
    ("i2d", "*"): ("relative_rms", RELATIVE_RMS),
}

#: Lanczos kernels are read from a table: where the pixel maps differ by 1e-9 px, a few output
#: pixels get the neighbouring entry, and weights that differ by up to 0.003.
LANCZOS_LIMITS = LIMITS | {("i2d", "WHT"): ("relative_rms", RELATIVE_RMS)}

_MEASURES = {
    "relative_rms": "rms(difference)/rms",
    "relative_largest": "largest difference over largest value",
}


def problems(report) -> list[str]:
    """Return a line for each difference in a report that exceeds its limit."""
    lines = list(report.missing)
    kernel = str(report.parameters.get("resample.kernel", ""))
    limits = LANCZOS_LIMITS if kernel.startswith("lanczos") else LIMITS
    science = {d.file: d.rms_jwst for d in report.images if (d.product, d.hdu) == ("psfsub", "SCI")}
    for image in report.images:
        lines += _image_lines(image, science.get(image.file, 0.0), limits)
    for table in report.tables:
        lines += table_lines(table)
    for shifts in report.shifts:
        lines += _shift_lines(shifts)
    return lines + [keyword_line(d) for d in report.keywords if not d.reason]


def _image_lines(image: HduDifference, rms_science: float, limits: dict) -> Iterator[str]:
    where = f"{image.file}: {image.hdu}"
    if not image.same_shape:
        yield f"{where} has shape {image.shape}, jwst's has {image.shape_jwst}"
        return
    measure, limit = limits.get((image.product, image.hdu)) or limits[(image.product, "*")]
    if measure == "bits":
        if not image.same_bits:
            yield (
                f"{where} is not equal bit for bit: {image.different} of {image.values} values "
                f"differ, by {image.largest:.3g} at most"
            )
        return
    if image.nan_mismatch:
        yield f"{where}: {image.nan_mismatch} values are finite in only one of the two"
    rounding = (image.product, image.hdu) == ("psfsub", "ERR") and (
        max(image.rms, image.rms_jwst) <= ROUNDING * rms_science
    )
    value = getattr(image, measure)
    if not (value <= limit or rounding):
        yield f"{where}: {_MEASURES[measure]} is {value:.3g}, expected {limit:g} at most"


def table_lines(table: TableDifference) -> Iterator[str]:
    """Yield a line for each difference of a table."""
    where = f"{table.file}: {table.hdu}"
    if table.rows != table.rows_jwst:
        yield f"{where} has {table.rows} rows, jwst's has {table.rows_jwst}"
    if table.columns:
        yield f"{where}: columns differ: {', '.join(table.columns)}"


def _shift_lines(shifts: ShiftDifference) -> Iterator[str]:
    if not shifts.pairs:
        yield f"{shifts.exposure}: no shift could be compared"
    elif shifts.largest > SHIFT_PX:
        yield (
            f"{shifts.exposure}: shifts differ by {shifts.largest:.3g} px, expected "
            f"{SHIFT_PX:g} at most"
        )


def keyword_line(d: KeywordDifference) -> str:
    """Describe a keyword or an extension that differs."""
    ours, theirs = ("absent" if v is None else repr(v) for v in (d.ours, d.theirs))
    return f"{d.file}: {' '.join(filter(None, (d.hdu, d.keyword)))} is {ours}, jwst's is {theirs}"
