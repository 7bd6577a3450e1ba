"""How far the registration moves an image for a faint source in it, to first order."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpucoron.ops.fourier_shift import fourier_shift

__all__ = ["PositionAnswer", "position_answer"]

_STEP = 0.05  # px, over which slopes are taken


class PositionAnswer(NamedTuple):
    """What a source p does to an image that is aligned: p becomes ``p - sum(maps p) slopes``."""

    maps: np.ndarray  # (ny, nx, 2)
    slopes: np.ndarray  # (ny, nx, 2), of the star's image by y and x, per px


def position_answer(star: Any, mask: Any, background: bool = True) -> PositionAnswer:
    """Return how the registration answers to a source.

    Parameters
    ----------
    star : (ny, nx) floating
        The image of the star without sources beside it, where the references are.
    mask : (ny, nx) floating
        Multiplies the residual in the fit.
    background : bool
        A constant is fitted, too.

    Notes
    -----
    A fit of position, brightness and background takes the part of a source that looks like a shift
    of the star for one: ``ds = -H^-1 (dg/df . p)`` with the normal matrix H of the star's slopes,
    its image and a constant. The image is moved back by it, which takes ``ds . slopes`` from it.
    """
    star = np.asarray(star, dtype=np.float64)
    moves = _STEP * np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    shifted = fourier_shift(np.repeat(star[None], 4, axis=0), moves)
    slopes = np.stack([shifted[1] - shifted[0], shifted[3] - shifted[2]]) / (2 * _STEP)
    rows = np.stack([*slopes, star, *([np.ones_like(star)] if background else [])])
    rows = rows.reshape(len(rows), -1)
    weighted = rows * np.asarray(mask, dtype=np.float64).ravel() ** 2
    maps = np.linalg.pinv(weighted @ rows.T, hermitian=True)[:2] @ weighted
    shape = (*star.shape, 2)
    flat = np.ascontiguousarray(maps.T), np.ascontiguousarray(slopes.reshape(2, -1).T)
    return PositionAnswer(*(columns.reshape(shape) for columns in flat))
