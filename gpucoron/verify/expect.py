"""What gpucoron promises with the preset "jwst", and whether a comparison keeps it."""

from __future__ import annotations

from collections.abc import Iterator

from gpucoron.verify.compare import HduDifference, ShiftDifference, TableDifference

__all__ = ["LANCZOS_LIMITS", "LIMITS", "SHIFT_PX", "problems"]

SHIFT_PX = 1e-6

#: rms(difference) / rms for the SCI, ERR and VAR_* that are not equal bit for bit.
RELATIVE_RMS = 1e-4

#: Largest difference of WHT over its largest value.
RELATIVE_WEIGHT = 1e-6

#: An ERR this small beside SCI (rms over rms) is what rounding leaves of 0.
ROUNDING = 1e-6

#: How each extension is judged: "bits", or the property of HduDifference that has a limit.
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

#: Lanczos comes from a table: where the pixel maps differ by 1e-9 px, a handful of output pixels
#: have their neighbour's entry, and weights that differ by up to 0.003.
LANCZOS_LIMITS = LIMITS | {("i2d", "WHT"): ("relative_rms", RELATIVE_RMS)}


def problems(report) -> list[str]:
    """Return a line for everything in a report that is not as promised."""
    lines = list(report.missing)
    kernel = str(report.parameters.get("resample.kernel", ""))
    limits = LANCZOS_LIMITS if kernel.startswith("lanczos") else LIMITS
    science = {d.file: d.rms_jwst for d in report.images if (d.product, d.hdu) == ("psfsub", "SCI")}
    for image in report.images:
        lines += _image(image, science.get(image.file, 0.0), limits)
    for table in report.tables:
        lines += _table(table)
    for shifts in report.shifts:
        lines += _shifts(shifts)
    lines += [
        f"{d.file}: {d.hdu}{' ' if d.keyword else ''}{d.keyword} is {_shown(d.ours)}, "
        f"jwst's is {_shown(d.theirs)}"
        for d in report.keywords
        if not d.reason
    ]
    return lines


def _shown(value) -> str:
    return "absent" if value is None else repr(value)


def _image(image: HduDifference, rms_science: float, limits: dict) -> Iterator[str]:
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
        yield f"{where}: {image.nan_mismatch} values are numbers in one of the two only"
    rounding = (image.product, image.hdu) == ("psfsub", "ERR") and (
        max(image.rms, image.rms_jwst) <= ROUNDING * rms_science
    )
    found = getattr(image, measure)
    if not (found <= limit or rounding):
        yield f"{where}: {_MEASURES[measure]} is {found:.3g}, expected {limit:g} at most"


_MEASURES = {
    "relative_rms": "rms(difference)/rms",
    "relative_largest": "largest difference over largest value",
}


def _table(table: TableDifference) -> Iterator[str]:
    where = f"{table.file}: {table.hdu}"
    if table.rows != table.rows_jwst:
        yield f"{where} has {table.rows} rows, jwst's has {table.rows_jwst}"
    if table.columns:
        yield f"{where}: columns differ: {', '.join(table.columns)}"


def _shifts(shifts: ShiftDifference) -> Iterator[str]:
    if not shifts.pairs:
        yield f"{shifts.exposure}: no shift could be compared"
    elif shifts.largest > SHIFT_PX:
        yield (
            f"{shifts.exposure}: shifts differ by {shifts.largest:.3g} px, expected "
            f"{SHIFT_PX:g} at most"
        )
