"""Input pixels that the output image covers, found row by row.

The drizzle library leaves out input pixels of which more than about half lies beyond the edge of
the output. Which ones decides weights and context along that edge, so the same rule is followed
here: map the outline of the input to the output, clip it there, take the corners of what is left
back to the input by a golden-section search that is good to 0.03 px, and keep in every row the
pixels between the edges, each edge drawn inwards by half the width that a pixel shows to it.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["scan_limits"]

SEARCH_PX = 0.03
SEARCH_STEPS = 50
GOLDEN = 0.6180339887498948482
SAME_POINT = 1e-12
COLLINEAR = 1e3 * np.finfo(np.float64).tiny


def scan_limits(pixel_map: np.ndarray, output_shape: tuple[int, int]) -> np.ndarray:
    """Find the range of input pixels to visit in every row.

    `pixel_map` (ny, nx, 2) holds the output x, y from 0 of every input pixel centre, NaN where
    there is none. Returns (ny, 2) int64, first and last column; first > last in rows without any.
    """
    ny, nx = pixel_map.shape[:2]
    limits = np.empty((ny, 2), dtype=np.int64)
    limits[:] = 0, -1
    outline = _visible_outline(pixel_map, output_shape)
    if len(outline) < 3:
        return limits
    left, right, low, high = _chains(outline)
    first = max(0, int(low + 0.5 + 2.0 * SEARCH_PX))
    last = min(ny - 1, int(high + 2.0 * SEARCH_PX))
    scan = _Scan(left, right, nx)
    for y in range(first, last + 1):
        if y + 0.5 <= low or y - 0.5 >= high + 1:
            continue
        span = scan.row(y)
        if span is None:
            break
        limits[y] = span
    return limits


def _visible_outline(pixel_map, output_shape):
    """Corners, in the input, of the part that the output sees; all of the input where unknown."""
    ny, nx = pixel_map.shape[:2]
    box = [(-0.5, -0.5), (nx - 0.5, -0.5), (nx - 0.5, ny - 0.5), (-0.5, ny - 0.5)]
    mapped = [_interpolate(pixel_map, x, y) for x, y in box]
    if not np.all(np.isfinite(mapped)):
        return box
    oy, ox = output_shape
    window = [(-0.5, -0.5), (ox - 0.5, -0.5), (ox - 0.5, oy - 0.5), (-0.5, oy - 0.5)]
    corners = _clip(mapped, window)
    inverted = [_invert(pixel_map, x, y) for x, y in corners]
    return box if None in inverted else _counter_clockwise(inverted)


def _interpolate(pixel_map, x, y):
    """Bilinear interpolation in the map, extrapolating beyond its edge."""
    ny, nx = pixel_map.shape[:2]
    i = min(max(int(x), 0), nx - 2)
    j = min(max(int(y), 0), ny - 2)
    u, v = x - i, y - j
    u1, v1 = 1.0 - u, 1.0 - v
    a, b = pixel_map[j, i].tolist(), pixel_map[j, i + 1].tolist()
    c, d = pixel_map[j + 1, i].tolist(), pixel_map[j + 1, i + 1].tolist()
    return (
        a[0] * u1 * v1 + b[0] * u * v1 + c[0] * u1 * v + d[0] * u * v,
        a[1] * u1 * v1 + b[1] * u * v1 + c[1] * u1 * v + d[1] * u * v,
    )


def _invert(pixel_map, x_out, y_out):
    """Input position of an output position by golden-section search in both axes; None if lost."""
    ny, nx = pixel_map.shape[:2]
    x_low, x_high, y_low, y_high = -0.5, nx - 0.5, -0.5, ny - 0.5
    dx, dy = x_high - x_low, y_high - y_low
    steps = 0
    while (dx > SEARCH_PX or dy > SEARCH_PX) and steps < SEARCH_STEPS:
        steps += 1
        xs = (x_high - GOLDEN * dx, x_low + GOLDEN * dx)
        ys = (y_high - GOLDEN * dy, y_low + GOLDEN * dy)
        distance = []
        for x in xs:
            for y in ys:
                px, py = _interpolate(pixel_map, x, y)
                ex, ey = px - x_out, py - y_out
                distance.append(ex * ex + ey * ey)
        if not all(math.isfinite(d) for d in distance):
            return None
        best = _strict_minimum(distance)
        if best in (0, 1):
            x_high = xs[1]
        else:
            x_low = xs[0]
        if best in (0, 2):
            y_high = ys[1]
        else:
            y_low = ys[0]
        dx, dy = x_high - x_low, y_high - y_low
    return 0.5 * (x_low + x_high), 0.5 * (y_low + y_high)


def _strict_minimum(values):
    """Index of the one smallest of four values; the last where two tie."""
    for k in range(3):
        if all(values[k] < values[m] for m in range(4) if m != k):
            return k
    return 3


def _cross(a, b):
    return a[0] * b[1] - a[1] * b[0]


def _counter_clockwise(polygon):
    if len(polygon) < 3:
        return polygon
    cx = sum(p[0] for p in polygon) / len(polygon)
    cy = sum(p[1] for p in polygon) / len(polygon)
    a, b = polygon[0], polygon[1]
    turn = _cross((a[0] - cx, a[1] - cy), (b[0] - cx, b[1] - cy))
    return polygon if turn >= 0.0 else polygon[::-1]


def _clip(polygon, window):
    """Intersection of two convex polygons (Sutherland and Hodgman 1974)."""
    polygon = _counter_clockwise(polygon)
    for w1, w2 in zip(window[-1:] + window[:-1], window, strict=True):
        edge = (w2[0] - w1[0], w2[1] - w1[1])
        kept: list[tuple] = []
        for p1, p2 in zip(polygon[-1:] + polygon[:-1], polygon, strict=True):
            in1, in2 = _inside(p1, w1, w2), _inside(p2, w1, w2)
            if in1 != in2:
                side = (p2[0] - p1[0], p2[1] - p1[1])
                scale = _cross(side, edge)
                p, w = _cross(p2, p1), _cross(w2, w1)
                x = (p * edge[0] - w * side[0]) / scale
                y = (p * edge[1] - w * side[1]) / scale
                if math.isfinite(x) and math.isfinite(y):
                    _append(kept, (x, y))
            if in2:
                _append(kept, p2)
        polygon = kept
    return _without_midpoints(_counter_clockwise(polygon))


def _inside(point, w1, w2):
    return (_cross(w2, point) - _cross(w1, point) - _cross(w2, w1)) > 0.0


def _append(polygon, point):
    for other in polygon[-1:] + polygon[:1]:
        if abs(other[0] - point[0]) < SAME_POINT and abs(other[1] - point[1]) < SAME_POINT:
            return
    polygon.append(point)


def _without_midpoints(polygon):
    n = len(polygon)
    if n < 3:
        return polygon
    kept = []
    for k, corner in enumerate(polygon):
        before, after = polygon[k - 1], polygon[(k + 1) % n]
        chord = (after[0] - before[0], after[1] - before[1])
        step = (corner[0] - before[0], corner[1] - before[1])
        if abs(_cross(chord, step)) > COLLINEAR and math.hypot(*chord) > SAME_POINT:
            kept.append(corner)
    return kept


def _chains(polygon):
    """Split a counter-clockwise polygon into its left and right chains, lowest corner first."""
    n = len(polygon)
    ys = [p[1] for p in polygon]
    low, high = min(ys), max(ys)
    bottom_left = bottom_right = ys.index(low)
    before, after = (bottom_left - 1) % n, (bottom_left + 1) % n
    near = before if ys[before] < ys[after] else after
    if ys[near] <= low * (1.0 + math.copysign(SAME_POINT, low)):
        bottom_left, bottom_right = _by_x(polygon, bottom_left, near)
    top_left = top_right = ys.index(high)
    before, after = (top_right - 1) % n, (top_right + 1) % n
    near = before if ys[before] > ys[after] else after
    if ys[near] >= high * (1.0 - math.copysign(SAME_POINT, high)):
        top_left, top_right = _by_x(polygon, near, top_right)
    left = [polygon[(bottom_left - k) % n] for k in range((bottom_left - top_left) % n + 1)]
    right = [polygon[(bottom_right + k) % n] for k in range((top_right - bottom_right) % n + 1)]
    return _edges(left, 1.0), _edges(right, -1.0), low, high


def _by_x(polygon, a, b):
    return (b, a) if polygon[a][0] > polygon[b][0] else (a, b)


def _edges(points, inwards):
    """Slope dx/dy, intercept moved inwards by half a pixel's width, and upper end of every edge."""
    edges = []
    for (x1, y1), (x2, y2) in zip(points[:-1], points[1:], strict=True):
        slope = (x2 - x1) / (y2 - y1) if y2 != y1 else math.inf
        start = (x1 * y2 - y1 * x2) / (y2 - y1) if y2 != y1 else math.nan
        edges.append((slope, start + inwards * (0.5 + 0.5 * abs(slope)), y2))
    return edges


