"""The parts of the report that are about how the run went: curves, shifts, flags, time."""

from __future__ import annotations

import math

import numpy as np

from gpucoron.analysis import measure
from gpucoron.analysis.measure import Sky
from gpucoron.analysis.record import Record
from gpucoron.report.charts import Chart, legend
from gpucoron.report.html import figure, items, missing, section, table

__all__ = ["curves", "eigenvalues", "flags", "labels", "residuals", "shifts", "timeline"]

COLOURS = 6
DOTS = 3000


def _science(record):
    return [e for e in record.exposures.values() if e.exptype == "science"]


def curves(record: Record, sky: Sky | None):
    """(name, separations in arcsec, rms, colour, dash) of exposures, then of combined images."""
    radec = sky.radec if sky and sky.given else None
    exposures, images = [], []
    for k, e in enumerate(_science(record)):
        place = measure.star_in_exposure(e, radec)
        if place is None or e.before is None:
            continue
        width = max(measure.psf_fwhm(e.meta.filter or "") / place[2], 1.0)
        for j, (name, image) in enumerate(
            [("before", e.before), *((_kept(t), i) for t, i in e.after.items())]
        ):
            r, rms = measure.profile(image, place[:2], width)
            exposures.append((f"S{k + 1}, {name}", r * place[2], rms, k % COLOURS, j))
    if sky is not None:
        for k, (t, image) in enumerate(record.images.items()):
            r, rms = measure.profile(image, sky.star, max(sky.fwhm_px, 1.0))
            images.append((_kept(t), r * sky.arcsec_per_px, rms, k % COLOURS, k))
    return exposures, images


def _kept(truncate: int) -> str:
    return f"{truncate} KL vector{'s'[: truncate != 1]}"


def residuals(record: Record, sky: Sky | None, prefix: str) -> str:
    """Scatter in rings round the star, for each truncation."""
    exposures, images = curves(record, sky)
    charts = []
    for title, lines in (("Combined image", images), ("Exposures", exposures)):
        lines = [c for c in lines if np.isfinite(c[2]).any()]
        if not lines:
            continue
        chart = Chart(
            np.concatenate([c[1] for c in lines] + [[0.0]]),
            np.concatenate([c[2] for c in lines]),
            "separation, arcsec",
            "rms, MJy/sr",
            log_y=True,
            title=f"{title}: residual rms",
        )
        for _, x, y, colour, dash in lines:
            chart.line(x, y, colour, dash)
        few = lines if len(lines) <= 12 else lines[:12]
        note = "" if few is lines else f"and {len(lines) - 12} more curves"
        charts.append(
            figure(
                title,
                chart.svg()
                + legend([(name, colour, dash, "line") for name, _, _, colour, dash in few]),
                note,
            )
        )
    if not charts:
        return section(
            f"{prefix}rms",
            "Residuals against separation",
            missing("No curve: no exposure tells where its star is."),
        )
    return section(
        f"{prefix}rms",
        "Residuals against separation",
        f'<div class="row">{"".join(charts)}</div>',
        '<p class="soft">Standard deviation of the pixels in rings one FWHM wide, with all '
        "sources. Curves of exposures are of their mean over integrations.</p>",
    )


def shifts(record: Record, fits: dict, prefix: str) -> str:
    """How far each reference was moved."""
    title = "Shifts of the references"
    fits = {root: t for root, t in fits.items() if len(t)}
    if not fits:
        return section(
            f"{prefix}shifts", title, missing("No fits: align_refs or klip was skipped.")
        )
    parts = []
    numbers = {e.root: k for k, e in enumerate(_science(record), 1)}
    for root, table_of_fits in fits.items():
        s = measure.reference_shifts(table_of_fits, record.sources)
        heading = f"S{numbers.get(root, '?')}: {root}"
        if not np.isfinite(s.x).any():
            parts.append(figure(heading, missing("No fit has a result.")))
            continue
        named = [f"{s.names[k]}: {why}" for k, why in s.outliers]
        listed = (
            f"<p>{len(named)} stand{'s'[: len(named) == 1]} out:</p>{items(named[:20])}"
            if named
            else '<p class="soft">None stands out.</p>'
        )
        if len(named) > 20:
            listed += f"<p>and {len(named) - 20} more.</p>"
        parts.append(f'<h3>{heading}</h3><div class="row">{_whole(s)}{_within(s)}</div>{listed}')
    return section(
        f"{prefix}shifts",
        title,
        '<p class="soft">One point for each reference image: medians over the science '
        "integrations, with the fit's own error bars; small dots are single fits. R1, R2, ... are "
        "the reference exposures. Rings mark what stands out: a fit without result, a shift far "
        "from all others, or one far from its own exposure's.</p>",
        *parts,
    )


