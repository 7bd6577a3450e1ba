"""Positions of images from the shifts between some pairs of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Positions", "solve_positions"]

HUBER = 1.5  # robust standard deviations beyond which a shift counts less
LEAST_SCALE = 1e-5  # px; scatter below this is rounding
MAX_ITERATIONS = 30
TOLERANCE = 1e-8  # px, of the last step


class Positions(NamedTuple):
    """Positions of two sets of images; see `solve_positions`."""

    rows: np.ndarray  # (n, k) float64; NaN for an image without a shift
    columns: np.ndarray  # (m, k) float64; likewise
    rest: np.ndarray  # (n, m, k) float64: what positions leave of the shifts; NaN where none
    scale: float  # robust standard deviation of the rest along an axis


def solve_positions(shifts: np.ndarray, known: np.ndarray) -> Positions:
    """Find positions whose differences are the shifts, ``shifts[i, j] = columns[j] - rows[i]``.

    Parameters
    ----------
    shifts : (n, m, k) floating
        Measured for some pairs of n and m images, along k axes.
    known : (n, m) bool
        Which pairs were measured.

    Returns
    -------
    Positions
        The rows that have shifts have the mean 0, also those of a chain of pairs that no pair
        joins to the others.

    Notes
    -----
    Least squares with the weights of Huber [1]_ of the length of what is left of a shift, all
    pairs being equal: what the noise of an image adds to its shifts goes into its position
    whatever the weights are, and only what is left tells good pairs from bad ones. A column is
    where its shifts have it on average, which leaves equations with one unknown for each row: few
    rows and many columns cost least.

    References
    ----------
    .. [1] Huber 1964, Annals of Mathematical Statistics 35, 73.
    """
    n, m, axes = shifts.shape
    known = known & np.isfinite(shifts).all(axis=2)
    values = np.where(known[:, :, None], shifts, 0.0)
    weights = known.astype(np.float64)
    solution, scale = np.zeros((n + m, axes)), 0.0
    rest = values
    for _ in range(MAX_ITERATIONS):
        before, solution = solution, _least_squares(values, weights)
        rest = values - solution[None, n:] + solution[:n, None]
        length = np.sqrt((rest**2).sum(axis=2))
        # the median of a length is 1.1774 standard deviations of each of two axes
        scale = float(np.median(length[known]) / 1.1774) if known.any() else 0.0
        scale = max(scale, LEAST_SCALE)
        weights = np.where(known, np.minimum(1.0, HUBER * scale / np.maximum(length, 1e-300)), 0.0)
        if np.abs(solution - before).max(initial=0.0) < TOLERANCE:
            break
    has_row, has_column = np.any(known, axis=1), np.any(known, axis=0)
    origin = solution[:n][has_row].mean(axis=0) if has_row.any() else 0.0
    rows = np.where(has_row[:, None], solution[:n] - origin, np.nan)
    columns = np.where(has_column[:, None], solution[n:] - origin, np.nan)
    return Positions(rows, columns, np.where(known[:, :, None], rest, np.nan), scale)


def _least_squares(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Solve for the rows' positions (mean 0 in each chain), then the columns', (n + m, k)."""
    of_columns = np.where(weights.any(axis=0), weights.sum(axis=0), 1.0)
    share = weights / of_columns
    weighted = weights[:, :, None] * values
    middle = weighted.sum(axis=0) / of_columns[:, None]  # of a column, where all rows are at 0
    matrix = np.diag(weights.sum(axis=1)) - share @ weights.T
    right = weights @ middle - weighted.sum(axis=1)
    rows = np.linalg.lstsq(matrix, right, rcond=1e-12)[0]
    return np.concatenate([rows, middle + share.T @ rows])
