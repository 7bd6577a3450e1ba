"""What is drawn over pictures: scale bar, north and east, star, mask, candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from gpucoron.report.pictures import WIDTH, Frame

__all__ = ["circles", "compass", "mask_outline", "outline", "scale_bar", "star_mark"]

Draw = Callable[[Frame], str]


def scale_bar(arcsec_per_px: float) -> Draw:
    """Draw a bar of a round length, about a fifth of the picture."""

    def draw(frame):
        whole = (frame.box[2] - frame.box[0]) * arcsec_per_px / 5
        step = 10.0 ** math.floor(math.log10(whole))
        arcsec = max(m * step for m in (1, 2, 5) if m * step <= whole)
        length = arcsec / arcsec_per_px * frame.scale
        x, y = WIDTH - 18 - length, frame.height - 16
        return (
            f'<path class="ink" d="M{x:.1f} {y:.1f}h{length:.1f}m0-5v10m{-length:.1f}-10v10"/>'
            f'<text class="halo" x="{x + length / 2:.1f}" y="{y - 9:.1f}" '
            f'text-anchor="middle">{arcsec:g}″</text>'
        )

    return draw


def compass(directions: dict[str, tuple[float, float]]) -> Draw:
    """Draw arrows; `directions` has unit vectors in pixels (x, y) by name, as N and E."""

    def draw(frame):
        parts, x, y = [], 52.0, frame.height - 52.0
        for name, (dx, dy) in directions.items():
            tip = x + 34 * dx, y - 34 * dy
            wings = "".join(
                f"M{tip[0]:.1f} {tip[1]:.1f}l{9 * math.cos(a):.1f} {9 * math.sin(a):.1f}"
                for turn in (2.65, -2.65)
                for a in [math.atan2(-dy, dx) + turn]
            )
            parts.append(
                f'<path class="ink" d="M{x:.1f} {y:.1f}L{tip[0]:.1f} {tip[1]:.1f}{wings}"/>'
                f'<text class="halo" x="{x + 45 * dx:.1f}" y="{y - 45 * dy + 5:.1f}" '
                f'text-anchor="middle">{escape(name)}</text>'
            )
        return "".join(parts)

    return draw


def star_mark(x: float, y: float) -> Draw:
    """Mark the star by a cross with an open middle."""

    def draw(frame):
        px, py = frame.place(x, y)
        arms = "".join(
            f"M{px + 4 * a:.1f} {py + 4 * b:.1f}l{7 * a} {7 * b}"
            for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1))
        )
        return f'<path class="ink" d="{arms}"/>'

    return draw


def circles(places: Sequence[tuple[float, float]], names: Sequence[str], radius_px: float) -> Draw:
    """Draw circles with names beside them."""

    def draw(frame):
        parts = []
        x0, y0, x1, y1 = frame.box
        for (x, y), name in zip(places, names, strict=True):
            if not (x0 <= x < x1 and y0 <= y < y1):
                continue
            px, py = frame.place(x, y)
            r = max(radius_px * frame.scale, 6)
            left = px > WIDTH - 40
            parts.append(
                f'<circle class="ink" cx="{px:.1f}" cy="{py:.1f}" r="{r:.1f}"/>'
                f'<text class="halo" x="{px + (-r - 3 if left else r + 3):.1f}" '
                f'y="{max(py - r * 0.4, 14):.1f}" text-anchor="{"end" if left else "start"}">'
                f"{escape(name)}</text>"
            )
        return "".join(parts)

    return draw


def mask_outline(mask: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Trace where a mask passes a threshold, along the edges of pixels.

    Parameters
    ----------
    mask : (ny, nx) array

    Returns
    -------
    (n, 2, 2) float64
        Line segments: both ends' x and y, pixels counted from 0 at the centre of the first.
    """
    masked = np.asarray(mask) < threshold
    wide = np.pad(masked, 1, mode="edge")
    j, i = np.nonzero(wide[1:-1, 1:-1] != wide[1:-1, :-2])  # left edges
    upright = np.stack([np.stack([i, j], 1), np.stack([i, j + 1], 1)], axis=1)
    j, i = np.nonzero(wide[1:-1, 1:-1] != wide[:-2, 1:-1])  # lower edges
    level = np.stack([np.stack([i, j], 1), np.stack([i + 1, j], 1)], axis=1)
    return np.concatenate([upright, level]) - 0.5


def outline(segments: np.ndarray) -> Draw:
    """Draw line segments (n, 2, 2), ends in pixels x and y."""

    def draw(frame):
        x, y = frame.place(segments[..., 0], segments[..., 1])
        seen = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
        lines = (
            f"M{a:.1f} {c:.1f}L{b:.1f} {d:.1f}"
            for (a, b), (c, d) in zip(x[seen], y[seen], strict=True)
        )
        return f'<path class="mask" d="{"".join(lines)}"/>'

    return draw
