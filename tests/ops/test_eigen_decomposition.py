"""Eigen-decompositions of many matrices, and the products of tiles that they are made of."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from gpucoron.errors import DeviceError, InputError
from gpucoron.ops.cuda import cusolver as _cusolver
from gpucoron.ops.cuda import eigen as _eigen_cuda
from gpucoron.ops.eigen import klip_many, symmetric_eigen
from tests.helpers.scenes import read_only
from tests.ops.test_eigen import assert_many_close, on_gpus, sets


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


def assert_all_decomposed(device, batch):
    for matrix, values, vectors in zip(batch, *device.call(symmetric_eigen, batch), strict=True):
        n, size = len(matrix), max(abs(values).max(), np.finfo(float).tiny)
        exact = {"rtol": 0, "atol": 8 * n * np.finfo(float).eps}
        scaled, matrix = (values / size)[:, None], matrix / size
        assert_allclose(vectors @ vectors.T, np.eye(n), **exact)
        assert_allclose(vectors @ matrix, scaled * vectors, **exact)
        assert (np.diff(values) <= 0).all()
        assert_allclose(scaled[:, 0], np.linalg.eigvalsh(matrix)[::-1], **exact)


def test_difficult_matrices(device):
    batch = np.array([(m + m.T) / 2 for m in matrices().values()])
    assert_all_decomposed(device, read_only(batch))


@pytest.mark.parametrize("n", [1, 2, 3, 31, 32, 33, 65])
def test_sizes(device, n):
    random = np.random.default_rng(n).normal(size=(2, n, n))
    assert_all_decomposed(device, random @ random.transpose(0, 2, 1))


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
    assert_all_decomposed(device, batch)
    assert len(again) == 1
    refs, targets = sets(2, 9, (5, 6))
    found = device.call(klip_many, refs, targets, [3])
    assert len(again) == 2
    assert_many_close(found, refs, targets, [3])


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_the_library_decomposes_all_at_once_and_well(device, monkeypatch):
    if _cusolver._library(device.cupy) is None:
        pytest.skip("cuSOLVER is older than CUDA 12.6 and has no XsyevBatched")
    monkeypatch.setattr(_eigen_cuda, "_syevd", None)  # nothing needs repair
    for n in (5, 36, 64, 180):
        random = np.random.default_rng(n).normal(size=(20, n, 4 * n))
        random *= np.geomspace(1e4, 1, n)[:, None]
        assert_all_decomposed(device, random @ random.transpose(0, 2, 1))


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
    assert_all_decomposed(device, random + random.transpose(0, 2, 1))


def test_errors_of_matrices(device):
    with pytest.raises(InputError, match="matrices have shape"):
        device.call(symmetric_eigen, np.zeros((2, 3, 4)))
    with pytest.raises(InputError, match="dtype float32"):
        device.call(symmetric_eigen, np.zeros((2, 3, 3), np.float32))


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
        *((1, 1, 0), (2, 16, 0), (2, 18, 1), (5, 4110, 0), (4, 4097, 0), (33, 31, 0)),
        *((64, 48, 0), (66, 80, 0), (66, 130, 1), (67, 130, 0), (130, 66, 0)),
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
    left, err, factors = bases.residuals_and_std(wanted)
    vectors, values = device.get(bases.vectors), device.get(bases.sums)
    modes = vectors @ centred
    targets = targets - np.nanmean(targets, axis=2, keepdims=True)
    filled = np.nan_to_num(targets)
    for k, many in enumerate(wanted):
        for f, rank in enumerate(bases.ranks):
            kept = slice(0, min(many, rank))
            model = filled[f] @ modes[f, kept].T / values[f, kept] @ modes[f, kept]
            assert_allclose(device.get(left[k])[f], targets[f] - model, atol=1e-9)
            assert_allclose(device.get(factors[k])[f] @ centred[f], model, atol=1e-9)
            rest = vectors[f, kept.stop : rank].T @ modes[f, kept.stop : rank]
            rest = rest[usable[f, :, 0]]
            assert_allclose(device.get(err[k])[f], rest.std(axis=0), atol=2e-7)
