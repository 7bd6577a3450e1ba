"""Roll subtraction by its formula; noise of rolls that are references of each other."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from gpucoron.core.stack import IntegrationStack, PlaneSource
from gpucoron.errors import InputError
from gpucoron.steps import klip
from gpucoron.steps.psf_noise import ReferenceErrors, reference_noise
from gpucoron.steps.resample import resample
from gpucoron.steps.roll_subtraction import subtract_rolls
from tests.helpers.scenes import read_only, speckles

SHAPE = (40, 37)


def scene(seed, n=3, n_references=4):
    rng = np.random.default_rng(seed)
    star = 5 * speckles(SHAPE, (0.1, 0.2))
    data = (star + rng.normal(0, 1, (n, *SHAPE))).astype(np.float32)
    stack = IntegrationStack(*read_only(data, np.ones_like(data), np.zeros(data.shape, np.uint32)))
    return stack, read_only(star + rng.normal(0, 1, (n_references, *SHAPE))), rng


@pytest.mark.parametrize("per_integration", [False, True])
def test_the_mean_of_the_other_roll_is_subtracted(device, per_integration):
    stack, references, rng = scene(1)
    references = references.copy()
    references[2, 5, 5] = np.nan  # left out
    weight = rng.uniform(0, 1, SHAPE)
    missing = rng.uniform(size=stack.shape) < 0.05
    given = np.stack([references] * 3) if per_integration else references
    variances = rng.uniform(1, 2, (2, *SHAPE))
    errors = ReferenceErrors(device.array(variances), np.array([0, 0, 1, 1]), np.ones(SHAPE))
    errors = errors._replace(pixel=device.array(errors.pixel))
    rows = []
    out = subtract_rolls(
        *(device.put(stack), device.array(given)),
        weight=weight,
        errors=errors,
        coefficients=rows,
        missing=device.array(missing),
    )
    model = references[[0, 1, 3]].mean(axis=0)
    for k, image in enumerate(stack.data):
        left = image.astype(np.float64) - model
        weights = weight**2 * ~missing[k]
        left -= (left * weights).sum() / weights.sum()
        assert_allclose(device.get(out.data)[k], left, atol=1e-5)
    assert_allclose(device.get(rows[0]), [[1 / 3, 1 / 3, 0, 1 / 3]] * 3)
    expected = (2 * variances[0] + variances[1]) / 9
    assert_allclose(device.get(out.var_ref), [expected] * 3, rtol=1e-6)


def test_one_mode_of_equal_references_is_roll_subtraction():
    """K = 1 of references that are alike scales their mean; the star is in proportion to it."""
    stack, references, _ = scene(2)
    one = np.broadcast_to(references[0], (2, *SHAPE))
    target = stack.replace(data=np.float32(references[0] + 3.0)[None].repeat(3, axis=0))
    assert_allclose(subtract_rolls(target, one).data, klip(target, one, 1).data, atol=1e-5)
    with pytest.raises(InputError, match="none of 2 images is usable"):
        subtract_rolls(stack, np.full((2, *SHAPE), np.nan))
    with pytest.raises(InputError, match=r"expected \(nref, 40, 37\)"):
        subtract_rolls(stack, references[:, 1:])


# ---- the combined image of rolls that are subtracted from each other


def turned_map(shape, angle):
    """Pixel map of an image that is turned about its middle."""
    y, x = np.indices(shape) - (np.array(shape)[:, None, None] - 1) / 2
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    middle = (np.array(shape[::-1]) - 1) / 2
    return np.stack([c * x - s * y, s * x + c * y], axis=2) + middle


@pytest.mark.parametrize("seed, with_psf, angle", [(1, False, 40.0), (2, True, 25.0)])
def test_err_is_the_scatter_of_rolls_that_are_subtracted_from_each_other(seed, with_psf, angle):
    """Pure noise, 100 times: the scatter of each output pixel over ERR.

    Near the star, where the images of both rolls overlap, ERR may be too large, up to the root of
    what the pixels alone have, and is never too small.
    """
    rng, shape, n = np.random.default_rng(seed), (25, 25), {"a": 3, "b": 2}
    psf = 4 if with_psf else 0
    sources = [tuple(PlaneSource(e, i) for i in range(1, n[e] + 1)) for e in "ab"]
    stars = tuple(PlaneSource("psf", i) for i in range(1, psf + 1))
    of = [(*stars, *sources[1]), (*stars, *sources[0])]  # references of a, and of b
    rows = [rng.uniform(0.1, 0.5, (m, len(own))) for m, own in zip(n.values(), of, strict=True)]
    sigma = {"a": 1.0, "b": 1.4, "psf": 0.8}
    maps = [turned_map(shape, sign * angle / 2) for sign in (1, -1)]

    def combined(draw):
        noise = {s: draw(s.exposure) for own in (stars, *sources) for s in own}
        stacks = []
        for k, name in enumerate("ab"):
            references = np.array([noise[s] for s in of[k]])
            data = np.array([noise[s] for s in sources[k]])
            data = (data - np.tensordot(rows[k], references, 1)).astype(np.float32)
            groups = np.unique([s.exposure for s in of[k]], return_inverse=True)
            variances = np.array([np.full(shape, sigma[g] ** 2) for g in groups[0]])
            errors = ReferenceErrors(variances, groups[1], np.full(shape, sigma[name]))
            shared = reference_noise(rows[k], errors)._replace(sources=of[k])
            ones = np.ones(data.shape, dtype=np.float32)
            stacks.append(
                IntegrationStack(
                    *(data, sigma[name] * ones, np.zeros(data.shape, np.uint32)),
                    var_rnoise=np.full_like(ones, sigma[name] ** 2),
                    var_ref=0 * ones,
                    var_speckle=0 * ones,
                    reference_noise=shared,
                    sources=sources[k],
                )
            )
        return resample(
            *(stacks, maps, shape),
            weight_type="exptime",
            exposure_times=[1.0, 1.0],
            center=(12.0, 12.0),
        )

    images = [combined(lambda name: sigma[name] * rng.normal(size=shape)).data for _ in range(100)]
    err = combined(lambda name: np.zeros(shape)).err
    ratio = np.std(images, axis=0) / err
    y, x = np.indices(shape) - 12
    r = np.hypot(x, y)
    apart = 2 * r * np.sin(np.deg2rad(angle) / 2)  # of what is one pixel in both rolls
    inside = r < 10
    assert abs(np.median(ratio[inside & (apart > 2.5)]) - 1) < 0.03
    near = ratio[apart < 0.7]
    assert 0.3 < near.max() < 1.15
    between = ratio[inside & (apart > 0.7) & (apart < 2.5)]
    assert 0.93 < np.median(between) < 1.05
