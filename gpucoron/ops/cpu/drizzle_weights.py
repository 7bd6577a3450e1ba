"""Weights of the input pixels of a drizzle, on the CPU with numba."""

from __future__ import annotations

import numpy as np
from numba import njit, types

from gpucoron.backend.parallel import over_rows

__all__ = ["pixel_weights"]

_I8, _F4 = types.int64, types.Array(types.float32, 1, "C", readonly=True)
_U4 = types.Array(types.uint32, 1, "C", readonly=True)
_BLOCK = 2048  # pixels at a time, which stay in the processor's cache
_LEAST = np.finfo(np.float32).tiny
_MOST = np.float32(1.0) / _LEAST  # whose inverse is the least


def pixel_weights(data, err, dq, variances, bad, inverse_of, weight):
    """Return the weights; see `gpucoron.ops.drizzle_weights`."""
    present = [k for k, variance in enumerate(variances) if variance is not None]
    flat = [
        np.ascontiguousarray(a, dtype=np.float32).reshape(-1)
        for a in (data, err, *(variances[k] for k in present))
    ]
    flat += flat[:1] * (len(variances) - len(present))
    weights = np.empty(np.shape(data), dtype=np.float32)
    over_rows(
        weigh_pixels,
        weights.size,
        *flat,
        np.ascontiguousarray(dq).reshape(-1),
        len(present),
        -1 if inverse_of is None else present.index(inverse_of),
        np.uint32(bad),
        np.float32(weight if inverse_of is None else 1.0),
        weights.reshape(-1),
    )
    return weights


@njit(
    (
        _I8,
        _I8,
        *5 * (_F4,),
        _U4,
        _I8,
        _I8,
        types.uint32,
        types.float32,
        types.float32[::1],
    ),
    cache=True,
    nogil=True,
)
def weigh_pixels(
    row, stop, data, err, v0, v1, v2, dq, n_variances, inverse_of, bad, weight, weights
):
    """Write the weights of some pixels; of the variances only `n_variances` are real.

    Loops without branches over a few pixels at a time, which the compiler makes vectors of.
    """
    zero, one = np.float32(0.0), np.float32(1.0)
    for begin in range(row, stop, _BLOCK):
        end = min(begin + _BLOCK, stop)
        sci, error, flags, out = data[begin:end], err[begin:end], dq[begin:end], weights[begin:end]
        for k in range(end - begin):
            finite = sci[k] - sci[k] == zero
            good = ((flags[k] & bad) == 0) & finite & (error[k] == error[k])
            out[k] = weight if good else zero
        for n in range(n_variances):
            variance = v0[begin:end] if n == 0 else v1[begin:end] if n == 1 else v2[begin:end]
            if n == inverse_of:
                for k in range(end - begin):
                    known = (variance[k] >= _LEAST) & (variance[k] <= _MOST)
                    out[k] *= one / variance[k] if known else zero
            else:
                for k in range(end - begin):
                    out[k] = out[k] if variance[k] == variance[k] else zero
