"""A report as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gpucoron.core.text import format_table

__all__ = ["alignment_line", "report_lines"]


def report_lines(report) -> Iterator[str]:
    """Yield the report, a line at a time."""
    for section in (_runs, _notes, _images, _tables, _shifts, _keywords):
        lines = list(section(report))
        if lines:
            yield from lines
            yield ""


def _runs(report):
    if not report.runs:
        return
    names = [name for name in ("jwst", "gpucoron") if name in report.runs]
    rows = []
    for name in names:
        run = report.runs[name]
        rows.append(
            (
                f"{name} {run['version']}",
                f"{run['wall_s']:.2f}",
                f"{run['process_s']:.2f}",
                f"{run['peak_mib']:.0f}",
                f"NumPy {run['numpy']}",
            )
        )
    header = ("", "run, s", "whole process, s", "peak memory, MiB", "")
    yield from format_table(rows, header, (1, 2, 3))
    trial = report.runs.get("jwst", {}).get("alignment")
    if trial is not None:
        yield alignment_line(report.runs["jwst"])


def alignment_line(run: dict) -> str:
    """Say whether the installed jwst aligns, and how it was run here."""
    trial = run["alignment"]
    found = f"an offset of {trial['offset_px']:g} px was fitted as {trial['fitted_px']:.2g} px"
    if trial["aligns"]:
        return f"the installed jwst aligns: {found}"
    how = (
        "and it was run so (--single-fft)"
        if not run["double_fft"]
        else "so it was run with double precision (--single-fft to run it as it is)"
    )
    return (
        f"the installed jwst does NOT align: NumPy {run['numpy']} transforms its float32 "
        f"images in single precision ({found}); {how}"
    )


def _notes(report):
    yield from report.notes
    yield from report.missing


def _images(report):
    groups: dict[tuple, list] = {}
    for image in report.images:
        groups.setdefault((image.product, image.hdu), []).append(image)
    rows = []
    for (product, hdu), found in groups.items():
        odd = [i for i in found if not i.same_shape]
        if odd:
            rows.append(
                (
                    product,
                    hdu,
                    str(len(found)),
                    f"shape {odd[0].shape}",
                    f"jwst {odd[0].shape_jwst}",
                    "",
                    "",
                    "",
                )
            )
            continue
        rows.append((product, hdu, str(len(found)), *_measures(found)))
    if rows:
        header = ("product", "HDU", "files", "largest", "rms", "rms/rms", "only one finite", "")
        yield "differences from jwst, the worst of all files (MJy/sr and its square; WHT as it is):"
        yield from format_table(rows, header, (2, 3, 4, 5, 6))


def _measures(found):
    nan = sum(i.nan_mismatch for i in found)
    if all(i.same_bits for i in found):
        return "0", "0", "0", "0", "bit for bit"
    ratio = max(found, key=lambda i: i.relative_rms).relative_rms
    return (
        f"{max(i.largest for i in found):.2e}",
        f"{max(i.rms for i in found):.2e}",
        f"{ratio:.2e}",
        str(nan),
        "",
    )


def _tables(report):
    for table in report.tables:
        if table.rows != table.rows_jwst:
            yield f"{table.file}: {table.hdu} has {table.rows} rows, jwst's {table.rows_jwst}"
        elif table.columns:
            yield f"{table.file}: {table.hdu} differs in {', '.join(table.columns)}"


def _shifts(report):
    if not report.shifts:
        return
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
    yield "shifts (first integration), differences from jwst in px:"
    yield from format_table(rows, ("exposure", "pairs", "largest", "rms", ""), (1, 2, 3))


def _keywords(report):
    expected = Counter((d.hdu, d.keyword or "(extension)") for d in report.keywords if d.reason)
    if expected:
        names = ", ".join(f"{hdu} {keyword}" for hdu, keyword in expected)
        yield f"header keywords that differ with a reason (docs/deviations.md): {names}"
    for d in report.keywords:
        if not d.reason:
            yield f"{d.file}: {d.hdu} {d.keyword} is {d.ours!r}, jwst's is {d.theirs!r}"
