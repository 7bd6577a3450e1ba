"""Ranking of references: correlation by numpy, shares, and a source that is in one exposure."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from gpucoron.core.stack import PlaneSource
from gpucoron.steps.reference_ranking import LIKELY_SOURCE, rank_references, with_shares
from tests.helpers.scenes import read_only, speckles

SHAPE, CENTER = (70, 64), (31.0, 34.0)
SOURCES = [PlaneSource(f"e{k // 2}", k % 2 + 1) for k in range(10)]


def scene(seed):
    """Five exposures of two images each: two speckle patterns in different proportions."""
    rng = np.random.default_rng(seed)
    one, other = (20 * speckles(SHAPE, place) for place in ((0.1, 0.2), (0.3, -0.2)))
    images = [one + (k // 2) * 0.2 * other + rng.normal(0, 1, SHAPE) for k in range(10)]
    target = one + 0.5 * other + rng.normal(0, 1, (3, *SHAPE))
    return read_only(target), np.array(images)


def ranked(device, targets, references, **options):
    arrays = device.array(targets), device.array(references)
    return rank_references(*arrays, SOURCES, CENTER, truncate=4, **options)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("owner, x, y", [(3, 45, 20), (0, 15, 55)])
def test_a_source_in_one_exposure_is_found(device, seed, owner, x, y):
    targets, references = scene(seed)
    clean = ranked(device, targets, references)
    assert (clean["source"] < LIKELY_SOURCE).all()
    yy, xx = np.indices(SHAPE)
    own = [source.exposure == f"e{owner}" for source in SOURCES]
    references[own] += 25 * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / 2 / 1.2**2)
    table = ranked(device, targets, references)
    found = table[table["source"] > LIKELY_SOURCE]
    assert list(found["exposure"]) == [f"e{owner}"]
    assert_allclose([found["x"][0], found["y"][0]], [x + 1, y + 1], atol=1.5)


def test_the_order_is_that_of_correlation(device):
    targets, references = scene(3)
    weight = np.ones(SHAPE)
    weight[:20] = 0
    references[9, 5, 5] = np.nan  # left out
    table = ranked(device, targets, references, weight=weight)
    means = [
        references[k : k + 2].mean(axis=0) if k < 8 else references[8] for k in range(0, 10, 2)
    ]
    target = targets.mean(axis=0)
    naive = [np.corrcoef(target[20:].ravel(), m[20:].ravel())[0, 1] for m in means]
    best = np.argsort(naive)[::-1]
    assert list(table["exposure"]) == [f"e{k}" for k in best]
    assert_allclose(table["correlation"], np.array(naive)[best], rtol=1e-9)
    assert list(table["integrations"]) == [1 if k == 4 else 2 for k in best]
    rows = np.arange(30.0).reshape(3, 10)
    shares = with_shares(table, SOURCES, rows)
    means = rows.mean(axis=0).reshape(5, 2).sum(axis=1)
    assert_allclose(shares["share"], (means / means.sum())[best])
    alone = rank_references(targets, references[:2], SOURCES[:2], CENTER, truncate=1)
    assert np.isnan(alone["source"]).all() and np.isfinite(alone["correlation"]).all()
