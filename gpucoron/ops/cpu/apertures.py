"""Sums in circular apertures, with numba."""

from __future__ import annotations

import numpy as np
from numba import njit, types

from gpucoron.backend.parallel import over_rows

__all__ = ["aperture_sums"]

_LINES = 10  # across a pixel, along which the chord is exact
_LEAST = 0.9  # share of an aperture that must have data


def aperture_sums(image, centres, radius):
    """Return sums (n,); see ops/apertures.py."""
    out = np.empty(len(centres))
    over_rows(_sum, len(centres), image, centres, radius, out)
    return out


@njit(
    (types.int64, types.int64)
    + 2 * (types.Array(types.float64, 2, "C", readonly=True),)
    + (types.float64, types.float64[::1]),
    cache=True,
    nogil=True,
)
def _sum(first, stop, image, centres, radius, out):
    """Sum in some apertures (x, y)."""
    ny, nx = image.shape
    area = np.pi * radius * radius
    for m in range(first, stop):
        x, y = centres[m, 0], centres[m, 1]
        total, covered = 0.0, 0.0
        if not (np.isfinite(x) and np.isfinite(y)):
            out[m] = np.nan
            continue
        for j in range(max(0, int(y - radius)), min(ny, int(y + radius) + 2)):
            for i in range(max(0, int(x - radius)), min(nx, int(x + radius) + 2)):
                weight = 0.0
                for line in range(_LINES):
                    dy = j - 0.5 + (line + 0.5) / _LINES - y
                    if abs(dy) < radius:
                        half = np.sqrt(radius * radius - dy * dy)
                        low, high = max(i - 0.5, x - half), min(i + 0.5, x + half)
                        weight += max(0.0, high - low)
                weight /= _LINES
                if weight > 0.0 and np.isfinite(image[j, i]):
                    total += weight * image[j, i]
                    covered += weight
        out[m] = total * area / covered if covered >= _LEAST * area else np.nan
