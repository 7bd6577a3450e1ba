"""Kriging on a GPU, and tables for kernels that include kernels/kriging.cuh."""

import functools

import numpy as np

from gpucoron.backend import cuda
from gpucoron.ops import kriging_tables
from gpucoron.ops.kriging_tables import CUTOFF, FAR, NEAR

__all__ = ["finest_correlation", "interpolate"]

_SCRATCH = {NEAR: 10952, FAR: 54216}  # bytes of shared memory a warp
_WARPS = {NEAR: 4, FAR: 1}  # a block
_NAMES = {NEAR: "NEAR", FAR: "FAR"}


def interpolate(image, usable, err, y, x, correlation, reach):
    """Predict pixels (y, x) of an image; `correlation` is None for the finest structure."""
    cp = cuda.cupy()
    values, variances = cp.empty((2, y.size), np.float64)
    if y.size == 0:
        return values, variances
    table = finest_correlation() if correlation is None else cp.asarray(correlation)
    room = NEAR if reach <= NEAR else FAR
    cuda.kernel("bad_pixels", f"krige_pixels<{_NAMES[room]}>")(
        (-(-y.size // _WARPS[room]),),
        (32 * _WARPS[room],),
        (
            cp.ascontiguousarray(image, np.float64),
            cp.ascontiguousarray(usable, np.bool_),
            cp.ascontiguousarray(err, np.float64),
            table,
            *map(np.int32, image.shape),
            np.int32(reach),
            np.int32(y.size),
            cp.ascontiguousarray(y, np.int64),
            cp.ascontiguousarray(x, np.int64),
            values,
            variances,
        ),
        shared_mem=_WARPS[room] * _SCRATCH[room],
    )
    return values, variances


def finest_correlation(cutoff=CUTOFF):
    """Return the table of `gpucoron.ops.kriging` on the current device, copied once to each."""
    cp = cuda.cupy()
    return _table(cp, cp.cuda.runtime.getDevice(), cutoff)


@functools.cache
def _table(cp, device, cutoff):
    table = cp.asarray(kriging_tables.finest_correlation(cutoff))
    cp.cuda.get_current_stream().synchronize()  # other streams will use it, too
    return table
