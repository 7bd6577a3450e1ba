"""The whole report: sections put together into one HTML file."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from gpucoron import __version__
from gpucoron.analysis import measure
from gpucoron.analysis.record import Record
from gpucoron.report import diagnostics, sections
from gpucoron.report.html import facts, items, missing, section, table

__all__ = ["make_report", "report_path", "write_report"]

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
MANY = 24  # truncations that can be chosen from


def make_report(result: Any, star: tuple[float, float] | None = None) -> str:
    """Make the report of a run.

    Parameters
    ----------
    result : gpucoron.Result
        What `gpucoron.run` gave back.
    star : (ra, dec), degrees, optional
        Where the star is; see `gpucoron.analysis.measure.sky_of`.

    Returns
    -------
    str
        HTML that needs nothing from outside, and has no script.
    """
    names = [p.name for p in result.products]
    body = [_head(result, names), _warnings(result)]
    for k, product in enumerate(result.products, 1):
        prefix = "" if len(names) == 1 else f"p{k}-"
        if prefix:
            body.append(f"<h1>{escape(product.name)}</h1>")
        body += _product(result, product, prefix, star)
    body += [
        diagnostics.timeline(result.spans, result.timings),
        _parameters(result),
        _files(result),
    ]
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(', '.join(names))}: gpucoron report</title><style>{_style()}</style>"
        f"</head><body>{''.join(body)}<footer class=soft>gpucoron {__version__}, numpy "
        f"{np.__version__}. No script, and nothing from the network.</footer></body></html>\n"
    )
    return page


def report_path(result: Any, where: str | os.PathLike) -> Path:
    """Name the report: `where` itself if it ends in .html, else a file in that folder."""
    where = Path(where)
    if where.suffix.lower() in (".html", ".htm") and not where.is_dir():
        return where
    first = result.product
    single = len(result.products) == 1 or first.record is None or not first.record.asn
    return where / f"{first.name if single else Path(first.record.asn).stem}_report.html"


def write_report(
    result: Any,
    path: str | os.PathLike,
    star: tuple[float, float] | None = None,
    overwrite: bool = True,
) -> Path:
    """Write the report of a run; the file has its name only once it is whole.

    Parameters
    ----------
    result, star
        As `make_report`.
    path : path
        A file that ends in .html, or a folder.
    overwrite : bool
        Whether a report that is there may be replaced.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OutputError
        It cannot be written, or exists and must not be replaced.
    """
    from gpucoron.io.files import output_error, output_file

    path = report_path(result, path)
    page = make_report(result, star).encode("utf-8", "replace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise output_error(path, problem) from problem
    with output_file(path, overwrite) as file:
        file.write(page)
    return path


def _style() -> str:
    sheet = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    chosen = ",".join(f'.pick[data-k="{k}"]:checked~.of[data-k="{k}"]' for k in range(1, MANY + 1))
    return f"{sheet}.choice>.of{{display:none}}{chosen}{{display:block}}"


def _head(result: Any, names: list[str]) -> str:
    prefix = "" if len(names) == 1 else "p1-"
    parts = [
        ("image", "Image"),
        ("snr", "SNR"),
        ("candidates", "Candidates"),
        ("exposures", "Exposures"),
        ("rms", "Residuals"),
        ("shifts", "Shifts"),
        ("eigen", "Eigenvalues"),
        ("flags", "Flags"),
        ("members", "Association"),
    ]
    links = "".join(f'<a href="#{prefix}{name}">{text}</a>' for name, text in parts) + "".join(
        f'<a href="#{name}">{text}</a>'
        for name, text in (
            ("timeline", "Timeline"),
            ("parameters", "Parameters"),
            ("files", "Files"),
        )
    )
    return f"<header><h1>{escape(', '.join(names))}</h1>{_facts(result)}<nav>{links}</nav></header>"


def _facts(result: Any) -> str:
    first = result.product
    record = first.record or Record()
    science = [e for e in record.exposures.values() if e.exptype == "science"]
    references = [e for e in record.exposures.values() if e.exptype == "psf"]
    meta = science[0].meta if science else None
    seconds = max((s[2] for s in result.spans), default=0) - min(
        (s[1] for s in result.spans), default=0
    )
    return facts(
        [
            ("Target", meta and (meta.target or record.target)),
            ("Instrument", meta and " ".join(filter(None, (meta.instrument, meta.filter)))),
            ("Coronagraph", meta and " ".join(filter(None, (meta.coronmsk, meta.subarray)))),
            ("Observed", meta and meta.date_obs),
            ("Programme", meta and (meta.program or record.program)),
            ("Science", _count(science)),
            ("References", _count(references)),
            ("Images", science and "{2} × {1} px".format(*science[0].shape)),
            ("Fits", sum(map(len, first.fits.values())) or None),
            ("Device", result.device.label),
            ("Time", f"{seconds:.1f} s" if seconds else None),
            ("Warnings", len(result.warnings)),
            ("Preset", result.parameters.preset),
        ]
    )


def _count(exposures) -> str:
    if not exposures:
        return "none"
    n, k = sum(e.shape[0] for e in exposures), len(exposures)
    return f"{n} integration{'s'[: n != 1]} in {k} exposure{'s'[: k != 1]}"


def _warnings(result: Any) -> str:
    if not result.warnings:
        return '<p class="soft">No warnings.</p>'
    return (
        f'<div class="warnings" role="note"><strong>{len(result.warnings)} '
        f"warning{'s'[: len(result.warnings) != 1]}</strong>{items(result.warnings)}</div>"
    )


def _product(result: Any, product: Any, prefix: str, star) -> list[str]:
    record = product.record
    if record is None:
        return [missing("Nothing was noted of this product.")]
    parameters = result.parameters
    sky = measure.sky_of(record, star)
    significance, seen = None, []
    if sky is not None and record.images:
        significance, seen = measure.search(record, sky, max(record.images))
    no_image = (
        "resample was skipped, so nothing was combined."
        if parameters.resample.skip
        else "There is no combined image."
    )
    no_values = (
        "klip was skipped." if parameters.klip.skip else "No eigenvalues were noted in this run."
    )
    return [
        sections.combined(record, sky, seen, prefix, no_image),
        sections.snr(record, sky, significance, seen, prefix),
        sections.candidates(record, sky, seen, prefix),
        sections.before_after(record, sky, prefix),
        diagnostics.residuals(record, sky, prefix),
        diagnostics.shifts(record, product.fits, prefix),
        diagnostics.eigenvalues(record, parameters.klip.truncations, prefix, no_values),
        diagnostics.flags(record, prefix),
        _members(product, record, prefix),
    ]


def _members(product: Any, record: Record, prefix: str) -> str:
    names = diagnostics.labels(record)
    rows = [
        [
            names[e.root],
            e.file,
            e.exptype,
            e.shape[0],
            e.meta.target or "",
            e.meta.date_obs or "",
            _seconds(e.meta.exposure_time),
            _degrees(e.meta.roll_ref),
        ]
        for e in record.exposures.values()
    ]
    ignored = (
        ""
        if not record.ignored
        else ("<p>Ignored:</p>" + items(f"{name} ({kind})" for name, kind in record.ignored))
    )
    return section(
        f"{prefix}members",
        "Association",
        facts(
            [
                ("File", record.asn),
                ("Id", record.asn_id),
                ("Programme", record.program),
                ("Target", record.target),
                ("psfmask", product.psfmask),
            ]
        ),
        table(
            ["", "file", "type", "integrations", "target", "date", "time", "roll"], rows, (3, 6, 7)
        ),
        ignored,
    )


def _seconds(value) -> str:
    return "" if value is None else f"{value:.0f} s"


def _degrees(value) -> str:
    return "" if value is None else f"{value:.2f}°"


def _parameters(result: Any) -> str:
    from gpucoron.core.parameters import Parameters, describe_parameters

    default, used = Parameters().flat(), result.parameters.flat()
    texts = {name: text for name, _, text in describe_parameters()}
    rows, classes = [], []
    for name, value in used.items():
        changed = value != default.get(name)
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        rows.append([name, "not set" if shown in (None, "") else shown, texts.get(name, "")])
        classes.append("set" if changed else "")
    return section(
        "parameters",
        "Parameters",
        '<p class="soft">Bold: not the default.</p>',
        table(["name", "value", ""], rows, (), classes),
    )


def _files(result: Any) -> str:
    if not result.files:
        return section("files", "Files", missing("Nothing was written."))
    return section("files", "Files", items(p.name for p in result.files))
