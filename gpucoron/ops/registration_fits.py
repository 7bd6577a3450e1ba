"""The table of a registration's fits, and what their status means."""

from __future__ import annotations

import numpy as np

CONVERGED, NOT_CONVERGED, LEFT_OUT = 0, 1, 2
PREDICTED = 4  # not measured: the position is that of its exposure, or the headers'
INCONSISTENT = 3  # converged, and cannot be right: see `gpucoron.steps.fit_consistency`

FIT_DTYPE = np.dtype(
    [
        ("x", "f8"),
        ("y", "f8"),
        ("beta", "f8"),
        ("x_err", "f8"),
        ("y_err", "f8"),
        ("beta_err", "f8"),
        ("residual", "f8"),
        ("status", "i2"),
        ("n_iter", "i2"),
    ]
)


def left_out(n):
    """Fits of `n` pairs that were not tried: NaN, and the status `LEFT_OUT`."""
    fits = np.zeros(n, dtype=FIT_DTYPE)
    for name in FIT_DTYPE.names[:-2]:  # type: ignore[index]  # it has names
        fits[name] = np.nan
    fits["status"] = LEFT_OUT
    return fits


def store_fits(fits, f, r, centres, rows):
    """Put rows (npairs, 9) of `fit_pairs`, fitted in boxes at `centres`, into a table of fits."""
    fits["y"][f, r], fits["x"][f, r] = (centres + rows[:, :2]).T
    for i, name in enumerate(("beta", "y_err", "x_err", "beta_err", "residual"), start=2):
        fits[name][f, r] = rows[:, i]
    fits["status"][f, r] = np.where(rows[:, 7] > 0, CONVERGED, NOT_CONVERGED)
    fits["n_iter"][f, r] = rows[:, 8]
