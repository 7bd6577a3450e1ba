"""Compile the numba loops that a run needs last, in advance or in a second process."""

import importlib

from numba import types

from gpucoron.ops.cpu import registration

__all__ = ["compile_late"]


def compile_late() -> None:
    """Compile what a run needs last: the fits, and drizzle."""
    one, two, three = (types.Array(types.float64, n, "C") for n in (1, 2, 3))
    which = types.Array(types.int64, 1, "C")
    registration._fit_pairs.compile(
        (
            types.int64,
            types.int64,
            three,
            three,
            which,
            one,
            types.float64,
            types.float64,
            one,
            two,
            types.float64,
            two,
        )
    )
    for name in ("drizzle", "drizzle_weights", "drizzle_planes"):  # their signatures stand there
        importlib.import_module(f"gpucoron.ops.cpu.{name}")
