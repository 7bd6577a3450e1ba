"""Charts: residuals, shifts of the references, eigenvalues, flagged pixels, timeline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from gpucoron.analysis import measure
from gpucoron.analysis.contrast import Contrast
from gpucoron.analysis.measure import Shifts, Sky, science_exposures
from gpucoron.analysis.photometry import SkyCandidate
from gpucoron.analysis.record import Record
from gpucoron.report.canvas import COLOURS, equal_scale, label_directions, log_scale, style

DASHES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
NAMED = 12  # entries of a legend
DOTS = 3000  # single fits that are drawn


@dataclass(frozen=True)
class Curve:
    """Residual rms of one image against separation."""

    exposure: str  # S1, S2, ...; empty for the combined image
    truncate: int | None  # None before subtraction
    separation: np.ndarray  # (n,), arcsec
    rms: np.ndarray  # (n,), in the unit of the images


def kl_vectors(truncate: int) -> str:
    """Write how many KL vectors were subtracted."""
    return f"{truncate} KL vector{'s'[: truncate != 1]}"


def exposure_curves(record: Record, sky: Sky | None) -> list[Curve]:
    """Measure the residual rms of each science exposure, before and after subtraction."""
    radec = sky.radec if sky and sky.given else None
    curves = []
    for k, e in enumerate(science_exposures(record), 1):
        place = measure.star_in_exposure(e, radec)
        if place is None or e.before is None:
            continue
        width = max(measure.psf_fwhm(e.meta.filter or "") / place[2], 1.0)
        for truncate, image in ((None, e.before), *e.after.items()):
            r, rms = measure.profile(image, place[:2], width)
            curves.append(Curve(f"S{k}", truncate, r * place[2], rms))
    return [c for c in curves if np.isfinite(c.rms).any()]


def image_curves(record: Record, sky: Sky | None) -> list[Curve]:
    """Measure the residual rms of the combined image of each truncation."""
    curves = []
    if sky is None:
        return []
    for truncate, image in record.images.items():
        r, rms = measure.profile(image, sky.star, max(sky.fwhm_px, 1.0))
        curves.append(Curve("", truncate, r * sky.arcsec_per_px, rms))
    return [c for c in curves if np.isfinite(c.rms).any()]


def draw_residuals(axes: Axes, curves: Sequence[Curve], unit: str) -> None:
    """Draw rms against separation: a colour for each truncation, a dash for each exposure."""
    truncations = sorted({c.truncate for c in curves if c.truncate is not None})
    looks: dict[int | None, dict[str, Any]] = {None: {"color": "0.35", "linewidth": 1.3}}
    for t, place in zip(truncations, np.linspace(0, 1, len(truncations)), strict=True):
        # the last are thinner, and leave the first visible where they are the same
        looks[t] = {"color": colormaps["plasma"](0.85 * place), "linewidth": 2.4 - 1.1 * place}
    names = list(dict.fromkeys(c.exposure for c in curves))
    dashes = {name: DASHES[k % len(DASHES)] for k, name in enumerate(names)}
    style(axes, "separation (arcsec)", f"rms ({unit})")
    for c in curves:
        axes.plot(c.separation, c.rms, linestyle=dashes[c.exposure], **looks[c.truncate])
    axes.set_xlim(left=0)
    log_scale(axes)
    kinds = {c.truncate: "before" if c.truncate is None else kl_vectors(c.truncate) for c in curves}
    handles = [Line2D([], [], label=text, **looks[t]) for t, text in kinds.items()]
    if names != [""]:
        handles += [Line2D([], [], color="k", linestyle=dashes[n], label=n) for n in names]
    if len(handles) > NAMED:
        more = len(handles) - NAMED + 1
        handles[NAMED - 1 :] = [Line2D([], [], linestyle="", label=f"and {more} more")]
    axes.legend(handles=handles, loc="upper right", ncols=1 + (len(handles) > 4))


def draw_limits(axes: Axes, contrast: Contrast, planets: Sequence[tuple[float, float]]) -> None:
    """Draw contrast curves for each truncation and the best of them; candidates are points.

    `planets` are separation (arcsec) and flux (Jy) of candidates.
    """
    scale = contrast.peak if contrast.star_jy is None else contrast.jansky / contrast.star_jy
    name = f"limit at the peak ({contrast.unit})" if contrast.unit else "contrast"
    style(axes, "separation (arcsec)", f"{contrast.sigma:g}-sigma {name}")
    places = np.linspace(0, 1, len(contrast.truncations))
    for truncate, limit, place in zip(contrast.truncations, contrast.limit, places, strict=True):
        color = colormaps["plasma"](0.85 * place)
        axes.plot(contrast.separation, scale * limit, color=color, label=kl_vectors(truncate))
    if len(contrast.truncations) > 1:
        best = scale * contrast.best_limit
        axes.plot(contrast.separation, best, "k--", linewidth=1, label="best at each separation")
    if planets and contrast.star_jy is not None:
        separations, fluxes = np.transpose(planets)
        points = fluxes / contrast.star_jy
        axes.plot(separations, points, "o", color=COLOURS[1], label="candidates")
    axes.set_xlim(left=0)
    log_scale(axes)
    axes.legend(loc="upper right")


def draw_throughput(axes: Axes, contrast: Contrast) -> None:
    """Draw what mask and KLIP leave of a source's light, for each truncation."""
    style(axes, "separation (arcsec)", "throughput of mask and KLIP")
    places = np.linspace(0, 1, len(contrast.truncations))
    for truncate, share, place in zip(
        contrast.truncations, contrast.throughput, places, strict=True
    ):
        color = colormaps["plasma"](0.85 * place)
        axes.plot(contrast.separation, share, color=color, label=kl_vectors(truncate))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")


