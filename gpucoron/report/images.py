"""Image panels: asinh stretch, colour bar, star, north and east, psfmask, candidates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.path import Path
from matplotlib.patheffects import withStroke

from gpucoron.analysis.measure import Sky, science_exposures
from gpucoron.analysis.photometry import SkyCandidate
from gpucoron.analysis.record import Record
from gpucoron.report.canvas import label_directions

LISTED = 10  # candidates in the table and in the images
LARGEST = 700  # pixels to a side that are drawn one by one; larger images are averaged down
SMALL = 1.8  # inches, a cut-out
NO_DATA = "0.6"  # grey
EDGE = [withStroke(linewidth=2.5, foreground="black")]
CROSS = Path(
    [(-1, 0), (-0.4, 0), (0.4, 0), (1, 0), (0, -1), (0, -0.4), (0, 0.4), (0, 1)], [1, 2] * 4
)


@dataclass(frozen=True)
class Frame:
    """Coordinates of an image panel: arcsec from the star, or pixels."""

    star: tuple[float, float] | None = None  # x, y in pixels from 0
    scale: float | None = None  # arcsec per pixel

    def __call__(self, points) -> np.ndarray:
        """Convert pixels (..., 2), x and y, to what the axes show."""
        return (np.asarray(points, float) - (self.star or (0, 0))) * (self.scale or 1)

    def label(self, name: str) -> str:
        """Return the label of an axis."""
        return f"{name}{' from the star' * bool(self.star)} ({'arcsec' if self.scale else 'px'})"


def combined_frame(record: Record, sky: Sky | None) -> Frame:
    """Return the frame of the combined image."""
    if sky is None:
        return Frame(None, record.wcs.pixel_scale if record.wcs else None)
    return Frame(sky.star, sky.arcsec_per_px)


def asinh_norm(image: np.ndarray) -> AsinhNorm | None:
    """Choose an asinh stretch that shows noise and sources alike; None without finite pixels.

    From four robust standard deviations below the median to the 99.9th percentile, at least ten
    standard deviations above the median; nearly linear within three of zero.
    """
    values = np.asarray(image, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    middle = float(np.median(values))
    sigma = 1.4826 * float(np.median(np.abs(values - middle)))
    sigma = sigma or float(values.std()) or abs(middle) or 1.0
    low = max(middle - 4 * sigma, float(values.min()))
    high = max(float(np.quantile(values, 0.999)), middle + 10 * sigma)
    return AsinhNorm(3 * sigma + abs(middle), low, high)


def round_values(norm: AsinhNorm) -> list[float]:
    """Choose round values that are well apart on the colour bar of an asinh stretch."""
    low, high = cast(float, norm.vmin), cast(float, norm.vmax)
    top = math.floor(math.log10(max(abs(low), abs(high))))
    steps = [m * 10.0**k for k in range(top, top - 4, -1) for m in (1, 5, 2)]
    chosen: list[float] = []
    for value in (0.0, *(sign * step for step in steps for sign in (1, -1))):
        near = np.abs(np.ma.getdata(norm(np.array(chosen))) - float(norm(value))) < 0.09
        if low <= value <= high and not near.any():
            chosen.append(value)
    return sorted(chosen)


def draw_image(
    axes: Axes,
    image: np.ndarray,
    norm: Normalize | None,
    frame: Frame,
    *,
    unit: str,
    colours: str = "viridis",
    box: tuple[int, int, int, int] | None = None,
) -> None:
    """Draw an image (ny, nx) with its colour bar, and a cross on the star.

    NaN is grey; `norm` is None if the image has no finite pixel. `box` are the pixels to show (x0,
    y0, x1, y1); default all.
    """
    x0, y0, x1, y1 = box or (0, 0, *image.shape[::-1])
    (left, bottom), (right, top) = frame([(x0 - 0.5, y0 - 0.5), (x1 - 0.5, y1 - 0.5)])
    axes.set(xlim=(left, right), ylim=(bottom, top), xlabel=frame.label("x"))
    axes.set(ylabel=frame.label("y"), facecolor=NO_DATA, aspect="equal")
    axes.tick_params(direction="in", top=True, right=True, color="white")
    axes.locator_params(nbins=6, steps=[1, 2, 5, 10])
    if norm is None:
        axes.text(0.5, 0.5, "no finite pixel", ha="center", transform=axes.transAxes)
        return
    shown = axes.imshow(
        np.asarray(image[y0:y1, x0:x1], dtype=np.float64),
        norm=norm,
        cmap=colormaps[colours].with_extremes(bad=NO_DATA),
        origin="lower",
        extent=(left, right, bottom, top),
        interpolation="none" if max(x1 - x0, y1 - y0) <= LARGEST else "auto",
    )
    bar = axes.figure.colorbar(shown, cax=axes.inset_axes((1.03, 0, 0.045, 1)))
    bar.ax.set_title(unit, fontsize="medium")
    if isinstance(norm, AsinhNorm):
        ticks = round_values(norm)
        bar.set_ticks(ticks, labels=[f"{v:g}".replace("-", "−") for v in ticks])
        bar.minorticks_off()
    if frame.star is not None:
        axes.plot(0, 0, marker=CROSS, markersize=16, color="white", path_effects=EDGE)


def north_up(image: np.ndarray, centre, axes, side: float, scale: float) -> np.ndarray:
    """Turn the surroundings of a pixel so that north is up and east is left.

    Parameters
    ----------
    image : (ny, nx) array
    centre : (x, y)
        Pixels from 0.
    axes : (2, 2) array
        North and east, x and y in pixels per arcsec; see `gpucoron.analysis.measure.sky_axes`.
    side, scale : float
        Side of the result, arcsec, and of its pixels, arcsec.

    Returns
    -------
    (n, n) array
        Interpolated linearly, `centre` in the middle; NaN outside of the image.
    """
    from scipy.ndimage import map_coordinates

    half = max(round(side / scale / 2), 2)
    offsets = scale * np.arange(-half, half + 1)
    (north_x, north_y), (east_x, east_y) = axes
    up, left = offsets[:, None], -offsets[None, :]
    x, y = centre[0] + left * east_x + up * north_x, centre[1] + left * east_y + up * north_y
    return map_coordinates(np.asarray(image, float), (y, x), order=1, cval=np.nan)


def small_image(image: np.ndarray, radius: float) -> Figure:
    """Draw an image without axes, with a circle (its radius in pixels) around the middle."""
    figure = Figure(figsize=(SMALL, SMALL))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    ramp = colormaps["viridis"].with_extremes(bad=NO_DATA)
    axes.imshow(image, norm=asinh_norm(image), cmap=ramp, origin="lower")
    middle = ((image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2)
    axes.add_patch(Circle(middle, radius, fill=False, color="white", path_effects=EDGE))
    return figure


def draw_compass(axes: Axes, north=(0.0, 1.0), east=(-1.0, 0.0)) -> None:
    """Draw arrows to north and east (unit vectors) in the lower left corner."""
    for name, (dx, dy) in (("N", north), ("E", east)):
        axes.annotate(
            name,
            (0.15, 0.15),
            (27 * dx, 27 * dy),
            "axes fraction",
            "offset points",
            color="white",
            weight="bold",
            ha="center",
            va="center",
            arrowprops={"arrowstyle": "<|-", "color": "white", "path_effects": EDGE, "shrinkB": 0},
            path_effects=EDGE,
        )


def draw_candidates(axes: Axes, candidates: Sequence[SkyCandidate], frame: Frame, sky: Sky) -> None:
    """Draw numbered circles around the candidates without caveat, three FWHM across or more."""
    radius = max(1.5 * sky.fwhm_px * (frame.scale or 1), 0.012 * np.ptp(axes.get_xlim()))
    good = [(k, c.candidate) for k, c in enumerate(candidates[:LISTED], 1) if not c.doubtful]
    points = frame(np.reshape([(c.x, c.y) for _, c in good], (-1, 2)))
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    visible: Any = ((points > (left, bottom)) & (points < (right, top))).all(axis=1)
    good = [g for g, inside in zip(good, visible, strict=True) if inside]
    points = points[visible]
    for (k, _), point, way in zip(good, points, label_directions(axes, points), strict=True):
        axes.add_patch(Circle(point, radius, fill=False, color="white", path_effects=EDGE))
        axes.annotate(
            str(k),
            point + radius * way,
            8 * way,
            textcoords="offset points",
            color="white",
            weight="bold",
            ha="center",
            va="center",
            path_effects=EDGE,
        )


def mask_outline(mask) -> list[np.ndarray]:
    """Trace where a psfmask falls below a half: lines (n, 2), x and y in pixels from 0."""
    if mask is None or not (np.asarray(mask) < 0.5).any():
        return []
    return Figure().add_subplot().contour(np.asarray(mask, float), [0.5]).allsegs[0]


def sky_outlines(record: Record) -> list[np.ndarray]:
    """Trace the psfmask on the combined image, once for each orientation of the telescope."""
    lines, keys = mask_outline(record.mask), set()
    mapped = []
    for e in science_exposures(record):
        if record.wcs is None or e.wcs is None or e.wcs.key in keys:
            continue
        keys.add(e.wcs.key)
        if tuple(e.shape[1:]) == np.shape(record.mask):
            for line in lines:
                sky = e.wcs.pixel_to_sky(*line.T, everywhere=True)
                mapped.append(np.stack(record.wcs.sky_to_pixel(*sky), axis=-1))
    return mapped


def draw_outlines(axes: Axes, lines: Iterable[np.ndarray], frame: Frame) -> None:
    """Draw the psfmask's outlines."""
    axes.add_collection(
        LineCollection([frame(line) for line in lines], colors="#ff9d4d"), autolim=False
    )