def _whole(s) -> str:
    every = s.every[:: max(1, math.ceil(len(s.every) / DOTS))]
    chart = Chart(
        np.r_[s.x - _or0(s.x_err), s.x + _or0(s.x_err)],
        np.r_[s.y - _or0(s.y_err), s.y + _or0(s.y_err)],
        "x, px",
        "y, px",
        square=True,
        height=420,
        title="shifts",
    )
    chart.dots(every["x"], every["y"], 5)
    chart.points(s.x, s.y, s.x_err, s.y_err, 0, s.names)
    _rings(chart, s, s.x, s.y)
    for g in np.unique(s.group):
        x, y = s.x[s.group == g], s.y[s.group == g]
        if np.isfinite(x).any():
            chart.text(np.nanmax(x), np.nanmedian(y), f"R{g + 1}", dx=7, dy=-5)
    return figure("", chart.svg(), "Shift that lays each reference onto the star")


def _within(s) -> str:
    if np.bincount(s.group).max() < 2:
        return ""
    x, y, ex, ey = (1000 * v for v in (s.dx, s.dy, s.x_err, s.y_err))
    chart = Chart(
        np.r_[x - _or0(ex), x + _or0(ex)],
        np.r_[y - _or0(ey), y + _or0(ey)],
        "x, px/1000",
        "y, px/1000",
        square=True,
        height=420,
        title="shifts less each exposure's median",
    )
    chart.points(x, y, ex, ey, 0, s.names)
    _rings(chart, s, x, y)
    return figure(
        "",
        chart.svg(),
        "The same less the median of each reference's own exposure, in thousandths of a pixel",
    )


def _rings(chart, s, x, y):
    stand_out = [k for k, _ in s.outliers]
    chart.points(
        x[stand_out], y[stand_out], colour=1, ring=True, names=[s.names[k] for k in stand_out]
    )


def _or0(values):
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def eigenvalues(record: Record, truncations: tuple[int, ...], prefix: str, why: str) -> str:
    """Spectrum of the KL bases, and what share of the variance each mode has."""
    title = "Eigenvalues"
    spectra = [np.asarray(v, float) for e in _science(record) for v in e.eigenvalues]
    spectra = [v for v in spectra if np.isfinite(v).all() and v.sum() > 0]
    if not spectra:
        return section(f"{prefix}eigen", title, missing(why))
    modes = max(map(len, spectra))
    values = np.full((len(spectra), modes), np.nan)
    for row, own in zip(values, spectra, strict=True):
        row[: len(own)] = own
    number = np.arange(1, modes + 1)
    low, middle, high = (
        np.nanmin(values, axis=0),
        np.nanmedian(values, axis=0),
        np.nanmax(values, axis=0),
    )
    spectrum = Chart(
        [1, modes],
        np.r_[low, high],
        "mode",
        "eigenvalue, (MJy/sr)²",
        log_y=True,
        title="eigenvalue spectrum",
    )
    spectrum.band(number, low, high, 0)
    spectrum.line(number, middle, 0)
    spectrum.points(number, middle, colour=0)
    share = 100 * values / np.nansum(values, axis=1, keepdims=True)
    each = np.nanmedian(share, axis=0)
    total = np.nanmedian(np.nancumsum(share, axis=1), axis=0)
    left = np.where(number < modes, 100 - total, np.nan)
    explained = Chart(
        [0.5, modes + 0.5],
        np.r_[each, left, 150.0],
        "mode",
        "variance, %",
        log_y=True,
        title="variance explained",
    )
    explained.bars(
        number, each, 0.8, 0, [f"mode {k}: {v:.3g} %" for k, v in zip(number, each, strict=True)]
    )
    explained.line(number, left, 1)
    explained.points(
        number,
        left,
        colour=1,
        names=[f"{k} modes: all but {v:.3g} %" for k, v in zip(number, left, strict=True)],
    )
    for chart in (spectrum, explained):
        for t in truncations:
            chart.rule(t + 0.5, f"{t}")
    kept = "; ".join(
        f"{_kept(t)} explain{'s'[: t == 1]} {_share(total[min(t, modes) - 1])}"
        for t in truncations
        if t > 0
    )
    return section(
        f"{prefix}eigen",
        title,
        '<div class="row">',
        figure(
            "Spectrum",
            spectrum.svg(),
            "Median over the science integrations; the band is their range",
        ),
        figure(
            "Variance explained",
            explained.svg()
            + legend([("by each mode", 0, 0, "fill"), ("left by all up to it", 1, 0, "line")]),
        ),
        f'</div><p class="soft">Of the covariance of the aligned references, {len(spectra)} '
        f"bas{'is' if len(spectra) == 1 else 'es'}. Dashed: what is kept. {kept}.</p>",
    )


