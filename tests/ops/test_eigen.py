import numpy as np
import pytest

from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.eigen import KLBasis
from tests import oracles, tolerances
from tests.scenes import read_only, speckles


def references(n=8, shape=(31, 28), seed=0):
    rng = np.random.default_rng(seed)
    images = [speckles(shape, rng.normal(0, 0.3, 2), brightness=rng.uniform(0.8, 1.2))
              + rng.normal(0, 2, shape) for _ in range(n)]
    return read_only(np.array(images))


@pytest.mark.parametrize("truncate", [0, 1, 3, 7, 8, 50])
def test_equals_an_svd_of_the_pixels(truncate):
    refs = references()
    target = speckles((31, 28), (0.1, -0.2)) + 7.0
    left, err = oracles.klip(target, refs, truncate)
    basis = KLBasis(refs)
    np.testing.assert_allclose(
        basis.subtract(target[None], truncate)[0], left, atol=tolerances.KLIP_ABS)
    np.testing.assert_allclose(basis.scatter(truncate), err, atol=tolerances.KLIP_ABS)


def test_vectors_are_orthonormal_and_ordered():
    refs = references()
    basis = KLBasis(refs)
    flat = refs.reshape(8, -1) - refs.reshape(8, -1).mean(axis=1, keepdims=True)
    kl = basis.eigenvectors.T @ flat / np.sqrt(basis.eigenvalues[:, None] * (flat.shape[1] - 1))
    np.testing.assert_allclose(kl @ kl.T, np.eye(8), atol=1e-10)
    assert (np.diff(basis.eigenvalues) < 0).all()
    np.testing.assert_allclose(basis.eigenvalues, np.linalg.eigvalsh(np.cov(flat))[::-1], rtol=1e-9)


def test_a_constant_background_changes_nothing():
    refs, target = references(), speckles((31, 28), seed=3)[None]
    a = KLBasis(refs).subtract(target, 4)
    b = KLBasis(refs + 1000.0).subtract(target - 500.0, 4)
    np.testing.assert_allclose(a, b, atol=1e-8)


def test_vectors_at_rounding_level_are_dropped():
    refs = references()
    doubled = np.concatenate([refs, refs[:3], 2 * refs[:1] + 5])
    basis = KLBasis(doubled)
    assert basis.rank == 8
    target = speckles((31, 28), seed=3)[None]
    np.testing.assert_allclose(
        basis.subtract(target, 50), KLBasis(refs).subtract(target, 50), atol=1e-7)
    assert (basis.scatter(50) == 0).all()


def test_bad_target_pixels_take_no_part():
    refs, target = references(), speckles((31, 28), seed=3)[None].copy()
    target[0, 4, 4] = np.nan
    out = KLBasis(refs).subtract(target, 5)
    assert np.isnan(out[0, 4, 4]) and np.isfinite(np.delete(out.ravel(), 4 * 28 + 4)).all()


def test_errors():
    with pytest.raises(InputError, match="at least one reference image"):
        KLBasis(np.zeros((0, 4, 4)))
    with pytest.raises(InputError, match="constant"):
        KLBasis(np.ones((3, 4, 4)))
    refs = references().copy()
    refs[2, 0, 0] = np.inf
    with pytest.raises(InputError, match="reference 3 of 8 is not finite"):
        KLBasis(refs)
    with pytest.raises(ParameterError, match="truncate is -1"):
        KLBasis(references()).subtract(np.zeros((1, 31, 28)), -1)
    with pytest.raises(InputError, match="targets have shape"):
        KLBasis(references()).subtract(np.zeros((1, 3, 3)), 1)


def test_several_truncations_equal_one_at_a_time():
    basis, target = KLBasis(references()), speckles((31, 28), seed=3)[None]
    wanted = [0, 2, 3, 6, 8, 30]
    for k, left, err in zip(wanted, basis.subtract(target, wanted), basis.scatter(wanted),
                            strict=True):
        np.testing.assert_array_equal(left, basis.subtract(target, k))
        np.testing.assert_array_equal(err, basis.scatter(k))
