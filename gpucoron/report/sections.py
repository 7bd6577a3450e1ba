"""What each section of the report shows: drawings and rows of tables."""

from __future__ import annotations

import math
from textwrap import shorten
from typing import Any

import numpy as np
from matplotlib.colors import Normalize

from gpucoron.analysis import measure
from gpucoron.analysis.contrast import Contrast
from gpucoron.analysis.measure import Sky, science_exposures
from gpucoron.analysis.photometry import SkyCandidate
from gpucoron.analysis.record import ExposureRecord, Record
from gpucoron.core import text
from gpucoron.core.star import CombinedStar
from gpucoron.report import images, plots
from gpucoron.report.canvas import Drawing, chart, drawing, image_axes
from gpucoron.report.images import LISTED, Frame, asinh_norm
from gpucoron.steps.reference_ranking import LIKELY_SOURCE

INNER_ARCSEC = 3.5  # half a side of the enlarged middle


def number(value: float | None, digits: int = 2) -> str:
    """Write a number with a true minus sign; a dash where it is not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


def with_error(value: float, error: float) -> str:
    """Write a number with its error, to two digits of the error."""
    return text.with_error(value, error).replace("+-", "±").replace("-", "−")


def labels(record: Record) -> dict[str, str]:
    """Name exposures S1, S2, ... and R1, R2, ... by root; references in the order of psfstack."""
    stacked = dict.fromkeys(s.exposure for s in record.sources)
    return {
        **dict.fromkeys(record.exposures, "R–"),
        **{root: f"R{k}" for k, root in enumerate(stacked, 1)},
        **{e.root: f"S{k}" for k, e in enumerate(science_exposures(record), 1)},
    }


def _boxes(shape, sky: Sky | None) -> list[tuple[int, int, int, int] | None]:
    """Return None for the whole image, and a box around the star if that is much smaller."""
    if sky is None:
        return [None]
    half = max(INNER_ARCSEC / sky.arcsec_per_px, 8 * sky.fwhm_px)
    (x, y), (ny, nx) = sky.star, shape
    x0, y0 = max(round(x - half), 0), max(round(y - half), 0)
    x1, y1 = min(round(x + half) + 1, nx), min(round(y + half) + 1, ny)
    small = x1 - x0 < 8 or y1 - y0 < 8 or 1.6 * (x1 - x0) > nx
    return [None] if small else [None, (x0, y0, x1, y1)]


def _sky_views(
    image, norm, record: Record, sky: Sky | None, candidates, outlines, alt: str, **options
) -> list[Drawing]:
    """Draw a combined image or map, whole and its middle, with all that is marked in it."""
    views, frame = [], images.combined_frame(record, sky)
    for box in _boxes(image.shape, sky):
        x0, y0, x1, y1 = box or (0, 0, *image.shape[::-1])
        axes = image_axes((y1 - y0, x1 - x0))
        stretch = norm or asinh_norm(image[y0:y1, x0:x1])
        images.draw_image(axes, image, stretch, frame, box=box, **options)
        images.draw_outlines(axes, outlines, frame)
        if sky:
            images.draw_compass(axes, sky.north, sky.east)
            images.draw_candidates(axes, candidates, frame, sky)
        text = f"{alt}, the middle enlarged" if box else alt
        views.append(drawing(axes.figure, text if stretch else f"{text}: no finite pixel"))
    return views


def combined(
    record: Record, sky: Sky | None, candidates: list[SkyCandidate]
) -> dict[int, list[Drawing]]:
    """Draw the combined image of each truncation."""
    outlines = images.sky_outlines(record)
    return {
        truncate: _sky_views(
            *(image, None, record, sky, candidates, outlines),
            f"Combined image, {plots.kl_vectors(truncate)}",
            unit=record.unit,
        )
        for truncate, image in record.images.items()
    }


_FOUND = {
    "given": "at the position given",
    "model": "as measured by a model of the optics",
    "symmetry": "as measured by the symmetry of the images",
}


def star_text(sky: Sky | None, star: CombinedStar | None) -> str:
    """Say where the star of the combined image is from, how well it is known, what it means."""
    if sky is None:
        return "No exposure has the position of the star."
    if sky.given:
        return "Cross: the star, at the position given."
    if star is None or star.position.source == "wcs":
        text = (
            "Cross: the star, assumed where the exposures' headers have it (STARCENX or CRPIX), "
            "where target acquisition puts it to about 0.02″"
        )
    else:
        (x, y), (x_err, y_err) = star.position.mean, star.position.mean_error
        text = f"Cross: the star, {_FOUND[star.position.source]}: x, y = {x:.2f}, {y:.2f}"
        if math.isfinite(x_err) and math.isfinite(y_err):
            text += f" ± {x_err:.2g}, {y_err:.2g} px (from 1)"
    spread = sky.spread_px * sky.arcsec_per_px if star is None else star.spread
    if star is not None and star.center == "star":
        return (
            f"{text}. The exposures are combined about it; by their GWCSs it is up to "
            f"{spread:.3f}″ from the mean."
        )
    if spread > 0.005:
        text += f"; the exposures differ by up to {spread:.2f}″ from the mean"
    return f"{text}."


def significance_map(
    record: Record, sky: Sky, significance: np.ndarray, candidates: list[SkyCandidate]
) -> list[Drawing]:
    """Draw the map of significance, -4 to the maximum (6 to 12) sigma."""
    finite = significance[np.isfinite(significance)]
    norm = Normalize(-4, float(np.clip(finite.max(), 6, 12))) if finite.size else None
    options = {"unit": "σ", "colours": "inferno"}
    alt = "Map of the significance in Gaussian sigmas"
    return _sky_views(significance, norm, record, sky, candidates, [], alt, **options)


def candidate_table(record: Record, candidates: list[SkyCandidate]) -> dict[str, Any]:
    """Make header, rows and classes of the table of candidates."""
    roots = [e.root for e in science_exposures(record)]
    several = list(record.images) if len(record.images) > 1 else []
    contrasts = any(math.isfinite(s.contrast) for s in candidates)
    header = [
        *("", "separation", "PA", "flux, µJy"),
        *(["contrast"] if contrasts else []),
        *("sigma", "SNR"),
        *(f"S{k}" for k in range(1, len(roots) + 1)),
        "caveat",
        *(f"{t} KL" for t in several),
        *("x, y", "RA, Dec"),
    ]
    rows = [
        [
            k,
            f"{s.separation:.3f}″ ± {s.separation_err:.3f}",
            f"{with_error(s.angle, s.angle_err)}°",
            with_error(1e6 * s.flux_jy, 1e6 * s.flux_jy_err),
            *([f"{s.contrast:.2e} ± {s.contrast_err:.0e}"] if contrasts else []),
            number(s.candidate.significance, 1),
            number(s.candidate.snr, 1),
            *(number(s.by_exposure.get(root), 1) for root in roots),
            s.caveat,
            *(number(s.by_truncation.get(t), 1) for t in several),
            f"{number(s.candidate.x, 1)}, {number(s.candidate.y, 1)}",
            f"{s.ra:.6f}°, {number(s.dec, 6)}°",
        ]
        for k, s in enumerate(candidates[:LISTED], 1)
    ]
    numbers = [k for k, name in enumerate(header) if k and name != "caveat"]
    classes = ["doubtful" if s.doubtful else "" for s in candidates[:LISTED]]
    return {"header": header, "rows": rows, "right": numbers, "classes": classes}


def before_after(record: Record, sky: Sky | None) -> list[dict[str, Any]]:
    """Draw each science exposure before and after subtraction."""
    outlines = images.mask_outline(record.mask)
    exposures = []
    for k, e in enumerate(science_exposures(record), 1):
        truncate = max(e.after, default=0)
        shown = [] if e.before is None else [("before", e.before)]
        if e.after:
            shown.append((f"after, {plots.kl_vectors(truncate)}", e.after[truncate]))
        views = [
            (text, _exposure(record, e, sky, outlines, i, f"S{k}, {text}")) for text, i in shown
        ]
        north = _north_up(record, e, sky, shown[-1][1], f"S{k}, {shown[-1][0]}") if shown else None
        exposures.append({"heading": f"S{k}: {e.root}", "views": views, "north": north})
    return exposures


def _north_up(
    record: Record, e: ExposureRecord, sky: Sky | None, image: np.ndarray, alt: str
) -> Drawing | None:
    """Draw the mean image of an exposure with north up, as large as the field; None without WCS."""
    place = measure.star_in_exposure(e, sky.radec if sky and sky.given else None)
    if place is None or e.wcs is None:
        return None
    x, y, scale = place
    ra, dec = (float(v) for v in e.wcs.pixel_to_sky(x, y, everywhere=True))
    turned = images.north_up(
        *(image, (x, y), measure.sky_axes(e.wcs, (x, y), (ra, dec))),
        *(max(image.shape) * scale, scale),
    )
    middle = (turned.shape[0] - 1) / 2
    axes = image_axes(turned.shape)
    frame = Frame((middle, middle), scale)
    images.draw_image(axes, turned, asinh_norm(turned), frame, unit=record.unit)
    images.draw_compass(axes)
    return drawing(axes.figure, f"Mean image of {alt}, north up")


def cut_outs(record: Record, sky: Sky, candidates: list[SkyCandidate]) -> list[Drawing]:
    """Draw the surroundings of each listed candidate in the combined image, north up."""
    image, scale = record.images[max(record.images)], sky.arcsec_per_px
    axes = np.array([sky.north, sky.east]) / scale
    side = 12 * sky.fwhm_px * scale
    drawn = []
    for k, s in enumerate(candidates[:LISTED], 1):
        turned = images.north_up(image, (s.candidate.x, s.candidate.y), axes, side, scale / 2)
        drawn.append(
            drawing(
                images.small_image(turned, 3 * sky.fwhm_px),
                f"Candidate {k} in the combined image, {side:.1f}″ across, north up, east left",
            )
        )
    return drawn


def _exposure(
    record: Record, e: ExposureRecord, sky: Sky | None, outlines, image: np.ndarray, alt: str
) -> Drawing:
    place = measure.star_in_exposure(e, sky.radec if sky and sky.given else None)
    frame = Frame(place[:2], place[2]) if place else Frame()
    axes = image_axes(image.shape)
    images.draw_image(axes, image, asinh_norm(image), frame, unit=record.unit)
    if np.shape(record.mask) == image.shape:
        images.draw_outlines(axes, outlines, frame)
    return drawing(axes.figure, f"Mean image of {alt}")


def residuals(record: Record, sky: Sky | None) -> list[tuple[str, Drawing]]:
    """Draw the residual rms against separation of combined images and of exposures."""
    drawn = []
    for title, curves in (
        ("Combined image", plots.image_curves(record, sky)),
        ("Exposures", plots.exposure_curves(record, sky)),
    ):
        if curves:
            axes = chart()
            plots.draw_residuals(axes, curves, record.unit)
            drawn.append((title, drawing(axes.figure, f"{title}: residual rms against separation")))
    return drawn


def limits(contrast: Contrast | None, candidates: list[SkyCandidate]) -> dict[str, Any] | None:
    """Draw contrast curve and throughput, where the run has measured them."""
    if contrast is None:
        return None
    planets = [(s.separation, s.flux_jy) for s in candidates if not s.doubtful]
    views = []
    axes = chart()
    plots.draw_limits(axes, contrast, planets)
    views.append(drawing(axes.figure, "Contrast curve: limit of detection against separation"))
    if contrast.calibrated:
        axes = chart()
        plots.draw_throughput(axes, contrast)
        views.append(drawing(axes.figure, "Throughput against separation"))
    known = {"psf": "PSF"}
    assumptions = [
        (known.get(name, name.capitalize()), shorten(text, 300, placeholder=" ..."))
        for name, text in contrast.assumptions.items()
    ]
    return {"views": views, "assumptions": assumptions}


def shifts(record: Record, fits: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Draw the shifts of the references onto each science exposure, and name outliers."""
    roots = [root for root, table in fits.items() if len(table)]
    exposures = []
    for root, (name, s) in zip(roots, plots.shifts_by_exposure(record, fits).items(), strict=True):
        views = []
        if np.isfinite(s.x).any():
            axes = chart(4.2)
            plots.draw_shifts(axes, {name: s})
            views.append(drawing(axes.figure, f"Shifts of the references onto {name}, pixels"))
            if np.bincount(s.group).max() > 1:
                axes = chart(4.2)
                plots.draw_shifts(axes, {name: s}, within=True)
                alt = f"Shifts onto {name} less the median of each reference exposure"
                views.append(drawing(axes.figure, alt))
        outliers = [f"{s.names[k]}: {why}" for k, why in s.outliers]
        exposures.append({"heading": f"{name}: {root}", "views": views, "outliers": outliers})
    return exposures