def _share(percent: float) -> str:
    """A share with as many digits as tell it from all."""
    missing = 100 - percent
    digits = 2 if missing <= 0 else max(1, min(9, 1 - math.floor(math.log10(missing))))
    return f"{percent:.{digits}f} %"


def flags(record: Record, prefix: str) -> str:
    """Outliers found in each integration."""
    title = "Flagged pixels"
    known = [e for e in record.exposures.values() if e.outliers is not None]
    if not known:
        return section(f"{prefix}flags", title, missing("outlier_detection was skipped."))
    names = labels(record)
    counts = np.concatenate([np.asarray(e.outliers) for e in known])
    chart = Chart(
        [0.5, len(counts) + 0.5],
        np.r_[0, 1.1 * counts],
        "integration",
        "outliers found",
        title=title,
        height=260,
    )
    chart.x = (0.0, len(counts) + 1.0)
    start, rows = 0, []
    for e in known:
        n = len(e.outliers)
        at = np.arange(start, start + n) + 1
        chart.bars(
            at,
            e.outliers,
            0.8,
            1 if e.exptype == "science" else 0,
            [f"{e.root} integration {i + 1}: {c}" for i, c in enumerate(e.outliers)],
        )
        chart.rule(start + 0.5, names[e.root] if n >= len(counts) / 25 else "")
        start += n
        pixels = e.shape[1] * e.shape[2]
        rows.append(
            [
                names[e.root],
                e.root,
                n,
                int(np.median(e.outliers)),
                int(np.max(e.outliers)),
                f"{100 * float(np.mean(e.unusable)) / pixels:.2f} %",
            ]
        )
    drawn = figure(
        "", chart.svg() + legend([("science", 1, 0, "fill"), ("reference", 0, 0, "fill")])
    )
    return section(
        f"{prefix}flags",
        title,
        drawn if counts.any() else "<p>No outlier was found.</p>",
        table(
            ["", "exposure", "integrations", "outliers, median", "most", "pixels not used"],
            rows,
            (2, 3, 4, 5),
        ),
        '<p class="soft">Outliers: pixels flagged by outlier_detection in one integration. Pixels '
        "not used have DO_NOT_USE, outliers included.</p>",
    )


def labels(record: Record) -> dict[str, str]:
    """S1, S2, ... and R1, R2, ... by root name; references in the order of their stack."""
    stacked = list(dict.fromkeys(s.exposure for s in record.sources))
    names = {root: f"R{k}" for k, root in enumerate(stacked, 1)}
    science = (e for e in _science(record))
    return {
        **{r: "R–" for r in record.exposures},
        **names,
        **{e.root: f"S{k}" for k, e in enumerate(science, 1)},
    }


def timeline(spans, timings: dict[str, float]) -> str:
    """Which step worked when."""
    if not spans:
        return section("timeline", "Timeline", missing("No times were taken."))
    begin, end = min(s[1] for s in spans), max(s[2] for s in spans)
    total = max(end - begin, 1e-9)
    steps = list(dict.fromkeys(s[0] for s in spans))
    chart = Chart(
        [0, total],
        [0, 1],
        "seconds since the first step began",
        "",
        height=56 + 26 * len(steps),
        title="timeline",
    )
    chart.left, chart.x = 128, (0.0, total)
    chart.y = (0.0, float(len(steps)))
    parts = []
    for row, step in enumerate(steps):
        y = chart.top + 26 * row
        for a, b in _merged([s[1:] for s in spans if s[0] == step], total / 400):
            x, w = float(chart.px(a - begin)), float(chart.px(b - begin) - chart.px(a - begin))
            parts.append(
                f'<rect class="fill c0" x="{x:.1f}" y="{y + 5}" width="{max(w, 0.8):.1f}" '
                'height="16"/>'
            )
        parts.append(f'<text x="{chart.left - 6}" y="{y + 18}" text-anchor="end">{step}</text>')
    chart.parts = parts
    rows = [
        [step, f"{seconds:.2f}", f"{100 * seconds / total:.0f} %"]
        for step, seconds in timings.items()
    ]
    rows.append(["total", f"{total:.2f}", ""])
    return section(
        "timeline",
        "Timeline",
        '<div class="row">',
        figure("", chart.svg(y_axis=False)),
        table(["step", "seconds", ""], rows, (1, 2)),
        "</div>",
        '<p class="soft">Reading ahead and writing go on beside the other steps; what '
        "is shown of them is the time spent waiting.</p>",
    )


def _merged(spans, gap: float):
    """Join spans that are no further apart than `gap`."""
    out: list[list[float]] = []
    for a, b in sorted(spans):
        if out and a - out[-1][1] <= gap:
            out[-1][1] = max(out[-1][1], b)
        else:
            out.append([a, b])
    return out
