"""Sources injected by inner products equal a new KLIP with the sources in the references."""

import numpy as np
import pytest

from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.eigen import KLBasis
from gpucoron.ops.gram_injection import GramInjection

SHAPE = (44, 50)
GROUPS = np.repeat([0, 1, -1], [4, 3, 8])  # two rolls, and references of another star


def case(seed):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(15, *SHAPE)).cumsum(axis=1).cumsum(axis=2)
    images = images / images.std() + 0.1 * rng.normal(size=images.shape)
    stamps = rng.random((3, 2, 9, 9)) * [[[[0.1]]], [[[1.0]]], [[[30.0]]]]
    corners = np.array([[[20, 30], [22, 26]], [[-3, 44], [0, 40]], [[15, 12], [17, 9]]])
    return images, stamps, corners


def allowed_of(mode):
    others = GROUPS[:7, None] != GROUPS[None]
    return others & (GROUPS >= 0) if mode == "adi" else others


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("mode", ["adi", "adi+rdi"])
@pytest.mark.parametrize("zone", [False, True])
def test_as_a_new_klip(seed, mode, zone):
    images, stamps, corners = case(seed)
    weight = None
    if zone:
        y, x = np.indices(SHAPE)
        weight = (abs(np.hypot(y - 22, x - 25) - 11) < 8).astype(float)
    allowed, size = allowed_of(mode), 9
    for truncate in (0, 2, 5):
        again = GramInjection(images, allowed, GROUPS, truncate, weight)
        got = again.residuals(stamps, corners, corners, size)
        for m in range(len(stamps)):
            added = np.pad(images, ((0, 0), (9, 9), (9, 9)))
            for image, group in zip(added, GROUPS, strict=True):
                if group >= 0:
                    y, x = corners[m, group] + 9
                    image[y : y + 9, x : x + 9] += stamps[m, group]
            added = added[:, 9:-9, 9:-9]
            for t in range(len(allowed)):
                basis = KLBasis(added[allowed[t]], weight=weight)
                left = basis.subtract(added[t : t + 1], truncate)[0]
                left = np.pad(left, 9, constant_values=np.nan)
                y, x = corners[m, GROUPS[t]] + 9
                expected = left[y : y + size, x : x + size]
                np.testing.assert_allclose(got[m, t], expected, rtol=0, atol=1e-9)


def test_bad_input():
    images, stamps, corners = case(3)
    allowed = allowed_of("adi")
    for error, text, arguments in (
        (InputError, "expected", (images[0], allowed, GROUPS, 2)),
        (InputError, "groups", (images, allowed, GROUPS[:3], 2)),
        (InputError, "not finite", (np.where(images > 2, np.nan, images), allowed, GROUPS, 2)),
        (InputError, "no references", (images, allowed & False, GROUPS, 2)),
        (ParameterError, "truncate is -1", (images, allowed, GROUPS, -1)),
    ):
        with pytest.raises(error, match=text):
            GramInjection(*arguments)
    plan = GramInjection(images, allowed, GROUPS, 2)
    with pytest.raises(InputError, match="stamps have shape"):
        plan.residuals(stamps[:, :1], corners, corners, 9)
