import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpucoron.errors import DeviceError, InputError, ParameterError
from gpucoron.ops.cuda import cusolver as _cusolver
from gpucoron.ops.cuda import eigen as _eigen_cuda
from gpucoron.ops.eigen import KLBasis, klip_many, symmetric_eigen
from tests.helpers import oracles, tolerances
from tests.helpers.scenes import read_only, speckles

on_gpus = pytest.mark.parametrize(
    "device", ["host-forward", pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True
)


def references(n=8, shape=(31, 28), seed=0):
    rng = np.random.default_rng(seed)
    images = [
        speckles(shape, rng.normal(0, 0.3, 2), brightness=rng.uniform(0.8, 1.2))
        + rng.normal(0, 2, shape)
        for _ in range(n)
    ]
    return read_only(np.array(images))


def assert_close(device, result, expected):
    """The goal of every GPU result: rms of the difference within 1e-8 of the rms."""
    result = device.get(result)
    assert result.dtype == np.float64
    assert_array_equal(np.isnan(result), np.isnan(expected))
    difference = np.sqrt(np.nanmean((result - expected) ** 2))
    assert difference <= tolerances.KLIP_RMS * np.sqrt(np.nanmean(expected**2))


@pytest.mark.parametrize("truncate", [0, 1, 3, 7, 8, 50])
def test_equals_an_svd_of_the_pixels(device, truncate):
    refs = references()
    target = speckles((31, 28), (0.1, -0.2)) + 7.0
    left, err = oracles.klip(target, refs, truncate)
    basis = KLBasis(device.array(refs))
    assert_allclose(
        device.get(basis.subtract(device.array(target[None]), truncate))[0],
        left,
        atol=tolerances.KLIP_ABS,
    )
    assert_allclose(device.get(basis.residual_std(truncate)), err, atol=tolerances.KLIP_ABS)


def test_vectors_are_orthonormal_and_ordered(device):
    refs = references()
    basis = KLBasis(device.array(refs))
    values, vectors = device.get(basis.eigenvalues), device.get(basis.eigenvectors)
    flat = refs.reshape(8, -1) - refs.reshape(8, -1).mean(axis=1, keepdims=True)
    kl = vectors.T @ flat / np.sqrt(values[:, None] * (flat.shape[1] - 1))
    assert_allclose(kl @ kl.T, np.eye(8), atol=1e-10)
    assert (np.diff(values) < 0).all()
    assert_allclose(values, np.linalg.eigvalsh(np.cov(flat))[::-1], rtol=1e-9)


def test_a_constant_background_changes_nothing(device):
    refs, target = references(), speckles((31, 28), seed=3)[None]
    a, b = (
        device.get(KLBasis(device.array(r)).subtract(device.array(t), 4))
        for r, t in [(refs, target), (refs + 1000.0, target - 500.0)]
    )
    assert_allclose(a, b, atol=1e-8)


def test_vectors_at_rounding_level_are_dropped(device):
    refs = references()
    doubled = np.concatenate([refs, refs[:3], 2 * refs[:1] + 5, np.ones_like(refs[:2])])
    basis = KLBasis(device.array(doubled))
    assert basis.rank == 8
    target = device.array(speckles((31, 28), seed=3)[None])
    assert_allclose(
        device.get(basis.subtract(target, 50)),
        device.get(KLBasis(device.array(refs)).subtract(target, 50)),
        atol=1e-7,
    )
    assert (device.get(basis.residual_std(50)) == 0).all()
    assert device.get(basis.eigenvectors).shape == (14, 8)


def test_bad_target_pixels_take_no_part(device):
    refs, target = references(), speckles((31, 28), seed=3)[None].copy()
    target[0, 4, 4] = np.nan
    out = device.get(KLBasis(device.array(refs)).subtract(device.array(target), 5))
    assert np.isnan(out[0, 4, 4]) and np.isfinite(np.delete(out.ravel(), 4 * 28 + 4)).all()
    assert_close(device, device.array(out), KLBasis(refs).subtract(target, 5))


def test_errors(device):
    with pytest.raises(InputError, match="at least one reference image"):
        KLBasis(device.array(np.zeros((0, 4, 4))))
    with pytest.raises(InputError, match="constant"):
        KLBasis(device.array(np.ones((3, 4, 4))))
    refs = references().copy()
    refs[2, 0, 0] = np.inf
    with pytest.raises(InputError, match="reference 3 of 8 is not finite"):
        KLBasis(device.array(refs))
    basis = KLBasis(device.array(references()))
    with pytest.raises(ParameterError, match="truncate is -1"):
        basis.subtract(device.array(np.zeros((1, 31, 28))), -1)
    with pytest.raises(InputError, match="targets have shape"):
        basis.subtract(device.array(np.zeros((1, 3, 3))), 1)
    if device.is_gpu:
        with pytest.raises(TypeError, match="mixed"):
            basis.subtract(np.zeros((1, 31, 28)), 1)


def test_several_truncations_equal_one_at_a_time(device):
    basis = KLBasis(device.array(references()))
    target = device.array(speckles((31, 28), seed=3)[None])
    wanted = [30, 0, 2, 3, 6, 8, 2]
    for k, left, err in zip(
        wanted, basis.subtract(target, wanted), basis.residual_std(wanted), strict=True
    ):
        assert_allclose(device.get(left), device.get(basis.subtract(target, k)), rtol=0, atol=1e-11)
        assert_array_equal(device.get(err), device.get(basis.residual_std(k)))


@pytest.mark.parametrize("n_targets", [1, 2, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_number_of_targets_in_either_precision(device, n_targets, dtype):
    shape = (7, 19)
    refs = references(5, shape).astype(dtype)
    targets = references(n_targets, shape, seed=1).astype(dtype)
    basis, oracle = KLBasis(device.array(refs)), KLBasis(refs)
    for left, expected in zip(
        basis.subtract(device.array(targets), [2, 4]), oracle.subtract(targets, [2, 4]), strict=True
    ):
        assert_close(device, left, expected)


# ---------------------------------------------------------------- many sets at once


def sets(n, nref, shape, seed=0):
    return (
        np.array([references(nref, shape, seed + k) for k in range(n)]),
        references(n, shape, seed + 100) + 50.0,
    )


@pytest.mark.parametrize(
    "n, nref, shape, wanted",
    [
        (3, 6, (13, 11), [2]),
        (2, 1, (5, 17), [0, 1]),
        (2, 2, (9, 8), [1, 2, 7]),
        (1, 70, (66, 65), [5, 35, 34, 69, 0]),  # two tiles of references and of modes, two segments
        (2, 34, (8, 9), [3, 17, 18, 60]),
    ],
)
@pytest.mark.slow
def test_many_equal_one_at_a_time(device, n, nref, shape, wanted):
    refs, targets = sets(n, nref, shape)
    residuals, residual_stds = klip_many(device.array(refs), device.array(targets), wanted)
    for k, own in enumerate(refs):
        basis = KLBasis(own)
        for left, expected in zip(
            residuals, basis.subtract(targets[k : k + 1], wanted), strict=True
        ):
            assert_close(device, left[k], expected[0])
        for plane, expected in zip(residual_stds, basis.residual_std(wanted), strict=True):
            assert_close(device, plane[k], expected)


def test_what_is_not_usable_is_left_out(device):
    refs, targets = sets(3, 6, (10, 12))
    refs, targets = refs.copy(), targets.copy()
    refs[0, 2] = np.nan
    refs[1, 0, 3, 3], refs[1, 5, 0, 0] = np.inf, np.nan
    refs[2], targets[2] = np.nan, np.nan
    targets[1, 4, 4] = np.nan
    left, err = klip_many(*map(device.array, read_only(refs, targets)), 2)
    for k, usable in enumerate([[0, 1, 3, 4, 5], [1, 2, 3, 4]]):
        basis = KLBasis(refs[k][usable])
        assert_close(device, left[k], basis.subtract(targets[k : k + 1], 2)[0])
        assert_close(device, err[k], basis.residual_std(2))
    assert np.isnan(device.get(left[2])).all() and np.isnan(device.get(err[2])).all()


def test_errors_of_many(device):
    refs, targets = (np.array(a) for a in sets(2, 3, (5, 6)))
    with pytest.raises(InputError, match=r"references have shape \(2, 3, 5, 6\), targets \(1, 5"):
        klip_many(device.array(refs), device.array(targets[:1]), 2)
    with pytest.raises(ParameterError, match="truncate is -2"):
        klip_many(device.array(refs), device.array(targets), [3, -2])
    refs[1] = 4.0
    with pytest.raises(InputError, match="are all constant"):
        klip_many(device.array(refs), device.array(targets), 2)
    refs[1] = np.nan
    with pytest.raises(InputError, match="none of 3 reference images is usable for target 2"):
        klip_many(device.array(refs), device.array(targets), 2)


# ---------------------------------------------------------------- eigen-decomposition


def matrices():
    rng = np.random.default_rng(2)
    wide = rng.normal(size=(20, 50))
    few, zero = wide.copy(), wide.copy()
    few[5:] = few[np.arange(15) % 5]
    zero[[0, 1, 11, 19]] = 0
    random = rng.normal(size=(20, 20))
    graded = np.linalg.qr(random)[0] * np.logspace(0, -30, 20)
    chain = np.diag(np.ones(19), 1)
    return {
        "covariance": wide @ wide.T,
        "rank five": few @ few.T,
        "zero references": zero @ zero.T,
        "zero": np.zeros((20, 20)),
        "one": np.ones((20, 20)),
        "unit": np.eye(20),
        "diagonal": np.diag(rng.normal(size=20)),
        "indefinite": random,
        "graded": graded @ graded.T,
        "pairs": np.diag(abs(np.arange(20) - 9.5)) + chain,
        "no diagonal": chain,
        "large": random * 1e300,
        "small": random * 1e-300,
    }


def assert_decomposed(matrix, values, vectors):
    n, size = len(matrix), max(abs(values).max(), np.finfo(float).tiny)
    bound = 8 * n * np.finfo(float).eps
    assert_allclose(vectors @ vectors.T, np.eye(n), rtol=0, atol=bound)
    assert_allclose(
        vectors @ (matrix / size), (values / size)[:, None] * vectors, rtol=0, atol=bound
    )
    assert (np.diff(values) <= 0).all()
    assert_allclose(values / size, np.linalg.eigvalsh(matrix / size)[::-1], rtol=0, atol=bound)


def test_difficult_matrices(device):
    batch = np.array([(m + m.T) / 2 for m in matrices().values()])
    values, vectors = map(device.get, symmetric_eigen(device.array(read_only(batch))))
    for matrix, value, vector in zip(batch, values, vectors, strict=True):
        assert_decomposed(matrix, value, vector)


@pytest.mark.parametrize("n", [1, 2, 3, 31, 32, 33, 65])
def test_sizes(device, n):
    random = np.random.default_rng(n).normal(size=(2, n, n))
    batch = random @ random.transpose(0, 2, 1)
    values, vectors = map(device.get, symmetric_eigen(device.array(batch)))
    for matrix, value, vector in zip(batch, values, vectors, strict=True):
        assert_decomposed(matrix, value, vector)


@on_gpus
@pytest.mark.parametrize("fault", ["vector", "value", "nan"])
def test_what_fails_its_check_is_done_again(device, monkeypatch, fault):
    def spoilt(matrices):
        values, vectors = right(matrices)
        if fault == "vector":
            vectors[1, -4] += 1e-9 * vectors[1, -5]
        else:
            values[1, -3] *= np.nan if fault == "nan" else 1 + 1e-9
        return values, vectors

    random = np.random.default_rng(0).normal(size=(3, 9, 9))
    batch, right, again = random @ random.transpose(0, 2, 1), _eigen_cuda.eigh_batch, []
    monkeypatch.setattr(_eigen_cuda, "eigh_batch", spoilt)
    syevd = _eigen_cuda._syevd
    monkeypatch.setattr(_eigen_cuda, "_syevd", lambda m: again.append(1) or syevd(m))
    values, vectors = map(device.get, symmetric_eigen(device.array(batch)))
    assert len(again) == 1
    for matrix, value, vector in zip(batch, values, vectors, strict=True):
        assert_decomposed(matrix, value, vector)
    refs, targets = sets(2, 9, (5, 6))
    left, err = klip_many(device.array(refs), device.array(targets), 3)
    assert len(again) == 2
    expected = KLBasis(refs[1])
    assert_close(device, left[1], expected.subtract(targets[1:], 3)[0])
    assert_close(device, err[1], expected.residual_std(3))


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_the_library_decomposes_all_at_once_and_well(device, monkeypatch):
    if _cusolver._library(device.cupy) is None:
        pytest.skip("cuSOLVER is older than CUDA 12.6 and has no XsyevBatched")
    monkeypatch.setattr(_eigen_cuda, "_syevd", None)  # nothing needs repair
    for n in (5, 36, 64, 180):
        random = np.random.default_rng(n).normal(size=(20, n, 4 * n))
        random *= np.geomspace(1e4, 1, n)[:, None]
        batch = random @ random.transpose(0, 2, 1)
        values, vectors = map(device.get, symmetric_eigen(device.array(batch)))
        for matrix, value, vector in zip(batch, values, vectors, strict=True):
            assert_decomposed(matrix, value, vector)


@on_gpus
def test_what_fails_twice_is_an_error(device):
    bad = np.array([np.eye(3), np.full((3, 3), np.nan)])
    with pytest.raises((DeviceError, np.linalg.LinAlgError)) as caught:
        symmetric_eigen(device.array(bad))
    if caught.type is DeviceError:  # and not what the library of last resort says
        assert "matrix 2 fails" in str(caught.value)


@on_gpus
def test_without_the_library_they_go_one_by_one(device, monkeypatch):
    monkeypatch.setattr(_cusolver, "_library", lambda cp: None)
    random = np.random.default_rng(0).normal(size=(3, 9, 9))
    batch = random + random.transpose(0, 2, 1)
    values, vectors = map(device.get, symmetric_eigen(device.array(batch)))
    for matrix, value, vector in zip(batch, values, vectors, strict=True):
        assert_decomposed(matrix, value, vector)


def test_errors_of_matrices(device):
    with pytest.raises(InputError, match="matrices have shape"):
        symmetric_eigen(device.array(np.zeros((2, 3, 4))))
    with pytest.raises(InputError, match="dtype float32"):
        symmetric_eigen(device.array(np.zeros((2, 3, 3), np.float32)))


def tiles(n, pixels, shift=0):
    """References and targets with bad pixels; `shift` puts them beside a multiple of 16 bytes."""
    rng = np.random.default_rng(1000 * n + pixels)
    room = np.empty(2 * n * pixels + shift)
    refs = room[shift:].reshape(2, n, pixels)
    refs[:] = rng.normal(50, 3, refs.shape)
    if n > 2:
        refs[0, n // 2, pixels // 3] = np.nan
    targets = rng.normal(30, 3, (2, 2, pixels))
    if pixels > 1:
        targets[:, 0, pixels // 2] = np.nan
    return room, refs, targets


# sides of a tile, of a quarter and of a step; a segment; odd and even, in and out of alignment
@on_gpus
@pytest.mark.parametrize(
    "n, pixels, shift",
    [
        (1, 1, 0),
        (2, 16, 0),
        (2, 18, 1),
        (5, 4110, 0),
        (4, 4097, 0),
        (33, 31, 0),
        (64, 48, 0),
        (66, 80, 0),
        (66, 130, 1),
        (67, 130, 0),
        (130, 66, 0),
    ],
)
def test_products_of_tiles(device, n, pixels, shift):
    room, refs, targets = tiles(n, pixels, shift)
    there = device.array(room)[shift:].reshape(refs.shape)
    bases = _eigen_cuda.Bases(there, 1e-13, device.array(targets))
    usable = np.isfinite(refs).all(axis=2, keepdims=True)
    centred = np.where(usable, refs - refs.mean(axis=2, keepdims=True), 0.0)
    expected = centred @ centred.transpose(0, 2, 1)
    got = device.get(_eigen_cuda.covariance(there, bases.means))
    assert_allclose(got, expected, rtol=0, atol=1e-13 * abs(expected).max())
    wanted = np.unique([0, 1, n // 2, n - 1, n])[::-1].copy()
    left, err = bases.residuals_and_std(wanted)
    vectors, values = device.get(bases.vectors), device.get(bases.sums)
    modes = vectors @ centred
    targets = targets - np.nanmean(targets, axis=2, keepdims=True)
    filled = np.nan_to_num(targets)
    for k, many in enumerate(wanted):
        for f, rank in enumerate(bases.ranks):
            kept = slice(0, min(many, rank))
            model = filled[f] @ modes[f, kept].T / values[f, kept] @ modes[f, kept]
            assert_allclose(device.get(left[k])[f], targets[f] - model, atol=1e-9)
            rest = vectors[f, kept.stop : rank].T @ modes[f, kept.stop : rank]
            rest = rest[usable[f, :, 0]]
            assert_allclose(device.get(err[k])[f], rest.std(axis=0), atol=2e-7)