def draw_by_modes(axes: Axes, candidates: Sequence[SkyCandidate]) -> None:
    """Draw the SNR of candidates against the number of KL modes."""
    style(axes, "KL modes", "SNR")
    for k, candidate in enumerate(candidates, 1):
        modes, snr = zip(*sorted(candidate.by_truncation.items()), strict=True)
        color = COLOURS[(k - 1) % len(COLOURS)]
        axes.plot(modes, snr, "o-", color=color, label=f"candidate {k}")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.legend(loc="best")


def shifts_by_exposure(record: Record, fits: Mapping[str, np.ndarray]) -> dict[str, Shifts]:
    """Summarise the alignment fits of each science exposure that has any, by S1, S2, ..."""
    names = {e.root: f"S{k}" for k, e in enumerate(science_exposures(record), 1)}
    return {
        names.get(root, root): measure.reference_shifts(table, record.sources_of(root))
        for root, table in fits.items()
        if len(table)
    }


def draw_shifts(axes: Axes, shifts: Mapping[str, Shifts], *, within: bool = False) -> None:
    """Draw the shift of every reference image with its error bars, by science exposure.

    Names stand beside the points of the first; a legend if there are several. `within` draws what
    is left after subtracting the median of each reference's own exposure, in thousandths of a
    pixel.
    """
    unit, scale = ("10⁻³ px", 1000) if within else ("px", 1)
    style(axes, f"Δx ({unit})", f"Δy ({unit})")
    for k, (name, s) in enumerate(shifts.items()):
        x, y = (s.dx, s.dy) if within else (s.x, s.y)
        if not within:
            every = s.every[:: max(1, math.ceil(len(s.every) / DOTS))]
            axes.plot(every["x"], every["y"], ".", color="0.6", markersize=3, markeredgewidth=0)
        axes.errorbar(
            scale * x,
            scale * y,
            scale * np.where(s.y_err >= 0, s.y_err, 0),
            scale * np.where(s.x_err >= 0, s.x_err, 0),
            fmt="o",
            color=COLOURS[k % len(COLOURS)],
            markersize=4,
            elinewidth=1,
            label=name,
        )
        rings = [n for n, _ in s.outliers]
        axes.plot(scale * x[rings], scale * y[rings], "o", mfc="none", mec="#d55e00", ms=11)
    equal_scale(axes)
    if not within and shifts:
        _name_references(axes, next(iter(shifts.values())))
    if len(shifts) > 1:
        axes.legend()


