"""Options of drizzle, validated."""

from __future__ import annotations

import math

from gpucoron.errors import ParameterError
from gpucoron.ops.drizzle_profiles import SEPARABLE

__all__ = ["CONTEXT_BITS", "KERNELS", "check_kernel", "check_shape", "fill_value"]

KERNELS = ("square", "point", *SEPARABLE)
CONTEXT_BITS = 32  # of a layer of the context: one for each image
POINT_PIXFRAC = 0.001  # the drop is a point at this pixfrac and below


def fill_value(fillval: str | float | None) -> float:
    """Translate jwst's `fillval`: a number, a string holding one, or "NAN", "INDEF", "" or None.

    Raises
    ------
    ParameterError
        Anything else.
    """
    if fillval is None or (isinstance(fillval, str) and fillval.strip().upper() in ("", "INDEF")):
        return math.nan
    try:
        return float(fillval)
    except (TypeError, ValueError):
        raise ParameterError(
            f"fillval is {fillval!r}, expected 'NAN', 'INDEF' or a number"
        ) from None


def check_kernel(kernel, pixfrac, pixel_scale_ratio):
    """Check them; what makes no difference to a kernel comes back as its default."""
    name = str(kernel).lower()
    if name not in KERNELS:
        raise ParameterError(
            f"kernel is {kernel!r}, expected one of {', '.join(map(repr, KERNELS))}"
        )
    fraction = _number(pixfrac)
    if not 0.0 <= fraction <= 1.0:
        raise ParameterError(f"pixfrac is {pixfrac!r}, expected a number from 0 to 1")
    ratio = None if pixel_scale_ratio is None else _number(pixel_scale_ratio)
    if ratio is not None and not 1e-6 <= ratio <= 1e6:
        raise ParameterError(
            f"pixel_scale_ratio is {pixel_scale_ratio!r}, expected a number from 1e-6 to 1e6, or "
            "None"
        )
    if fraction <= POINT_PIXFRAC:
        name = "point"
    elif name.startswith("lanczos"):
        fraction = 1.0
    return name, fraction, ratio if name in SEPARABLE else None


def _number(value):
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def check_shape(shape):
    """Return an output shape as two positive ints."""
    try:
        ny, nx = (int(n) for n in shape)
    except (TypeError, ValueError):
        raise ParameterError(f"output shape is {shape!r}, expected (ny, nx)") from None
    if ny < 1 or nx < 1 or ny * nx >= 2**31:
        raise ParameterError(
            f"output shape is {(ny, nx)}, expected at least 1 pixel a side and below 2^31 in all"
        )
    return ny, nx
