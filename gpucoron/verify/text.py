"""Format the report of a comparison as text."""

from __future__ import annotations

from collections.abc import Iterator

from gpucoron.core.text import format_table
from gpucoron.verify.expect import keyword_line, table_lines


def report_lines(report) -> Iterator[str]:
    """Yield the report, a line at a time."""
    for section in (_runs, _notes, _images, _tables, _shifts, _keywords):
        lines = list(section(report))
        if lines:
            yield from lines
            yield ""


def _runs(report):
    rows = [
        (
            f"{name} {run['version']}",
            f"{run['wall_s']:.2f}",
            f"{run['process_s']:.2f}",
            f"{run['peak_mib']:.0f}",
            f"NumPy {run['numpy']}",
        )
        for name, run in sorted(report.runs.items(), reverse=True)
    ]
    if rows:
        header = ("", "run, s", "whole process, s", "peak memory, MiB", "")
        yield from format_table(rows, header, (1, 2, 3))
    if "alignment" in report.runs.get("jwst", {}):
        yield alignment_line(report.runs["jwst"])


def alignment_line(run: dict) -> str:
    """Say whether the installed jwst aligns images, and in which precision it was run."""
    trial = run["alignment"]
    fitted = f"an offset of {trial['offset_px']:g} px was fitted as {trial['fitted_px']:.2g} px"
    if trial["aligns"]:
        return f"the installed jwst aligns: {fitted}"
    how = (
        "so it was run with double precision (--single-fft to run it as it is)"
        if run["double_fft"]
        else "and it was run so (--single-fft)"
    )
    return (
        f"the installed jwst does NOT align: NumPy {run['numpy']} transforms its float32 "
        f"images in single precision ({fitted}); {how}"
    )


def _notes(report):
    yield from report.notes
    yield from report.missing


def _images(report):
    groups: dict[tuple, list] = {}
    for image in report.images:
        groups.setdefault((image.product, image.hdu), []).append(image)
    rows = [(*names, str(len(images)), *_measures(images)) for names, images in groups.items()]
    if rows:
        header = ("product", "HDU", "files", "largest", "rms", "rms/rms", "only one finite", "")
        yield "differences from jwst, largest over all files (MJy/sr and its square; WHT as it is):"
        yield from format_table(rows, header, (2, 3, 4, 5, 6))


def _measures(images):
    for image in images:
        if not image.same_shape:
            return f"shape {image.shape}", f"jwst {image.shape_jwst}", "", "", ""
    if all(i.same_bits for i in images):
        return "0", "0", "0", "0", "bit for bit"
    return (
        f"{max(i.largest for i in images):.2e}",
        f"{max(i.rms for i in images):.2e}",
        f"{max(i.relative_rms for i in images):.2e}",
        str(sum(i.nan_mismatch for i in images)),
        "",
    )


def _tables(report):
    for table in report.tables:
        yield from table_lines(table)


def _shifts(report):
    rows = [
        (
            s.exposure,
            str(s.pairs),
            f"{s.largest:.2e}",
            f"{s.rms:.2e}",
            f"{s.left_out} left out" if s.left_out else "",
        )
        for s in report.shifts
    ]
    if rows:
        yield "shifts (first integration), differences from jwst in px:"
        yield from format_table(rows, ("exposure", "pairs", "largest", "rms", ""), (1, 2, 3))


def _keywords(report):
    expected = {f"{d.hdu} {d.keyword or '(extension)'}": None for d in report.keywords if d.reason}
    if expected:
        names = ", ".join(expected)
        yield f"header keywords that differ with a reason (docs/deviations.md): {names}"
    yield from (keyword_line(d) for d in report.keywords if not d.reason)
