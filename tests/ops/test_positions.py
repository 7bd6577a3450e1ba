"""Positions of images from shifts between pairs: against scipy's least squares, and faults."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import least_squares

from gpucoron.ops.positions import HUBER, solve_positions


def network(seed, n=7, m=11, noise=0.0):
    """Shifts of a chain that joins all images, and of some other pairs."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.normal(0, 3, (n, 2)), rng.normal(0, 3, (m, 2))
    rows -= rows.mean(axis=0)
    known = rng.random((n, m)) < 0.4
    known[0] = known[:, 0] = True
    shifts = columns[None] - rows[:, None] + rng.normal(0, noise, (n, m, 2))
    return rows, columns, np.where(known[:, :, None], shifts, np.nan), known


@pytest.mark.parametrize("seed", range(3))
def test_exact_shifts_give_the_positions_back(seed):
    rows, columns, shifts, known = network(seed)
    found = solve_positions(shifts, known)
    assert_allclose(found.rows, rows, atol=1e-12)
    assert_allclose(found.columns, columns, atol=1e-12)
    assert np.nanmax(np.abs(found.rest)) < 1e-12 and np.isnan(found.rest[~known]).all()


@pytest.mark.parametrize("seed", range(3))
def test_noisy_shifts_equal_scipys_robust_fit(seed):
    """One axis, so that a length is a residual, with the scale that came out."""
    *_, shifts, known = network(seed, noise=0.01)
    shifts = shifts[:, :, :1]
    shifts[0, 3] += 2.0
    found = solve_positions(shifts, known)

    def residuals(p):
        rest = shifts[:, :, 0] - p[None, 7:] + p[:7, None]
        return np.append(rest[known], 1e3 * p[:7].mean())

    scale = HUBER * found.scale
    start = np.concatenate([found.rows, found.columns])[:, 0]
    fit = least_squares(
        residuals, start + 0.003, loss="huber", f_scale=scale, xtol=1e-15, ftol=1e-15
    )

    def cost(p):
        squares = (residuals(p) / scale) ** 2
        return np.where(squares <= 1, squares, 2 * np.sqrt(squares) - 1).sum()

    # where two fits contradict each other, anything between them costs the same
    assert cost(start) < cost(fit.x) * (1 + 1e-4)
    assert np.median(np.abs(start - fit.x)) < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_a_few_wrong_shifts_move_little(seed):
    rows, columns, shifts, known = network(seed, n=10, m=9, noise=0.002)
    known[:] = True
    shifts = np.where(np.isnan(shifts), columns[None] - rows[:, None], shifts)
    wrong = np.random.default_rng(seed).choice(90, 5, replace=False)
    shifts.reshape(-1, 2)[wrong] += 5.0
    found = solve_positions(shifts, known)
    assert np.abs(found.columns - columns).max() < 0.01
    assert np.abs(found.rest.reshape(-1, 2)[wrong] - 5.0).max() < 0.02


def test_images_without_shifts_are_not_known():
    rows, columns, shifts, known = network(1)
    known[2] = known[:, 5] = False
    found = solve_positions(shifts, known)
    assert np.isnan(found.rows[2]).all() and np.isnan(found.columns[5]).all()
    others = np.delete(np.arange(11), 5)
    assert_allclose(np.diff(found.columns[others], axis=0), np.diff(columns[others], axis=0))
    nothing = solve_positions(shifts, np.zeros_like(known))
    assert np.isnan(nothing.rows).all() and np.isnan(nothing.columns).all()
