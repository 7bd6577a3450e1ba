"""Stamps of injected sources: their shapes, where they are in an image, and how they move it."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucoron.errors import InputError
from gpucoron.ops.position_answer import PositionAnswer

__all__ = ["as_stamps", "inside", "moves"]


def moves(stamps: np.ndarray, corners: np.ndarray, answer: PositionAnswer) -> np.ndarray:
    """Return how far (y, x), px, the registration moves an image for each source, (m, 2)."""
    from gpucoron.ops.cpu.injection import amplitudes

    ny, nx = answer.maps.shape[:2]
    pixels = ny * nx
    everywhere = np.ones(pixels), np.full(pixels, -1, np.int32), np.zeros((0, 1)), (ny, nx)
    return amplitudes(stamps, corners, answer.maps.reshape(pixels, 2), *everywhere)[:, 0]


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