def ranked_references(record: Record, rankings: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Make header, rows and classes of the table of references of each science exposure."""
    names = labels(record)
    header = ["", "exposure", "integrations", "correlation", "share", "left", "source", "x", "y"]
    return [
        {
            "heading": f"{names.get(root, '')}: {root}",
            "header": header,
            "rows": [
                [
                    *(names.get(row["exposure"], ""), row["exposure"], int(row["integrations"])),
                    *(number(float(row[name]), 3) for name in ("correlation", "share", "left")),
                    *(number(float(row[name]), 0) for name in ("source", "x", "y")),
                ]
                for row in ranking
            ],
            "right": list(range(2, len(header))),
            "classes": ["doubtful" if row["source"] > LIKELY_SOURCE else "" for row in ranking],
        }
        for root, ranking in rankings.items()
    ]


def eigenvalues(record: Record, truncations: tuple[int, ...]) -> dict[str, Any] | None:
    """Draw the spectrum of the KL bases and the variance that their modes explain."""
    spectrum = plots.spectrum(record)
    if spectrum is None:
        return None
    views = []
    for draw, title in (
        (plots.draw_spectrum, "Spectrum"),
        (plots.draw_variance, "Variance explained"),
    ):
        axes = chart()
        draw(axes, spectrum, truncations)
        views.append((title, drawing(axes.figure, f"{title} of the KL bases by mode")))
    last = len(spectrum.total) - 1
    explained = {t: _share(spectrum.total[min(t - 1, last)]) for t in truncations if t > 0}
    return {"views": views, "bases": len(spectrum.values), "explained": explained}


def _share(percent: float) -> str:
    """Write a percentage with the digits that distinguish it from 100."""
    missing = 100 - percent
    if missing < 1e-9:
        return "100 %"
    return f"{percent:.{max(1, 1 - math.floor(math.log10(missing)))}f} %"


def flags(record: Record) -> dict[str, Any] | None:
    """Draw the outliers of each integration; None if outlier_detection was skipped."""
    names = labels(record)
    flagged = [e for e in record.exposures.values() if e.outliers is not None]
    if not flagged:
        return None
    axes = chart(2.9)
    plots.draw_flags(axes, [(names[e.root], np.asarray(e.outliers)) for e in flagged])
    rows = [
        [
            names[e.root],
            e.root,
            len(e.outliers),
            int(np.median(e.outliers)),
            int(np.max(e.outliers)),
            f"{100 * float(np.mean(e.unusable)) / (e.shape[1] * e.shape[2]):.2f} %",
        ]
        for e in flagged
    ]
    some = any(np.any(e.outliers) for e in flagged)
    alt = "Number of outliers in each integration"
    return {"view": drawing(axes.figure, alt) if some else None, "rows": rows}


def timeline(spans) -> Drawing | None:
    """Draw when each step worked."""
    if not spans:
        return None
    axes = chart(0.9 + 0.3 * len({s[0] for s in spans}), left=1.4)
    plots.draw_timeline(axes, spans)
    return drawing(axes.figure, "When each step worked")
