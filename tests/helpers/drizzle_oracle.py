"""Drizzle as slowly and plainly as possible: polygons clipped in steps, one pixel at a time."""

import numpy as np


def area(polygon):
    """Signed area of a polygon given as a list of (x, y)."""
    total = 0.0
    for (x1, y1), (x2, y2) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        total += x1 * y2 - x2 * y1
    return 0.5 * total


def clip(polygon, axis, limit, keep_below):
    """Part of a convex polygon on one side of a line across an axis."""
    kept = []
    for p, q in zip(polygon[-1:] + polygon[:-1], polygon, strict=True):
        p_in = (p[axis] <= limit) == keep_below or p[axis] == limit
        q_in = (q[axis] <= limit) == keep_below or q[axis] == limit
        if p_in != q_in:
            t = (limit - p[axis]) / (q[axis] - p[axis])
            kept.append(tuple(p[k] + t * (q[k] - p[k]) for k in (0, 1)))
        if q_in:
            kept.append(q)
    return kept


def position(pixel_map, x, y):
    """Bilinear interpolation in the pixel map, and extrapolation beyond its edges."""
    ny, nx = pixel_map.shape[:2]
    i = int(np.clip(np.floor(x), 0, nx - 2))
    j = int(np.clip(np.floor(y), 0, ny - 2))
    u, v = x - i, y - j
    rows = [(1 - u) * pixel_map[j + k, i] + u * pixel_map[j + k, i + 1] for k in (0, 1)]
    return tuple((1 - v) * rows[0] + v * rows[1])


def overlap(corners, x, y):
    """Area that a quadrilateral shares with the output pixel (x, y)."""
    polygon = list(corners)
    for axis, centre in ((0, x), (1, y)):
        for limit, below in ((centre - 0.5, False), (centre + 0.5, True)):
            if polygon:
                polygon = clip(polygon, axis, limit, below)
    return abs(area(polygon)) if len(polygon) > 2 else 0.0


def drizzle(images, pixel_maps, weights, output_shape, kernel="square", pixfrac=1.0, ratio=1.0):
    """Weighted mean, weight and the set of images in every output pixel."""
    ny, nx = output_shape
    total, weight = np.zeros(output_shape), np.zeros(output_shape)
    taking_part = np.zeros((*output_shape, len(images)), dtype=bool)
    for k, (image, pixel_map, wht) in enumerate(zip(images, pixel_maps, weights, strict=True)):
        for (j, i), w in np.ndenumerate(wht):
            if w == 0:
                continue
            for y, x, share in drops(pixel_map, j, i, output_shape, kernel, pixfrac, ratio):
                total[y, x] += w * share * image[j, i]
                weight[y, x] += w * share
                taking_part[y, x, k] |= share > 0
    with np.errstate(invalid="ignore"):
        return total / weight, weight, taking_part


def drops(pixel_map, j, i, output_shape, kernel, pixfrac, ratio):
    """Output pixels of one input pixel, each with the share of the weight that it gets."""
    ny, nx = output_shape
    half = 0.5 * pixfrac
    if kernel in ("turbo", "gaussian", "lanczos2", "lanczos3"):
        x0, y0 = pixel_map[j, i]
        for y, x in np.ndindex(ny, nx) if np.isfinite(x0 + y0) else ():
            yield y, x, product(kernel, x - x0, y - y0, pixfrac, ratio)
        return
    if kernel == "point":
        x, y = np.floor(pixel_map[j, i] + 0.5)
        if 0 <= x < nx and 0 <= y < ny:
            yield int(y), int(x), 1.0
        return
    offsets = ((-half, -half), (half, -half), (half, half), (-half, half))
    corners = [position(pixel_map, i + dx, j + dy) for dx, dy in offsets]
    if not np.all(np.isfinite(corners)):
        return
    size = abs(area(corners))
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    for y in range(max(0, int(low[1])), min(ny, int(high[1]) + 2)):
        for x in range(max(0, int(low[0])), min(nx, int(high[0]) + 2)):
            yield y, x, overlap(corners, x, y) / size


def product(kernel, dx, dy, pixfrac, ratio):
    """Share of an output pixel (dx, dy) from the centre of a drop."""
    if kernel == "turbo":
        half = 0.5 * pixfrac / ratio
        sides = [max(0.0, min(d + 0.5, half) - max(d - 0.5, -half)) for d in (dx, dy)]
        return sides[0] * sides[1] / (2 * half) ** 2
    if kernel == "gaussian":
        sigma = pixfrac / 2.3548 / ratio
        reach = max(2.5 * sigma, 1.2 / ratio)
        if max(abs(dx), abs(dy)) >= reach + 0.5:
            return 0.0
        return np.exp(-0.5 * (dx * dx + dy * dy) / sigma**2) / (2 * np.pi * sigma**2)
    order = int(kernel[-1])
    u = 0.003 * np.round(np.abs([dx, dy]) * ratio / 0.003)
    return np.prod(np.where(u < order, np.sinc(u) * np.sinc(u / order), 0.0))
