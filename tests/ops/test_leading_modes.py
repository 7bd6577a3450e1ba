"""Leading eigenvectors side by side, against LAPACK's decomposition of each matrix."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpucoron.ops.cpu.klip_zones import coefficients
from gpucoron.ops.cpu.leading_modes import LANES, leading_coefficients
from gpucoron.ops.zone_sums import Sums

TOLERANCE = 16 * np.finfo(float).eps
TRUNCATIONS = np.array([0, 1, 3, 7, 12])


def images(kind, n, rng):
    """Images whose inner products have eigenvalues of some kind, (n, 80)."""
    own = rng.normal(size=(n, 80))
    if kind == "graded":  # over ten decades
        return (np.linalg.qr(rng.normal(size=(n, n)))[0] * np.logspace(0, -5, n)) @ own
    if kind == "of rank 5":
        return rng.normal(size=(n, 5)) @ own[:5]
    if kind == "nothing":
        return np.zeros((n, 80))
    if kind == "one image":
        return own * (np.arange(n) == 3)[:, None]
    return own


def by_lapack(rows, target, truncate):
    """The model of a target by an SVD of its references."""
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    kept = vectors[:truncate][values[:truncate] > 1e-7 * max(values[0], 1e-300)]
    return kept.T @ (kept @ target)


@pytest.mark.parametrize("kind", ["noise", "graded", "of rank 5", "nothing", "one image"])
@pytest.mark.parametrize("n", [13, 30])
def test_models_equal_those_of_an_svd(kind, n):
    rng = np.random.default_rng(n)
    references, targets = images(kind, n, rng), rng.normal(size=(LANES + 3, 80))
    used = rng.random((len(targets), n)) > 0.2
    used[1] = False
    products, inner = references @ references.T, targets @ references.T
    factors = np.zeros((len(TRUNCATIONS), *used.shape))
    good = leading_coefficients(products, inner, used, TRUNCATIONS, TOLERANCE, factors)
    assert good.all()
    assert_array_equal(factors[:, ~used], 0.0)
    for t, target in enumerate(targets):
        rows = references[used[t]]
        for k, own in zip(TRUNCATIONS, factors[:, t, used[t]], strict=True):
            expected = by_lapack(rows, target, k) if len(rows) else np.zeros(80)
            assert_allclose(own @ rows, expected, atol=1e-7 if kind == "graded" else 1e-10)
    alone = np.zeros_like(factors)
    for t in range(len(targets)):
        one = slice(t, t + 1)
        out = np.zeros((len(TRUNCATIONS), 1, n))
        leading_coefficients(products, inner[one], used[one], TRUNCATIONS, TOLERANCE, out)
        alone[:, one] = out
    assert_array_equal(alone, factors)


def test_equal_eigenvalues_are_left_to_lapack():
    """Vectors of a cluster cannot be told apart: its targets are flagged, and done otherwise."""
    n, rng = 24, np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(n, n)))[0]
    products = (vectors * np.repeat([3.0, 1.0, 0.1], 8)) @ vectors.T
    inner, used = rng.normal(size=(2, n)), np.ones((2, n), dtype=bool)
    used[1, 0] = False
    out = np.zeros((1, 2, n))
    good = leading_coefficients(products, inner, used, np.array([8]), TOLERANCE, out)
    assert not good[0]
    zeros, ones = np.zeros((1, n)), np.ones((1, n))
    sums = Sums(zeros, ones, products[None], zeros[:, :2], inner[None], np.ones(1))
    factors, _ = coefficients(sums, used[None], [8], np.zeros((n, 1)), None, {})
    assert_allclose(
        factors[0][0, 0], vectors[:, :8] @ (vectors[:, :8].T @ inner[0]) / 3, atol=1e-12
    )