def _name_references(axes: Axes, s: Shifts) -> None:
    """Write R1, R2, ... beside the median of each reference exposure."""
    groups = [g for g in np.unique(s.group) if np.isfinite((s.x + s.y)[s.group == g]).any()]
    points = [(np.nanmedian(s.x[s.group == g]), np.nanmedian(s.y[s.group == g])) for g in groups]
    for g, point, way in zip(groups, points, label_directions(axes, points), strict=True):
        axes.annotate(
            f"R{g + 1}",
            point,
            13 * way,
            textcoords="offset points",
            ha="center",
            va="center",
            annotation_clip=True,
        )


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of the KL bases of a product."""

    values: np.ndarray  # (bases, modes), `unit`²; NaN where a basis has fewer modes
    each: np.ndarray  # (modes,), median share of the variance of each mode, percent
    total: np.ndarray  # (modes,), median share of all modes up to each, percent
    unit: str  # of the images


def spectrum(record: Record) -> Spectrum | None:
    """Collect the eigenvalues of all KL bases; None without any."""
    bases = [np.asarray(v, float) for e in science_exposures(record) for v in e.eigenvalues]
    bases = [v for v in bases if np.isfinite(v).all() and v.sum() > 0]
    if not bases:
        return None
    values = np.full((len(bases), max(map(len, bases))), np.nan)
    for row, basis in zip(values, bases, strict=True):
        row[: len(basis)] = basis
    share = 100 * values / np.nansum(values, axis=1, keepdims=True)
    total = np.nanmedian(np.nancumsum(share, axis=1), axis=0)
    return Spectrum(values, np.nanmedian(share, axis=0), total, record.unit)


def draw_spectrum(axes: Axes, spectrum: Spectrum, truncations: Iterable[int] = ()) -> None:
    """Draw the eigenvalues: median over the bases, and their range as a band."""
    style(axes, "mode", f"eigenvalue (({spectrum.unit})²)")
    modes = np.arange(1, spectrum.values.shape[1] + 1)
    low, high = np.nanmin(spectrum.values, axis=0), np.nanmax(spectrum.values, axis=0)
    axes.fill_between(modes, low, high, color=COLOURS[0], alpha=0.25, linewidth=0)
    axes.plot(modes, np.nanmedian(spectrum.values, axis=0), "o-", color=COLOURS[0], markersize=4)
    log_scale(axes)
    _mark_truncations(axes, truncations, len(modes))


def draw_variance(axes: Axes, spectrum: Spectrum, truncations: Iterable[int] = ()) -> None:
    """Draw the share of the variance of each mode, and what all modes up to it leave."""
    style(axes, "mode", "variance (%)")
    modes = np.arange(1, len(spectrum.each) + 1)
    edges = np.arange(len(modes) + 1) + 0.5
    axes.stairs(spectrum.each, edges, fill=True, color="#80b8d8", label="of each mode")
    left = (100 - spectrum.total)[:-1]
    axes.plot(modes[:-1], left, "o-", color=COLOURS[1], markersize=4, label="left by all up to it")
    log_scale(axes)
    _mark_truncations(axes, truncations, len(modes))
    axes.legend(loc="upper right")


def _mark_truncations(axes: Axes, truncations: Iterable[int], modes: int) -> None:
    """Draw a dashed line behind the last mode that each truncation keeps."""
    for t in truncations:
        if 0 <= t < modes:
            axes.axvline(t + 0.5, color="0.3", linestyle="--", linewidth=1)
            axes.annotate(
                f"{t}",
                (t + 0.5, 1),
                (0, 4),
                ("data", "axes fraction"),
                "offset points",
                ha="center",
            )
    axes.set_xlim(0.4, modes + 0.6)
    axes.locator_params("x", integer=True)


def draw_flags(axes: Axes, counts: Sequence[tuple[str, np.ndarray]]) -> None:
    """Draw the number of outliers in each integration, exposure by exposure (S1, R1, ...)."""
    style(axes, "integration", "outliers")
    total, start = sum(len(values) for _, values in counts), 0
    for name, values in counts:
        edges = start + np.arange(len(values) + 1) + 0.5
        axes.stairs(values, edges, fill=True, color=COLOURS[1 if name.startswith("S") else 0])
        if start:
            axes.axvline(start + 0.5, color="0.6", linestyle=":", linewidth=1)
        if len(values) >= total / 30:
            axes.annotate(
                name,
                (edges.mean(), 1),
                (0, 3),
                ("data", "axes fraction"),
                "offset points",
                ha="center",
            )
        start += len(values)
    axes.set_xlim(0.4, total + 0.6)
    axes.locator_params("x", integer=True)
    axes.legend(
        handles=[
            Line2D([], [], color=COLOURS[k], linewidth=6, label=text)
            for k, text in ((1, "science"), (0, "reference"))
        ]
    )


def draw_timeline(axes: Axes, spans: Sequence[tuple[str, float, float]]) -> None:
    """Draw when each step worked: a row for each, seconds since the first began."""
    begin, end = min(s[1] for s in spans), max(s[2] for s in spans)
    steps = list(dict.fromkeys(s[0] for s in spans))
    style(axes, "time (s)", "")
    for row, step in enumerate(steps):
        times = np.array(sorted(s[1:] for s in spans if s[0] == step)) - begin
        starts, ends = times[:, 0], np.maximum.accumulate(times[:, 1])
        apart = starts[1:] - ends[:-1] > (end - begin) / 400  # less is not to be seen
        starts, ends = starts[np.r_[True, apart]], ends[np.r_[apart, True]]
        bars = list(zip(starts, ends - starts, strict=True))
        axes.broken_barh(bars, (row - 0.35, 0.7), color=COLOURS[0], linewidth=0.8)
    axes.set_yticks(range(len(steps)), steps)
    axes.set(xlim=(0, None), ylim=(len(steps) - 0.4, -0.6))
    axes.grid(False, axis="y")
