"""Hits in an exposure of one integration: images of a star at known places, with tracks added."""

import numpy as np
import pytest

from gpucoron.core.stack import IntegrationStack
from gpucoron.steps import Alignment
from tests.helpers.scenes import read_only, speckles

SHAPE, NOISE = (64, 60), 0.5
TRACK = (slice(20, 21), slice(22, 26))  # beside the core, where the star's light is a tenth of it


def stack(images):
    data = np.array(images, np.float32)
    dq = np.zeros(data.shape, np.uint32)
    return IntegrationStack(*read_only(data, np.full_like(data, NOISE), dq))


def observed(rng, places):
    return [speckles(SHAPE, place) + rng.normal(0, NOISE, SHAPE) for place in places]


@pytest.mark.parametrize("align", ["joint", "each"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hits_move_no_fit_of_an_only_image(align, seed, device):
    rng = np.random.default_rng(seed)
    places = rng.normal(0, 0.7, (5, 2))
    (own,), references = observed(rng, [(0.0, 0.0)]), stack(observed(rng, places))
    hit = own.copy()
    hit[TRACK] += 250.0
    plain, found, taken = (
        Alignment(device.put(stack([image])), device.put(references), np.ones(SHAPE), align=align)
        for image in (own, hit, hit)
    )
    with_hit = taken._fits._registration.fit(device.array(stack([hit]).data[0]))
    fits, clean = found.fit(0), plain.fit(0)
    away, moved = (
        np.stack([f[k][:5] - places[:, i] for i, k in enumerate("yx")]) for f in (fits, with_hit)
    )
    errors = np.stack([fits["y_err"], fits["x_err"]])
    assert (np.abs(away) < 4.5 * errors).all() and np.abs(moved).max() > 4 * np.abs(away).max()
    assert (errors >= np.stack([clean["y_err"], clean["x_err"]]) * (1 - 1e-3)).all()
    assert np.array_equal(device.get(found.science), device.get(taken.science))
    assert device.get(found.science)[0][TRACK] == pytest.approx(hit[TRACK], rel=1e-6)


def test_images_without_hits_stay_as_they_are(device):
    rng = np.random.default_rng(3)
    science, references = stack(observed(rng, [(0, 0)])), stack(observed(rng, [(0.4, -0.3)] * 3))
    plan = Alignment(device.put(science), device.put(references), np.ones(SHAPE))
    expected = plan._fits._registration.fit(plan.science[0])[:3]
    fits = plan.fit(0)
    for name in "xy":
        assert fits[name] == pytest.approx(expected[name], abs=1e-12)
        assert fits[f"{name}_err"] == pytest.approx(expected[f"{name}_err"], rel=2e-3)
