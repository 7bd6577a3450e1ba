"""Separable drizzle kernels: turbo, gaussian, lanczos.

With s the output over the input pixel scale, p the pixfrac, and t the distance along an axis from
the drop's centre c to an output pixel's centre, all in output pixels, that output pixel receives
the share norm f(t_x) f(t_y) of the weight:

    kernel     f                                                norm                 radius r
    turbo      length that [c - r, c + r] and the pixel share   (s / p)^2            p / (2 s)
    gaussian   exp(-t^2 / (2 sigma^2))                          1 / (2 pi sigma^2)   2.5 sigma
    lanczosN   sinc(u) sinc(u / N), u = s |t|                   1                    N / s

where sigma = p / (2.3548 s). The output pixels are those from nearest(c - r) to nearest(c + r),
halves away from zero, in either axis, and for lanczos those with c - r < x <= c + r. The gaussian's
r is never below 1.2 / s, and its shares are rounded to single precision. Lanczos ignores p, and
takes u to the nearest multiple of 0.003 from a table. All this is as in the drizzle package, so
that weights and context agree with it, and so is s in single precision.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

__all__ = ["GAUSSIAN", "LANCZOS", "SEPARABLE", "TURBO", "Profile", "profile"]

TURBO, GAUSSIAN, LANCZOS = 0, 1, 2
SEPARABLE = ("turbo", "gaussian", "lanczos2", "lanczos3")
FWHM = 2.3548  # of a gaussian, in sigmas
CUT = 2.5  # sigmas
LEAST_RADIUS = 1.2  # input pixels
STEP = 0.003  # of the lanczos table, input pixels


@dataclass(frozen=True)
class Profile:
    """What the loops need of a profile; lengths in output pixels.

    `factor` multiplies t^2 in the gaussian's exponent and |t| in lanczos's index of `table`.
    """

    kind: int
    radius: float
    norm: float
    factor: float
    table: np.ndarray


def profile(kernel: str, pixfrac: float, pixel_scale_ratio: float) -> Profile:
    """Work out the profile of a kernel of `SEPARABLE`."""
    ratio = float(np.float32(pixel_scale_ratio))
    if kernel == "turbo":
        return Profile(
            TURBO, pixfrac / ratio / 2.0, ratio * ratio / (pixfrac * pixfrac), 0.0, np.zeros(1)
        )
    if kernel == "gaussian":
        radius = max(CUT * pixfrac / FWHM, LEAST_RADIUS) / ratio
        factor = 0.5 * (FWHM * ratio / pixfrac) ** 2
        return Profile(GAUSSIAN, radius, factor / math.pi, factor, np.zeros(1))
    order = int(kernel[-1])
    return Profile(LANCZOS, order / ratio, 1.0, ratio / STEP, lanczos_table(order))


@functools.cache
def lanczos_table(order: int) -> np.ndarray:
    """Lanczos's function at multiples of `STEP`, up to and including the first past `order`."""
    table = np.ones(math.ceil(order / STEP) + 1)
    for k in range(1, table.size):
        x = math.pi * (k * STEP)
        table[k] = math.sin(x) * math.sin(x / order) / (x * (x / order))
        if k * STEP > order:
            table[k] = 0.0
    table.flags.writeable = False
    return table
