"""Weights of the input pixels of a drizzle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpucoron.backend.device import on_gpu

__all__ = ["pixel_weights"]


def pixel_weights(
    data: Any,
    err: Any,
    dq: Any,
    variances: Sequence[Any | None],
    bad: np.uint32,
    inverse_of: int | None,
    weight: float,
) -> Any:
    """Return 1 / variance number `inverse_of`, or `weight`, and 0 for pixels that take no part.

    Parameters
    ----------
    data, err : (n, ny, nx) floating array, MJy/sr
        The images and their errors; used as float32.
    dq : (n, ny, nx) uint32 array
        Data quality.
    variances : sequence of three (n, ny, nx) floating arrays or None, (MJy/sr)^2
        None where there is none.
    bad : uint32
        Bits of `dq` that make a pixel bad.
    inverse_of : int or None
        The variance whose inverse is the weight; None for one weight for all pixels.
    weight : float
        That weight.

    Returns
    -------
    (n, ny, nx) float32
        On the device of the images.

    Notes
    -----
    The weight is 0 where DQ has one of the bits `bad`, the image is not finite, or the error or a
    variance is NaN; and where the variance whose inverse it is, or that inverse, lies below the
    smallest normal number of float32, 2^-126.
    """
    if on_gpu(data, err, dq, *variances):
        from gpucoron.ops.cuda import drizzle_weights as work
    else:
        from gpucoron.ops.cpu import drizzle_weights as work  # type: ignore[no-redef]
    return work.pixel_weights(data, err, dq, variances, bad, inverse_of, weight)
