"""Launch of kernels/drizzle_weights.cu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpucoron.backend import cuda

__all__ = ["pixel_weights"]

THREADS = 256


def pixel_weights(
    data: Any,
    err: Any,
    dq: Any,
    variances: Sequence[Any],
    bad: np.uint32,
    inverse_of: int | None,
    weight: float,
) -> Any:
    """Return 1 / variance number `inverse_of`, or `weight`, and 0 for bad pixels; float32.

    `variances` has None where there is none; `bad` are the bits of `dq` that make a pixel bad.
    """
    cp = cuda.cupy()
    present = [k for k, variance in enumerate(variances) if variance is not None]
    given = [
        cp.ascontiguousarray(a, dtype=np.float32)
        for a in (data, err, *(variances[k] for k in present))
    ]
    given += given[:1] * (len(variances) - len(present))
    weights = cp.empty(data.shape, np.float32)
    if weights.size:
        cuda.kernel("drizzle_weights", "weigh_pixels")(
            (-(-weights.size // THREADS),),
            (THREADS,),
            (
                *given[:2],
                cp.ascontiguousarray(dq),
                *given[2:],
                np.int32(len(present)),
                np.int32(-1 if inverse_of is None else present.index(inverse_of)),
                np.uint32(bad),
                np.float32(weight),
                np.int64(weights.size),
                weights,
            ),
        )
    return weights
