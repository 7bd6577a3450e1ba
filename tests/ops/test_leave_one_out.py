"""Leaving out each exposure: predictions against an SVD of the others, sums against products."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from gpucoron.ops.leave_one_out import combine, exposure_means, prediction_errors
from tests.helpers import oracles
from tests.helpers.scenes import read_only, speckles

SHAPE = (26, 23)
GROUPS = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4])


def images(seed):
    rng = np.random.default_rng(seed)
    found = [speckles(SHAPE, rng.normal(0, 0.3, 2)) + rng.normal(0, 1, SHAPE) for _ in GROUPS]
    return read_only(np.array(found) + 9.0)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_predictions_are_those_of_klip_with_the_others(device, seed, weighted):
    given = images(seed)
    weight = np.random.default_rng(seed).uniform(0, 1, SHAPE) if weighted else None
    means = device.get(exposure_means(device.array(given), GROUPS))
    expected = np.array([given[GROUPS == g].mean(axis=0) for g in range(5)])
    expected -= expected.mean(axis=(1, 2), keepdims=True)
    assert_allclose(means, expected, atol=1e-12)
    if weighted:  # the oracle subtracts weighted means
        flat = means.reshape(5, -1)
        means = (flat - np.average(flat, axis=1, weights=weight.ravel() ** 2)[:, None]).reshape(
            means.shape
        )
    truncations = [0, 1, 3, 50]
    rows = prediction_errors(device.array(means), truncations, weight)
    for truncate, left_out in zip(truncations, rows, strict=True):
        left = device.get(combine(left_out, device.array(means)))
        for e in range(5):
            others = np.delete(means, e, axis=0)
            wanted, _ = oracles.klip(means[e], others, truncate, weight)
            assert_allclose(left[e], wanted, atol=1e-6)
        square = device.get(combine(left_out, device.array(means), square=True))
        assert_allclose(square, (left**2).sum(axis=0), rtol=1e-9)
