"""The report of a run: one HTML file, made from the templates in this folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup

from gpucoron import __version__
from gpucoron.analysis import measure, photometry
from gpucoron.analysis.photometry import SkyCandidate
from gpucoron.analysis.record import Record
from gpucoron.report import sections
from gpucoron.report.modes import modes_compared
from gpucoron.steps.reference_ranking import LIKELY_SOURCE


def make_report(
    result: Any, star: tuple[float, float] | None = None, folder: str | os.PathLike | None = None
) -> str:
    """Make the report of a run.

    Parameters
    ----------
    result : gpucoron.Result
        What `gpucoron.run` returned.
    star : (ra, dec), degrees, optional
        Where the star is; see `gpucoron.analysis.measure.locate_star`.
    folder : path, optional
        Where the report will be: names of files are then links, relative to it.

    Returns
    -------
    str
        HTML with everything in it, without scripts.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    several = len(result.products) > 1
    products = [
        _product(result, product, f"p{k}-" if several else "", star, folder)
        for k, product in enumerate(result.products, 1)
    ]
    return environment.get_template("report.html").render(
        result=result,
        facts=_facts(result),
        products=products,
        files=[_link(path, path.name, folder) for path in result.files],
        most=max((len(p["images"]) for p in products if p["record"]), default=0),
        timeline=sections.timeline(result.spans),
        timings=_timings(result),
        parameters=_parameters(result),
        versions={"gpucoron": __version__, "numpy": np.__version__},
    )


def write_report(
    result: Any,
    path: str | os.PathLike,
    star: tuple[float, float] | None = None,
    overwrite: bool = True,
) -> Path:
    """Write the report of a run, see `gpucoron.Result.report`."""
    from gpucoron.io.files import output_error, output_file
    from gpucoron.io.names import report_path

    record = result.product.record
    asn = None if record is None else record.asn
    path = report_path(path, [product.name for product in result.products], asn)
    page = make_report(result, star, path.parent).encode("utf-8", "replace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise output_error(path, problem) from problem
    with output_file(path, overwrite) as file:
        file.write(page)
    return path


def _facts(result: Any) -> list[tuple[str, object]]:
    """Return the facts at the top; the template leaves out those without a value."""
    first = result.product
    record = first.record or Record()
    science = [e for e in record.exposures.values() if e.exptype == "science"]
    references = [e for e in record.exposures.values() if e.exptype == "psf"]
    meta = science[0].meta if science else None
    times = [t for span in result.spans for t in span[1:]]
    return [
        ("Target", meta and (meta.target or record.target)),
        ("Instrument", meta and " ".join(filter(None, (meta.instrument, meta.filter)))),
        ("Coronagraph", meta and " ".join(filter(None, (meta.coronmsk, meta.subarray)))),
        ("Observed", meta and meta.date_obs),
        ("Programme", meta and (meta.program or record.program)),
        ("Science", _count(science)),
        ("References", _count(references)),
        ("Images", science and "{2} × {1} px".format(*science[0].shape)),
        ("Fits", sum(map(len, first.fits.values()))),
        ("Device", result.device.label),
        ("Time", times and f"{max(times) - min(times):.1f} s"),
        ("Warnings", str(len(result.warnings))),
        ("Preset", result.parameters.preset),
    ]


def _count(exposures) -> str:
    if not exposures:
        return "none"
    n, k = sum(e.shape[0] for e in exposures), len(exposures)
    return f"{n} integration{'s'[: n != 1]} in {k} exposure{'s'[: k != 1]}"


def _product(result: Any, product: Any, prefix: str, star, folder) -> dict[str, Any]:
    """Collect what the sections of one product show."""
    record = product.record
    common = {"name": product.name, "prefix": prefix, "record": record, "psfmask": product.psfmask}
    if record is None:
        return common
    common["asn"] = _link(record.asn_path, record.asn, folder)
    sky = measure.locate_star(record, star)
    candidates: list[SkyCandidate] = []
    snr, cut_outs = None, []
    if sky is not None and record.images:
        significance, candidates = photometry.search(record, sky, max(record.images))
        snr = sections.significance_map(record, sky, significance, candidates)
        cut_outs = sections.cut_outs(record, sky, candidates)
    table = sections.candidate_table(record, candidates)
    for row in table["rows"]:
        row[0] = Markup('<a href="#{}candidate{}">{}</a>').format(prefix, row[0], row[0])
    return {
        **common,
        "sky": sky,
        "star": sections.star_text(sky, product.star),
        "masked": record.mask is not None and bool((np.asarray(record.mask) < 0.5).any()),
        "images": sections.combined(record, sky, candidates),
        "candidates": candidates,
        "snr": snr,
        "table": table,
        "cut_outs": cut_outs,
        "exposures": sections.before_after(record, sky),
        "limits": sections.limits(product.measured_contrast, candidates),
        "modes": modes_compared(record, sky, candidates, product.measured_contrast),
        "residuals": sections.residuals(record, sky),
        "shifts": sections.shifts(record, product.fits),
        "references": sections.ranked_references(record, product.references),
        "likely": LIKELY_SOURCE,
        "eigen": sections.eigenvalues(record, tuple(record.images)),
        "flags": sections.flags(record),
        "members": _members(record, folder),
    }


def _link(path: Path | None, name: str, folder: str | os.PathLike | None) -> str:
    """Return a name as a link to its file, relative to the folder of the report."""
    if path is None or folder is None:
        return name
    try:
        target = quote(os.fsencode(os.path.relpath(path, folder)).replace(b"\\", b"/"))
    except ValueError:  # another drive
        target = path.absolute().as_uri()
    return Markup('<a href="{}">{}</a>').format(target, name)


def _members(record: Record, folder: str | os.PathLike | None) -> list[list[object]]:
    names = sections.labels(record)
    return [
        [
            names[e.root],
            _link(e.path, e.file, folder),
            e.exptype,
            e.shape[0],
            e.meta.target or "",
            e.meta.date_obs or "",
            "" if e.meta.exposure_time is None else f"{e.meta.exposure_time:.0f} s",
            "" if e.meta.roll_ref is None else f"{e.meta.roll_ref:.2f}°",
        ]
        for e in record.exposures.values()
    ]


def _timings(result: Any) -> list[list[str]]:
    times = [t for span in result.spans for t in span[1:]]
    total = max(max(times) - min(times), 1e-9) if times else 0.0
    rows = [
        [step, f"{seconds:.2f}", f"{100 * seconds / total:.0f} %" if total else ""]
        for step, seconds in result.timings.items()
    ]
    return [*rows, ["total", f"{total:.2f}", ""]]


def _parameters(result: Any) -> dict[str, Any]:
    """Make the table of parameters; those that are not the default have a class."""
    from gpucoron.core.parameters import Parameters, describe_parameters

    default, used = Parameters().flat(), result.parameters.flat()
    texts = {name: text for name, _, text in describe_parameters()}
    rows = []
    for name, value in used.items():
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        rows.append([name, "not set" if shown in (None, "") else shown, texts.get(name, "")])
    classes = ["set" if value != default.get(name) else "" for name, value in used.items()]
    return {"rows": rows, "classes": classes}
