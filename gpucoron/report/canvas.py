"""Figures of matplotlib, made without pyplot, and their form as images in HTML."""

from __future__ import annotations

import io
from typing import NamedTuple, cast
from urllib.parse import quote

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, NullFormatter

#: Okabe and Ito's, which do without telling red from green, dark enough for lines on white.
COLOURS = ("#0072b2", "#d55e00", "#8a3f93", "#00797a", "#b28500", "#4d4d4d")
WIDTH = 5.0  # inches; as wide as half a page, or a phone


class Drawing(NamedTuple):
    """An image in HTML: its data as a URL, and what it shows for those who cannot see it."""

    url: str
    alt: str


def drawing(figure: Figure | SubFigure, alt: str) -> Drawing:
    """Convert a figure to SVG in a data URL."""
    file = io.BytesIO()
    cast(Figure, figure).savefig(
        file, format="svg", facecolor="white", metadata={"Date": None}, dpi=200
    )
    svg = file.getvalue().decode("utf-8")
    for character in '%#"<>\n':  # what must not stand in a data URL
        svg = svg.replace(character, quote(character))
    return Drawing(f"data:image/svg+xml,{svg}", alt)


def chart(height: float = 3.4, left: float = 0.9) -> Axes:
    """Make a figure for one chart, `height` inches high, and return its axes.

    `left` is the room for the labels of the y axis, inches.
    """
    return _axes(height, left, 0.55, 0.25, WIDTH - left - 0.15)


def image_axes(shape: tuple[int, int]) -> Axes:
    """Make a figure for one image (ny, nx) and return its axes; equal shapes, equal places."""
    width, room = 3.55, 0.55 + 0.3
    height = width * min(max(shape[0] / shape[1], 0.1), 10)
    return _axes(height + room, 0.62, 0.55, 0.3, width)


def _axes(height: float, left: float, bottom: float, top: float, width: float) -> Axes:
    """Make a figure with axes in it, all in inches; a layout engine would double the time."""
    figure = Figure(figsize=(WIDTH, height))
    box = left / WIDTH, bottom / height, width / WIDTH, (height - bottom - top) / height
    return figure.add_axes(box)


def style(axes: Axes, x_label: str, y_label: str) -> None:
    """Label the axes and draw ticks inwards on all sides, over a faint grid."""
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.tick_params(which="both", direction="in", top=True, right=True)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def log_scale(axes: Axes) -> None:
    """Make the y axis of a finished chart logarithmic, with plain numbers, if data are positive."""
    if not np.isfinite(axes.dataLim.minposy):
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high < 300 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def equal_scale(axes: Axes) -> None:
    """Widen the limits until one unit is as long along x as along y, with room for labels."""
    axes.margins(0.15)
    limits = np.array([axes.get_xlim(), axes.get_ylim()])
    size = np.array([axes.bbox.width, axes.bbox.height])
    half = size * (np.ptp(limits, axis=1) / size).max() / 2
    axes.set(xlim=limits[0].mean() + half[0] * np.array([-1, 1]))
    axes.set(ylim=limits[1].mean() + half[1] * np.array([-1, 1]))
    axes.set_aspect("equal")  # the size of the axes may yet change


def label_directions(axes: Axes, points) -> np.ndarray:
    """Choose on which side of each point its label goes: away from other points and the frame.

    The axes must have their limits; points are (n, 2) in data units. Returns unit vectors (n, 2).
    """
    low, high = np.sort(np.transpose([axes.get_xlim(), axes.get_ylim()]), axis=0)
    at = (np.asarray(points, float).reshape(-1, 2) - low) / (high - low)
    apart = at[:, None] - at
    push = (apart / np.maximum((apart**2).sum(axis=-1, keepdims=True), 1e-6)).sum(axis=1)
    inside = np.clip(at, 0.01, 0.99)
    push += 0.05 / inside**2 - 0.05 / (1 - inside) ** 2 + 1e-3
    return push / np.hypot(*push.T)[:, None]
