import numpy as np
import pytest

from gpucoron.errors import InputError
from gpucoron.stack import IntegrationStack
from gpucoron.steps import klip
from tests import oracles
from tests.scenes import read_only, speckles

SHAPE = (30, 29)


def scene(n=3, nref=6):
    rng = np.random.default_rng(0)
    science = np.array([speckles(SHAPE, rng.normal(0, 0.1, 2)) for _ in range(n)], np.float32)
    refs = np.array([speckles(SHAPE, rng.normal(0, 0.2, 2)) + rng.normal(0, 1, SHAPE)
                     for _ in range(nref)])
    dq = np.zeros(science.shape, np.uint32)
    stack = IntegrationStack(*read_only(science, np.ones_like(science), dq))
    return stack, read_only(refs)


@pytest.mark.parametrize("truncate", [1, 4, 50])
def test_equals_the_oracle(truncate):
    stack, refs = scene()
    out = klip(stack, refs, truncate)
    for i in range(len(stack)):
        left, err = oracles.klip(stack.data[i].astype(float), refs, truncate)
        np.testing.assert_allclose(out.data[i], left, atol=1e-4)  # float32 of values up to 300
        np.testing.assert_allclose(out.err[i], err, atol=1e-5)
    assert out.data.dtype == out.err.dtype == np.float32
    assert out.dq is stack.dq


def test_shared_references_equal_the_same_ones_repeated():
    stack, refs = scene()
    once = klip(stack, refs, 3)
    each = klip(stack, np.stack([refs] * 3), 3)
    np.testing.assert_allclose(once.data, each.data, atol=1e-5)
    np.testing.assert_allclose(once.err, each.err, atol=1e-6)


def test_one_unusable_reference_changes_nothing():
    stack, refs = scene()
    with_nan = np.concatenate([refs, np.full((1, *SHAPE), np.nan)])
    np.testing.assert_array_equal(klip(stack, refs, 3).data, klip(stack, with_nan, 3).data)


def test_a_planet_keeps_its_place():
    stack, refs = scene()
    data = stack.data.copy()
    data[:, 20, 8] += 500
    out = klip(stack.replace(data=data), refs, 3).data
    assert all(np.unravel_index(np.argmax(d), SHAPE) == (20, 8) for d in out)


def test_errors():
    stack, refs = scene()
    with pytest.raises(InputError, match=r"references have shape \(6, 3, 3\)"):
        klip(stack, np.zeros((6, 3, 3)))
    with pytest.raises(InputError, match="references for 2 integrations, but there are 3"):
        klip(stack, np.stack([refs] * 2))
    with pytest.raises(InputError, match="none of 6 reference images is usable"):
        klip(stack, np.full_like(refs, np.nan))


def test_one_reference_is_scaled_and_subtracted():
    stack, refs = scene()
    out = klip(stack, refs[:1], 50)
    reference = refs[0] - refs[0].mean()
    for target, left in zip(stack.data.astype(float), out.data, strict=True):
        target = target - target.mean()
        scale = (target * reference).sum() / (reference**2).sum()
        np.testing.assert_allclose(left, target - scale * reference, atol=1e-4)
    assert (out.err == 0).all()


@pytest.mark.parametrize("own", [False, True])
def test_several_truncations_come_as_a_list(own):
    stack, refs = scene()
    refs = np.stack([refs] * len(stack)) if own else refs
    several = klip(stack, refs, [1, 3, 50])
    for truncate, out in zip([1, 3, 50], several, strict=True):
        one = klip(stack, refs, truncate)
        np.testing.assert_array_equal(out.data, one.data)
        np.testing.assert_array_equal(out.err, one.err)
