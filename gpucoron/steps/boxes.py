"""Medians in boxes of 5 x 5 pixels, and smooth planes made of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucoron.backend import cuda

__all__ = ["MEDIAN_SQUARE", "boxes_of", "median_of", "scatter_variance", "smooth", "to_pixels"]

BLOCK = 5  # pixels: side of the boxes in which the scatter is measured
# of variances, when boxes are averaged: with 0.5 errors of the 4QPM at 10 to 20 px were 1.9 times
# too large where K = 1, with 0.25 those within 10 px 1.5 times too small where only noise is left;
# seeds 404 to 406 (0.5: two of them), 4QPM, for 0.25, 0.4, 0.5: psfsub / ERR at 10 to 20 px, K = 1,
# 0.83, 0.64, 0.55; means over 4 x 4 pixels of i2d within 10 px, K = 15, 1.9, 1.7, 1.9
POWER = 0.4
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


def smooth(boxes: Any) -> Any:
    """Average powers of 0.4 (signed) over 3 x 3 boxes; less lets bright boxes spread less."""
    xp = cuda.array_namespace(boxes)
    root = xp.pad(xp.sign(boxes) * abs(boxes) ** POWER, 1, mode="edge")
    ny, nx = boxes.shape
    mean = sum(root[y : y + ny, x : x + nx] for y in range(3) for x in range(3)) / 9.0
    return xp.sign(mean) * abs(mean) ** (1.0 / POWER)


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
        plane = to_pixels(smooth(median_of(boxes_of(square)) / MEDIAN_SQUARE), image.shape)
        planes.append(xp.where(plane > 0, plane, xp.nanmax(square)))
    return xp.stack(planes).astype(np.float32)
