"""S_REGION: polygons on the sky as text, and their union."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["combine_regions", "format_region", "parse_region"]

ON_EDGE_PX = 1e-7  # coordinates come from text with 9 decimals of a degree, about 1e-4 px
SAME_CORNER_PX = 1e-5
SHORT_EDGE_PX = 0.05
STRAIGHT_RAD = 1e-6

Plane = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def parse_region(text: str | None) -> list[np.ndarray]:
    """Read the polygons of an S_REGION.

    Parameters
    ----------
    text : str or None
        One or several of ``POLYGON ICRS ra dec ra dec ...``, in degrees.

    Returns
    -------
    list of (n, 2) float64
        RA and Dec of the corners; empty where the text holds no polygon of three corners.
    """
    polygons = []
    for part in re.split(r"(?i)\bPOLYGON\b", text or "")[1:]:
        try:
            values = [float(word) for word in re.sub(r"^\s*[A-Za-z]\w*", "", part).split()]
        except ValueError:
            continue
        if len(values) >= 6 and len(values) % 2 == 0 and np.all(np.isfinite(values)):
            polygons.append(np.array(values).reshape(-1, 2))
    return polygons


def format_region(polygons: Sequence[np.ndarray]) -> str:
    """Write polygons (n, 2) in degrees as an S_REGION, with nine decimals."""
    parts = []
    for polygon in polygons:
        corners = " ".join(f"{ra:.9f} {dec:.9f}" for ra, dec in polygon)
        parts.append(f"POLYGON ICRS  {corners}")
    return "  ".join(parts)


def combine_regions(
    regions: Sequence[np.ndarray],
    box: tuple[tuple[float, float], tuple[float, float]],
    sky_to_pixel: Plane,
    pixel_to_sky: Plane,
) -> str | None:
    """Join the footprints of exposures, clipped to the output image.

    Parameters
    ----------
    regions : sequence of (n, 2) arrays
        RA, Dec in degrees of the corners of convex polygons.
    box : ((x1, x2), (y1, y2))
        Bounding box of the output in its pixels.
    sky_to_pixel, pixel_to_sky : callable
        The output WCS, both ways.

    Returns
    -------
    str or None
        The union as an S_REGION, clockwise in output pixels; None where nothing overlaps.

    Notes
    -----
    The jwst package gets the same corners from GEOS, which starts the ring at another one of them.
    """
    (x1, x2), (y1, y2) = box
    window = np.array([(x1, y1), (x1, y2), (x2, y2), (x2, y1)], dtype=np.float64)
    pieces = []
    for region in regions:
        polygon = _clockwise(np.column_stack(sky_to_pixel(region[:, 0], region[:, 1])))
        polygon = _clip(polygon, window)
        if len(polygon) >= 3 and not any(_same(polygon, other) for other in pieces):
            pieces.append(polygon)
    rings = [_simplify(ring) for ring in _union(pieces)]
    sky = [np.column_stack(pixel_to_sky(r[:, 0], r[:, 1])) for r in rings if len(r) >= 3]
    return format_region(sky) or None


def _signed_area(polygon):
    x, y = polygon.T
    return 0.5 * float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))


def _clockwise(polygon):
    return polygon if _signed_area(polygon) < 0 else polygon[::-1]


def _same(a, b):
    return a.shape == b.shape and bool(np.all(np.abs(a - b) < SAME_CORNER_PX))


def _depth(points, a, b):
    """Distance of points from the line a to b, positive to the right (inside, if clockwise)."""
    d = b - a
    return ((points[..., 1] - a[1]) * d[0] - (points[..., 0] - a[0]) * d[1]) / -np.hypot(*d)


def _clip(polygon, window):
    """Part of a convex polygon inside a clockwise convex window."""
    for a, b in zip(window, np.roll(window, -1, axis=0), strict=True):
        if len(polygon) == 0:
            break
        depth = _depth(polygon, a, b)
        kept = []
        for k in range(len(polygon)):
            p, q, dp, dq = polygon[k - 1], polygon[k], depth[k - 1], depth[k]
            if (dp > 0) != (dq > 0):
                kept.append(p + (q - p) * (dp / (dp - dq)))
            if dq > 0:
                kept.append(q)
        polygon = np.array(kept).reshape(-1, 2)
    return polygon


def _union(polygons):
    """Outer rings of the union of clockwise convex polygons."""
    segments = []
    for n, polygon in enumerate(polygons):
        for p, q in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if np.hypot(*(q - p)) < ON_EDGE_PX:
                continue
            visible = [(0.0, 1.0)]
            for m, other in enumerate(polygons):
                if m != n:
                    visible = _subtract(visible, _covered(p, q, other, first=m < n))
            segments += [(p + (q - p) * s, p + (q - p) * t) for s, t in visible]
    return [ring for ring in _rings(segments) if _signed_area(ring) < 0]


def _covered(p, q, polygon, first):
    """Range of the edge p to q that a polygon covers; of edges in common the first one's stay."""
    low, high = 0.0, 1.0
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if np.hypot(*(b - a)) < ON_EDGE_PX:
            continue
        dp, dq = _depth(p, a, b), _depth(q, a, b)
        if abs(dp) < ON_EDGE_PX and abs(dq) < ON_EDGE_PX:
            if not first and np.dot(q - p, b - a) > 0:
                return 0.0, 0.0
            continue
        if dp <= ON_EDGE_PX and dq <= ON_EDGE_PX:
            return 0.0, 0.0
        if dp < 0.0:
            low = max(low, dp / (dp - dq))
        elif dq < 0.0:
            high = min(high, dp / (dp - dq))
    return (low, high) if high > low else (0.0, 0.0)


def _subtract(ranges, hole):
    left = []
    for a, b in ranges:
        left += [(s, t) for s, t in ((a, min(b, hole[0])), (max(a, hole[1]), b)) if t - s > 1e-12]
    return left if hole[1] > hole[0] else ranges


def _rings(segments):
    """Join segments end to start."""
    rings, free = [], list(segments)
    while free:
        start, end = free.pop(0)
        ring = [start]
        while free and np.hypot(*(end - start)) > SAME_CORNER_PX:
            gaps = [float(np.hypot(*(segment[0] - end))) for segment in free]
            nearest = int(np.argmin(gaps))
            if gaps[nearest] > SAME_CORNER_PX:
                break
            ring.append(end)
            end = free.pop(nearest)[1]
        rings.append(np.array(ring))
    return rings


def _simplify(ring):
    """Drop corners next to the one before, and those on a straight line."""
    step = ring - np.roll(ring, 1, axis=0)
    ring = ring[~np.all(np.abs(step) < SHORT_EDGE_PX, axis=1)]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    lengths = np.hypot(*before.T) * np.hypot(*after.T)
    return ring[np.abs(turn) >= STRAIGHT_RAD * lengths]
