"""Sums of images and weights with a small model about every pixel, as matched filters need."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["patch_sums"]


def patch_sums(weighted: Any, weight: Any, models: Any, which: Any) -> np.ndarray:
    """Sum two images about every pixel, multiplied by the model that belongs to the pixel.

    Parameters
    ----------
    weighted, weight : (ny, nx) floating
        Data times weights, and weights; 0 where there are no data.
    models : (m, side, side) floating
        M; `side` is odd.
    which : (ny, nx) int
        Number of each pixel's model.

    Returns
    -------
    (6, ny, nx) float64
        Sums over the patch of ``w d M``, ``w d``, ``w M``, ``w``, ``w M^2``, and of ``M^2`` where
        w > 0.
    """
    from gpucoron.ops.cpu.patch_sums import patch_sums as add

    weighted, weight, models = (
        np.ascontiguousarray(a, dtype=np.float64) for a in (weighted, weight, models)
    )
    return add(weighted, weight, models, np.ascontiguousarray(which, dtype=np.int64))