class _Scan:
    """Walks both chains upwards, one row at a time."""

    def __init__(self, left, right, nx):
        self.chains = (left, right)
        self.at = [0, 0]
        self.nx = nx

    def row(self, y):
        """First and last column of row `y`; None once the polygon ends."""
        if not self._advance(y - 0.5):
            return None
        low_left, low_right = self._edge(0, y) - SEARCH_PX, self._edge(1, y) + SEARCH_PX
        if not self._advance(y + 0.5 - (0.5 + SEARCH_PX)):
            return None
        high_left, high_right = self._edge(0, y) - SEARCH_PX, self._edge(1, y) + SEARCH_PX
        # in this order NaN, which an edge along a row gives, becomes the first or last column
        low_left, high_left = max(0.0, low_left), max(0.0, high_left)
        last = self.nx - 1.0
        low_right, high_right = min(last, low_right), min(last, high_right)
        if high_left >= high_right:
            start, stop = low_left, low_right
            if start >= stop:
                return 0, -1
        elif low_left >= low_right:
            start, stop = high_left, high_right
        else:
            start, stop = max(low_left, high_left), min(low_right, high_right)
        return _nearest(start), _nearest(stop)

    def _advance(self, height):
        for side in (0, 1):
            chain = self.chains[side]
            while not chain or height > chain[self.at[side]][2]:
                if self.at[side] >= len(chain) - 1:
                    return False
                self.at[side] += 1
        return True

    def _edge(self, side, y):
        slope, start, _ = self.chains[side][self.at[side]]
        return slope * y + start


def _nearest(value):
    """Nearest integer, halves away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))
