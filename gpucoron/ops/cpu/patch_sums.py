"""Sums with a small model about every pixel, with numba."""

from __future__ import annotations

import numpy as np
from numba import njit, types

from gpucoron.backend.parallel import over_rows

__all__ = ["patch_sums"]


def patch_sums(weighted, weight, models, which):
    """Return sums (6, ny, nx); see ops/patch_sums.py."""
    out = np.zeros((6, *weight.shape))
    over_rows(_sum, len(weight), weighted, weight, models, which, out)
    return out


_F2 = types.Array(types.float64, 2, "C", readonly=True)


@njit(
    (types.int64, types.int64, _F2, _F2)
    + (types.Array(types.float64, 3, "C", readonly=True),)
    + (types.Array(types.int64, 2, "C", readonly=True), types.float64[:, :, ::1]),
    cache=True,
    nogil=True,
    fastmath={"contract"},
)
def _sum(first, stop, weighted, weight, models, which, out):
    """Sum about the pixels of some rows."""
    ny, nx = weight.shape
    half = models.shape[1] // 2
    for y in range(first, stop):
        for x in range(nx):
            model = models[which[y, x]]
            data_m, data, weight_m, total, square, covered = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for j in range(max(0, y - half), min(ny, y + half + 1)):
                for i in range(max(0, x - half), min(nx, x + half + 1)):
                    w, d = weight[j, i], weighted[j, i]
                    m = model[j - y + half, i - x + half]
                    data_m += d * m
                    data += d
                    weight_m += w * m
                    total += w
                    square += w * m * m
                    if w > 0.0:
                        covered += m * m
            out[0, y, x], out[1, y, x], out[2, y, x] = data_m, data, weight_m
            out[3, y, x], out[4, y, x], out[5, y, x] = total, square, covered
