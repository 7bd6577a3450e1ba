"""Medians in boxes of 5 x 5 pixels, and smooth planes made of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucoron.backend import cuda

__all__ = [
    "MEDIAN_SQUARE",
    "average",
    "boxes_of",
    "median_of",
    "scatter_variance",
    "smooth",
    "to_pixels",
]

BLOCK = 5  # pixels: side of the boxes in which the scatter is measured
LINEAR = 3.0  # times the noise: up to there boxes are averaged as they are, above by logarithms
MEDIAN_SQUARE = 0.4549364  # of a number drawn from a normal distribution


def median_of(boxes: Any) -> Any:
    """Median of the finite values of each box; 0 where there are none."""
    xp = cuda.array_namespace(boxes)
    ordered = xp.sort(boxes, axis=2)  # NaN last
    count = (ordered == ordered).sum(axis=2, keepdims=True)
    middle = xp.maximum((count - 1) // 2, 0), count // 2
    low, high = (xp.take_along_axis(ordered, place, axis=2)[:, :, 0] for place in middle)
    return xp.where(count[:, :, 0] > 0, (low + high) / 2, 0.0)


def boxes_of(plane: Any) -> Any:
    """Cut a plane (ny, nx) into boxes: (ny // side, nx // side, side^2); rims are left out."""
    ny, nx = plane.shape
    height, width = min(BLOCK, ny), min(BLOCK, nx)
    rows, columns = ny // height, nx // width
    cut = plane[: rows * height, : columns * width].reshape(rows, height, columns, width)
    return cut.transpose(0, 2, 1, 3).reshape(rows, columns, -1)


def average(boxes: Any) -> Any:
    """Average 3 x 3 boxes with weights of 1, 2, 1 in both directions; edges are repeated."""
    xp = cuda.array_namespace(boxes)
    ny, nx = boxes.shape
    padded = xp.pad(boxes, 1, mode="edge")
    rows = padded[:ny] + 2.0 * padded[1 : ny + 1] + padded[2:]
    return (rows[:, :nx] + 2.0 * rows[:, 1 : nx + 1] + rows[:, 2:]) / 16.0


def smooth(boxes: Any, noise: Any) -> Any:
    """Average variances of 3 x 3 boxes: those near the noise linearly, brighter ones by logarithms.

    Parameters
    ----------
    boxes : (ny, nx) floating
        Variances; those from which noise was subtracted may be negative.
    noise : (ny, nx) floating
        Variance of the noise.

    Returns
    -------
    (ny, nx) floating

    Notes
    -----
    ``s sinh(mean(arsinh(v / s)))`` with s three times the noise of each box. The error of a sum of
    squares is in proportion to the noise where that prevails, and to the sum where speckles do;
    this function makes it uniform. Positive and negative deviations of noise cancel, and the core
    of a star does not spread into the boxes beside it.
    """
    xp = cuda.array_namespace(boxes)
    scale = LINEAR * average(noise)
    known = scale > 0
    scale = xp.where(known, scale, 1.0)
    mean = xp.sinh(average(xp.arcsinh(boxes / scale))) * scale
    return xp.where(known, mean, average(boxes))


def to_pixels(boxes: Any, shape: tuple[int, int]) -> Any:
    """Interpolate boxes linearly to pixels."""
    xp = cuda.array_namespace(boxes)
    for axis, size in enumerate(shape):
        n = boxes.shape[axis]
        place = np.clip((np.arange(size) + 0.5) / min(BLOCK, size) - 0.5, 0, n - 1)
        low = np.floor(place).astype(int)
        part = xp.asarray((place - low).reshape((-1, 1) if axis == 0 else (1, -1)))
        below = xp.take(boxes, xp.asarray(low), axis=axis)
        above = xp.take(boxes, xp.asarray(np.minimum(low + 1, n - 1)), axis=axis)
        boxes = below + part * (above - below)
    return boxes


def scatter_variance(images: Any) -> Any:
    """Return the variance of the pixels around each pixel, as the images themselves show it.

    Parameters
    ----------
    images : (n, ny, nx) floating, MJy/sr

    Returns
    -------
    (n, ny, nx) float32, (MJy/sr)^2
        From medians of the squares about an image's median in boxes of 5 x 5 pixels, smoothed over
        3 x 3 boxes; where that is 0, the square of the largest value: NaN for images without any.
    """
    xp = cuda.array_namespace(images)
    planes = []
    for image in images:
        image = xp.where(xp.isfinite(image), image, np.nan).astype(np.float64)
        if bool(xp.isnan(image).all()):
            planes.append(image)
            continue
        square = (image - xp.nanmedian(image)) ** 2
        boxes = median_of(boxes_of(square)) / MEDIAN_SQUARE
        plane = to_pixels(smooth(boxes, xp.full_like(boxes, xp.median(boxes))), image.shape)
        planes.append(xp.where(plane > 0, plane, xp.nanmax(square)))
    return xp.stack(planes).astype(np.float32)
