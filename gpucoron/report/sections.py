"""The parts of the report that are about images."""

from __future__ import annotations

import math

import numpy as np

from gpucoron.analysis import measure
from gpucoron.analysis.measure import Seen, Sky
from gpucoron.analysis.record import Record
from gpucoron.report import overlays
from gpucoron.report.html import figure, missing, number, section, table
from gpucoron.report.pictures import Stretch, colour_bar, picture, robust_stretch

__all__ = ["before_after", "candidates", "combined", "snr"]

INNER_ARCSEC = 3.5  # half a side of the enlarged middle
LISTED = 10
UNIT = "MJy/sr"


def _inner(shape, sky: Sky):
    """The box round the star that is shown enlarged; None where it is not much smaller."""
    half = max(INNER_ARCSEC / sky.arcsec_per_px, 8 * sky.fwhm_px)
    x, y = sky.star
    box = (
        max(round(x - half), 0),
        max(round(y - half), 0),
        min(round(x + half) + 1, shape[1]),
        min(round(y + half) + 1, shape[0]),
    )
    if box[2] - box[0] < 8 or box[3] - box[1] < 8 or 1.6 * (box[2] - box[0]) > shape[1]:
        return None
    return box


def _mask_lines(record: Record):
    """The psfmask's outlines on the combined image, one set for each orientation."""
    if record.mask is None or record.wcs is None or not (np.asarray(record.mask) < 0.5).any():
        return []
    segments, drawn, seen = overlays.mask_outline(record.mask), [], set()
    for e in record.exposures.values():
        if e.wcs is None or e.wcs.key in seen or tuple(e.shape[1:]) != np.shape(record.mask):
            continue
        seen.add(e.wcs.key)
        sky = e.wcs.pixel_to_sky(segments[..., 0], segments[..., 1], everywhere=True)
        drawn.append(overlays.outline(np.stack(record.wcs.sky_to_pixel(*sky), axis=-1)))
    return drawn


def _over(record: Record, sky: Sky | None, seen: list[Seen], mask: bool = True):
    over = _mask_lines(record) if mask else []
    if sky is None:
        return [*over, overlays.scale_bar(record.wcs.pixel_scale)] if record.wcs else over
    good = [(k, s.candidate) for k, s in enumerate(seen[:LISTED], 1) if not s.doubt]
    return [
        *over,
        overlays.star_mark(*sky.star),
        overlays.scale_bar(sky.arcsec_per_px),
        overlays.compass({"N": sky.north, "E": sky.east}),
        overlays.circles(
            [(c.x, c.y) for _, c in good], [str(k) for k, _ in good], 1.5 * sky.fwhm_px
        ),
    ]


def combined(record: Record, sky: Sky | None, seen: list[Seen], prefix: str, why: str) -> str:
    """The combined image of each truncation."""
    if not record.images:
        return section(f"{prefix}image", "Combined image", missing(why))
    parts, several = [], len(record.images) > 1
    for k, (truncate, image) in enumerate(record.images.items(), 1):
        stretch = robust_stretch(image)
        label = f"combined image, klip.truncate {truncate}"
        over = _over(record, sky, seen)
        views = [
            figure("", picture(image, stretch, label=label, over=over) + colour_bar(stretch, UNIT))
        ]
        box = _inner(image.shape, sky) if sky else None
        if box:
            near = robust_stretch(image[box[1] : box[3], box[0] : box[2]])
            views.append(
                figure(
                    "",
                    picture(image, near, label=f"{label}, the middle", box=box, over=over)
                    + colour_bar(near, UNIT),
                )
            )
        parts.append(
            f'<div class="of" data-k="{k}"><h3>{label}</h3>'
            f'<div class="row">{"".join(views)}</div></div>'
        )
    picks = (
        "".join(
            f'<input class="pick" type="radio" name="{prefix}i2d" id="{prefix}i2d{k}" data-k="{k}"'
            f"{' checked' if t == max(record.images) else ''}>"
            f'<label for="{prefix}i2d{k}">{t} KL vectors</label>'
            for k, t in enumerate(record.images, 1)
        )
        if several
        else ""
    )
    caption = (
        "Mean surface brightness, asinh stretch; grey: no data. "
        + _mask_text(record)
        + _star_text(sky)
    )
    return section(
        f"{prefix}image",
        "Combined image",
        f'<div class="{"choice" if several else "single"}">{picks}{"".join(parts)}'
        f'</div><p class="soft">{caption}</p>',
    )


def _mask_text(record: Record) -> str:
    if record.mask is None or not (np.asarray(record.mask) < 0.5).any():
        return "No psfmask: all pixels count, and none is marked. "
    return "Orange: where the psfmask falls below a half, for each roll. "


def _star_text(sky: Sky | None) -> str:
    if sky is None:
        return "No exposure tells where the star is."
    if sky.given:
        return "Cross: the star, where it was given."
    text = (
        "Cross: the star, taken to be at the exposures' reference pixel (CRPIX), where target "
        "acquisition puts it to some 0.02″"
    )
    spread = sky.spread_px * sky.arcsec_per_px
    return text + (
        f"; the exposures' differ by up to {spread:.2f}″ from the mean." if spread > 0.005 else "."
    )


