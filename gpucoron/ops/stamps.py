"""Stamps, small images that show a source each: their place in whole images, and their checks."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucoron.errors import InputError
from gpucoron.ops.position_answer import PositionAnswer

__all__ = ["as_stamps", "cut", "inside", "moves", "sheets_of"]


def moves(stamps: np.ndarray, corners: np.ndarray, answer: PositionAnswer) -> np.ndarray:
    """Return how far (y, x), px, the registration moves an image for each source, (m, 2)."""
    from gpucoron.ops.cpu.injection import amplitudes

    ny, nx = answer.maps.shape[:2]
    pixels = ny * nx
    everywhere = np.ones(pixels), np.full(pixels, -1, np.int32), np.zeros((0, 1)), (ny, nx)
    return amplitudes(stamps, corners, answer.maps.reshape(pixels, 2), *everywhere)[:, 0]


def cut(plane: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """Cut square patches out of a plane, NaN outside of it.

    Parameters
    ----------
    plane : (ny, nx) floating
    places : (m, 2) int
        Row and column of the first pixel of each patch.
    size : int

    Returns
    -------
    (m, size, size) float64
    """
    steps = np.arange(size)
    y, x = places[:, 0, None] + steps, places[:, 1, None] + steps
    known = ((y >= 0) & (y < plane.shape[0]))[:, :, None] & ((x >= 0) & (x < plane.shape[1]))[
        :, None
    ]
    y, x = np.clip(y, 0, plane.shape[0] - 1), np.clip(x, 0, plane.shape[1] - 1)
    return np.where(known, plane[y[:, :, None], x[:, None]], np.nan)


def sheets_of(stamps: np.ndarray, corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the sum of all sources in each group as whole images, (g, ny, nx).

    Stamps are (m, g, h, w), corners (m, g, 2).
    """
    sheets = np.zeros((stamps.shape[1], *shape))
    for own, at in zip(stamps, corners, strict=True):
        for sheet, stamp, corner in zip(sheets, own, at, strict=True):
            where, part = inside(corner, stamp.shape, shape)
            sheet[where] += stamp[part]
    return sheets


def as_stamps(stamps: Any, corners: Any, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return stamps (m, g, h, w) float64 and corners (m, g, 2) int64 of sources in g groups.

    With one group they may be (m, h, w) and (m, 2).
    """
    stamps = np.ascontiguousarray(stamps, dtype=np.float64)
    corners = np.ascontiguousarray(corners, dtype=np.int64)
    if stamps.ndim == 3 and n_groups == 1:
        stamps, corners = stamps[:, None], corners[:, None]
    expected = (len(stamps), n_groups, 2)
    if stamps.ndim != 4 or stamps.shape[1] != n_groups or corners.shape != expected:
        raise InputError(
            f"stamps have shape {stamps.shape}, corners {corners.shape}; expected "
            f"(m, {n_groups}, h, w) and (m, {n_groups}, 2)"
        )
    return stamps, corners


def inside(corner: Any, size: Any, shape: Any) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where a stamp is in an image, and which part of it: two pairs of slices."""
    where, part = [], []
    for start, length, limit in zip(corner.tolist(), size, shape, strict=True):
        low, high = max(start, 0), max(min(start + length, limit), max(start, 0))
        where.append(slice(low, high))
        part.append(slice(low - start, high - start))
    return tuple(where), tuple(part)
