"""Flags of models that come mostly from bad pixels: against a sum pixel by pixel."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gpucoron.ops.dq import DO_NOT_USE, FLUX_ESTIMATED
from gpucoron.ops.zones import make_zones
from gpucoron.steps.model_flags import estimated_models
from tests.helpers.scenes import read_only

SHAPE = (13, 17)


@pytest.mark.parametrize("zoned", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_models_of_flagged_references_are_flagged(seed, zoned):
    rng = np.random.default_rng(seed)
    zones = make_zones(SHAPE, (8.2, 6.1), annuli=2, subsections=2, owa=6) if zoned else None
    shape = (len(zones), 3, 5) if zoned else (3, 5)
    coefficients = rng.normal(size=shape)
    coefficients[..., 2, :] = 0.0  # an integration without pixels
    bits = np.array([0, 4, DO_NOT_USE, DO_NOT_USE | FLUX_ESTIMATED], np.uint32)
    dq = rng.choice(bits, (5, *SHAPE))
    found = estimated_models(*read_only(coefficients, dq), zones)
    for i, y, x in np.ndindex(found.shape):
        rows = coefficients
        if zoned:
            if zones.labels[y, x] < 0:
                assert not found[i, y, x]
                continue
            rows = coefficients[zones.labels[y, x]]
        amounts = np.abs(rows[i])
        bad = sum(amounts[j] for j in range(5) if dq[j, y, x] & DO_NOT_USE)
        assert found[i, y, x] == (FLUX_ESTIMATED if bad > 0.5 * amounts.sum() else 0)
    assert_array_equal(found[2], 0)
    assert 0.1 < (found[:2] > 0).mean() < 0.9