def snr(record: Record, sky: Sky | None, significance, seen: list[Seen], prefix: str) -> str:
    """The map of significance."""
    if significance is None:
        return section(
            f"{prefix}snr",
            "Signal to noise",
            missing("No map: there is no combined image, or its star is not known."),
        )
    finite = significance[np.isfinite(significance)]
    stretch = Stretch(-4.0, float(np.clip(finite.max(), 6, 12))) if finite.size else None
    over = _over(record, sky, seen, mask=False)
    unit = "significance, Gaussian sigmas"
    views = []
    for box in (None, _inner(significance.shape, sky)):
        if box or not views:
            drawn = picture(
                significance,
                stretch,
                palette="cividis",
                box=box,
                over=over,
                label="map of the signal to noise",
            )
            views.append(figure("", drawn + colour_bar(stretch, unit, "cividis")))
    truncate = max(record.images)
    return section(
        f"{prefix}snr",
        "Signal to noise",
        f'<div class="row">{"".join(views)}</div>'
        f'<p class="soft">Every point of the image with klip.truncate {truncate} against the '
        "apertures, one FWHM "
        f"({sky.fwhm_px * sky.arcsec_per_px:.3f}″) across, at the same separation from the star, "
        "as the Gaussian sigmas that noise exceeds as rarely: few apertures close to the star "
        "count for less (Student's t; Mawet et al. 2014, ApJ 792, 97).</p>",
    )


def candidates(record: Record, sky: Sky | None, seen: list[Seen], prefix: str) -> str:
    """The table of the brightest points."""
    title = "Candidates"
    if sky is None or not record.images:
        return section(
            f"{prefix}candidates",
            title,
            missing("Not searched: there is no combined image, or its star is not known."),
        )
    if not seen:
        return section(f"{prefix}candidates", title, "<p>No point stands out by 5 sigma.</p>")
    roots = [e.root for e in record.exposures.values() if e.exptype == "science"]
    several = list(record.images) if len(record.images) > 1 else []
    header = [
        "",
        "separation",
        "PA",
        "significance",
        "SNR",
        *(f"in S{k}" for k in range(1, len(roots) + 1)),
        "doubt",
        "flux, µJy",
        "apertures",
        *(f"{t} KL" for t in several),
        "x",
        "y",
        "RA",
        "Dec",
    ]
    shown = seen[:LISTED]
    rows = [
        [
            k,
            f"{s.separation:.3f}″",
            f"{number(s.angle, 1)}°",
            number(s.candidate.significance, 1),
            number(s.candidate.snr, 1),
            *(number(s.by_exposure.get(r, math.nan), 1) for r in roots),
            s.doubt,
            f"{s.flux_ujy:.3g}",
            s.candidate.n_apertures,
            *(number(s.by_truncation.get(t), 1) for t in several),
            number(s.candidate.x),
            number(s.candidate.y),
            f"{s.ra:.6f}°",
            f"{s.dec:+.6f}°".replace("-", "−"),
        ]
        for k, s in enumerate(shown, 1)
    ]
    clear = sum(not s.doubt for s in seen)
    rest = "" if len(seen) == len(shown) else f" {len(seen) - len(shown)} more are not listed."
    return section(
        f"{prefix}candidates",
        title,
        f"<p>{clear} point{'s'[: clear != 1]} of 5 sigma or more against which nothing speaks"
        f"{'' if clear == len(seen) else f', and {len(seen) - clear} in doubt'}.{rest}</p>",
        table(
            header,
            rows,
            set(range(1, len(header))) - {len(roots) + 5},
            ["doubt" if s.doubt else "" for s in shown],
        ),
        '<p class="soft">Position angle from north through east. SNR: aperture sum against the '
        "other apertures at that separation, (x − mean) / (s √(1 + 1/n)); significance: the same "
        "false-alarm probability in Gaussian sigmas. S1, S2, ...: SNR in the exposures, where a "
        "source on the sky is in all of them; KL: SNR with other truncations. The flux is that in "
        "the aperture, with no correction for the rest of the PSF, for what KLIP subtracts or for "
        "the coronagraph. x, y: pixels of the image from 0. Clumps and edges of a disk are listed "
        "like planets.</p>",
    )


def before_after(record: Record, sky: Sky | None, prefix: str) -> str:
    """Each science exposure before and after subtraction."""
    parts = []
    science = [e for e in record.exposures.values() if e.exptype == "science"]
    for k, e in enumerate(science, 1):
        heading = f"S{k}: {e.root}"
        if e.before is None:
            parts.append(figure(heading, missing("The run did not come to this exposure.")))
            continue
        place = measure.star_in_exposure(e, sky.radec if sky and sky.given else None)
        over = (
            []
            if place is None
            else [overlays.star_mark(place[0], place[1]), overlays.scale_bar(place[2])]
        )
        if record.mask is not None and np.shape(record.mask) == np.shape(e.before):
            over.append(overlays.outline(overlays.mask_outline(record.mask)))
        truncate = max(e.after, default=None)
        pairs = [("before", e.before, "before")]
        if truncate is not None:
            pairs.append(("after", e.after[truncate], f"after, {truncate} KL vectors"))
        views = []
        for kind, image, text in pairs:
            stretch = robust_stretch(image)
            views.append(
                figure(
                    "",
                    picture(image, stretch, label=f"{heading}, {kind}", over=over)
                    + colour_bar(stretch, UNIT),
                    text,
                )
            )
        blink = (
            ""
            if len(views) < 2
            else (
                f'<input class="blink" type="checkbox" id="{prefix}blink{k}">'
                f'<label for="{prefix}blink{k}">Blink</label>'
            )
        )
        note = "" if len(views) == 2 else missing("klip was skipped: no PSF was subtracted.")
        parts.append(figure(heading, f'{blink}<div class="pair">{"".join(views)}</div>{note}'))
    return section(
        f"{prefix}exposures",
        "Before and after subtraction",
        '<p class="soft">Means of the integrations in detector pixels, flagged pixels left out; '
        "each with its own asinh stretch.</p>",
        *parts,
    )
