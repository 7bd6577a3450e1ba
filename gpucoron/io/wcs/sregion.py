"""S_REGION: polygons on the sky as text, and their union."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["combine_regions", "format_region", "parse_region"]

_SHORT_EDGE_PX = 0.05
_STRAIGHT_RAD = 1e-6

Plane = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def parse_region(text: str | None) -> list[np.ndarray]:
    """Read an S_REGION, one or several of ``POLYGON ICRS ra dec ra dec ...``, in degrees.

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
    texts = (" ".join(f"{ra:.9f} {dec:.9f}" for ra, dec in polygon) for polygon in polygons)
    return "  ".join(f"POLYGON ICRS  {corners}" for corners in texts)


def combine_regions(
    regions: Sequence[np.ndarray],
    box: tuple[tuple[float, float], tuple[float, float]],
    sky_to_pixel: Plane,
    pixel_to_sky: Plane,
) -> str | None:
    """Join the footprints of exposures, clipped to the output image.

    `regions` are corners (n, 2) of polygons, RA and Dec in degrees; `box` is ((x1, x2), (y1, y2))
    in output pixels; `sky_to_pixel` and `pixel_to_sky` are the output WCS, both ways.

    Returns
    -------
    str or None
        The union as an S_REGION, clockwise in output pixels; None where nothing overlaps. The
        jwst package has the same corners, but starts the ring at another one of them.
    """
    import shapely

    (x1, x2), (y1, y2) = box
    planes = [np.column_stack(sky_to_pixel(*region.T)) for region in regions]
    inputs = [shapely.Polygon(plane) for plane in planes if np.all(np.isfinite(plane))]
    union = shapely.union_all(shapely.make_valid(inputs)) & shapely.box(x1, y1, x2, y2)
    corners = np.vstack([_clockwise(polygon) for polygon in inputs] or [np.empty((0, 2))])
    rings = []
    for part in shapely.get_parts(union):
        if part.geom_type == "Polygon" and len(ring := _simplify(_clockwise(part))) >= 3:
            rings.append(_from_first(ring, corners))
    rings.sort(key=lambda found: found[0])
    return format_region([np.column_stack(pixel_to_sky(*ring.T)) for _, ring in rings]) or None


def _clockwise(polygon) -> np.ndarray:
    ring = np.array(polygon.exterior.coords)[:-1]
    return ring[::-1] if polygon.exterior.is_ccw else ring


def _from_first(ring: np.ndarray, corners: np.ndarray) -> tuple[int, np.ndarray]:
    """Return which corner of the inputs a ring has first, and the ring from there on."""
    same = np.all(np.abs(corners[:, None] - ring) < _SHORT_EDGE_PX, axis=-1)
    first, start = np.argwhere(same)[0] if same.any() else (len(corners), 0)
    return int(first), np.roll(ring, -start, axis=0)


def _simplify(ring: np.ndarray) -> np.ndarray:
    """Drop corners next to the one before, and those on a straight line."""
    step = ring - np.roll(ring, 1, axis=0)
    ring = ring[~np.all(np.abs(step) < _SHORT_EDGE_PX, axis=1)]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    lengths = np.hypot(*before.T) * np.hypot(*after.T)
    return ring[np.abs(turn) >= _STRAIGHT_RAD * lengths]
