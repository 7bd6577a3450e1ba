import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.eigen import KLBasis, klip_many
from gpucoron.ops.missing_pixels import rolled
from tests.helpers import device_fixture, oracles, tolerances
from tests.helpers.scenes import read_only, speckles

CPU = device_fixture.Cpu()
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


def assert_close(result, expected):
    """The goal of every GPU result: rms of the difference within 1e-8 of the rms."""
    assert result.dtype == np.float64
    assert_array_equal(np.isnan(result), np.isnan(expected))
    difference = np.sqrt(np.nanmean((result - expected) ** 2))
    assert difference <= tolerances.KLIP_RMS * np.sqrt(np.nanmean(expected**2))


def subtracted(device, refs, targets, truncate):
    """Residuals of targets, and the standard deviation of the references' own."""
    basis, targets = KLBasis(device.array(refs)), device.array(targets)
    return device.get((basis.subtract(targets, truncate), basis.residual_std(truncate)))


def assert_many_close(found, refs, targets, truncate):
    """Compare residuals and deviations with those of one set of references after another."""
    for k, own in enumerate(refs):
        usable = own[np.isfinite(own).all(axis=(1, 2))]
        expected = subtracted(CPU, usable, targets[k : k + 1], truncate)
        for planes, wanted in zip(found, expected, strict=True):
            for plane, one in zip(planes, wanted, strict=True):
                assert_close(plane[k : k + 1], one.reshape(1, *targets.shape[1:]))


@pytest.mark.parametrize("truncate", [0, 1, 3, 7, 8, 50])
def test_equals_an_svd_of_the_pixels(device, truncate):
    refs = references()
    target = speckles((31, 28), (0.1, -0.2)) + 7.0
    left, err = oracles.klip(target, refs, truncate)
    found = subtracted(device, refs, target[None], truncate)
    assert_allclose(found[0][0], left, atol=tolerances.KLIP_ABS)
    assert_allclose(found[1], err, atol=tolerances.KLIP_ABS)


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
    a, _ = subtracted(device, refs, target, 4)
    b, _ = subtracted(device, refs + 1000.0, target - 500.0, 4)
    assert_allclose(a, b, atol=1e-8)


def test_vectors_at_rounding_level_are_dropped(device):
    refs = references()
    doubled = np.concatenate([refs, refs[:3], 2 * refs[:1] + 5, np.ones_like(refs[:2])])
    basis = KLBasis(device.array(doubled))
    assert basis.rank == 8 and basis.eigenvectors.shape == (14, 8)
    target = speckles((31, 28), seed=3)[None]
    left, err = subtracted(device, doubled, target, 50)
    assert_allclose(left, subtracted(device, refs, target, 50)[0], atol=1e-7)
    assert (err == 0).all()


def hole(shape, seed):
    """Weights with a hole in them, and between 0 and 1 elsewhere with an odd seed."""
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0.2, 1, shape) if seed % 2 else np.ones(shape)
    weight[5:12, 6:15] = 0
    return read_only(weight)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("truncate", [0, 3, 7, 50])
def test_weights_equal_an_svd_of_weighted_pixels(device, truncate, seed):
    refs, weight = references(seed=seed), hole((31, 28), seed)
    target = speckles((31, 28), (0.1, -0.2)) + 7.0
    target[5:12, 6:15] += 400.0
    left, err = oracles.klip(target, refs, truncate, weight)
    one, factors = KLBasis(device.array(refs), weight=device.array(weight)), []
    assert_allclose(
        device.get(one.subtract(device.array(target[None]), truncate, factors))[0], left, atol=1e-9
    )
    means = np.average(refs.reshape(len(refs), -1), axis=1, weights=weight.ravel() ** 2)
    model = np.tensordot(device.get(factors[0])[0], refs - means[:, None, None], 1)
    model += np.average(target, weights=weight**2)
    assert_allclose(target - model, left, atol=1e-9)
    assert_allclose(device.get(one.residual_std(truncate)), err, atol=1e-9)
    unusable = np.full((1, 31, 28), np.nan)
    many = np.stack([np.concatenate([refs, unusable]), np.concatenate([unusable, refs[::-1]])])
    out = device.call(klip_many, many, np.stack([target] * 2), truncate, weight=weight)
    for plane, wanted in zip(out, (left, err), strict=True):
        assert_allclose(plane, np.stack([wanted] * 2), atol=1e-9)


@pytest.mark.parametrize("seed", [2, 3])
def test_all_vectors_with_weights_are_a_weighted_fit(device, seed):
    """What is hidden by weights moves nothing, and is modelled from what is not."""
    refs, weight = references(seed=seed), hole((31, 28), seed)
    target = speckles((31, 28), (0.1, -0.2), seed)
    columns = np.vstack([np.ones(weight.size), refs.reshape(len(refs), -1)])
    factors = np.linalg.lstsq((columns * weight.ravel()).T, (target * weight).ravel(), rcond=None)[
        0
    ]
    expected = target - (factors @ columns).reshape(target.shape)
    basis = KLBasis(device.array(refs), weight=device.array(weight))
    for hidden in (0.0, 1e4):
        seen = target + hidden * (weight == 0)
        left = device.get(basis.subtract(device.array(seen[None]), len(refs)))[0]
        assert_allclose(left, expected + hidden * (weight == 0), atol=1e-8)


def test_bad_target_pixels_take_no_part(device):
    refs, target = references(), speckles((31, 28), seed=3)[None].copy()
    target[0, 4, 4] = np.nan
    out, _ = subtracted(device, refs, target, 5)
    assert np.isnan(out[0, 4, 4]) and np.isfinite(np.delete(out.ravel(), 4 * 28 + 4)).all()
    assert_close(out, subtracted(CPU, refs, target, 5)[0])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_missing_target_pixels_are_least_squares_on_the_others(device, seed, weighted):
    """Whatever stands in them; together, one at a time, and each with references of its own."""
    rng, shape, truncations = np.random.default_rng(seed), (31, 28), [0, 3, 8]
    refs, weight = references(seed=seed), hole(shape, seed) if weighted else None
    targets = np.array([speckles(shape, rng.normal(0, 0.2, 2)) for _ in range(3)]) + 7.0
    missing = rng.random(targets.shape) < 0.04
    missing[1, 12:16, 11:16] = True  # in the core
    missing[2] = False
    targets[missing] += rng.normal(0, 300, missing.sum())
    basis, factors = KLBasis(device.array(refs), weight=weight), []
    given = [device.array(a) for a in (read_only(targets), missing)]
    left = device.get(basis.subtract(given[0], truncations, factors, given[1]))
    for k, truncate in enumerate(truncations):
        for target, lacking, residual in zip(targets, missing, left[k], strict=True):
            expected = oracles.klip_without(target, refs, truncate, ~lacking, weight)
            assert_allclose(residual, expected, atol=1e-8)
        assert device.get(factors[k]).shape == (3, 8)
    many = device.array(np.stack([refs] * 3))
    out = klip_many(many, given[0], truncations, weight=weight, missing=given[1])
    for plane, expected in zip(device.get(out[0]), left, strict=True):
        assert_allclose(plane, expected, atol=1e-8)
    for t in range(3):
        one = slice(t, t + 1)
        alone = device.get(basis.subtract(given[0][one], truncations, missing=given[1][one]))
        for plane, expected in zip(alone, left, strict=True):
            assert_allclose(plane[0], expected[t], atol=1e-9)
    with pytest.raises(InputError, match="missing has shape"):
        basis.subtract(given[0], 3, missing=given[1][:2])


def test_missing_pixels_of_all_targets_are_listed_together(device, monkeypatch):
    """On a GPU the calls do not grow with the targets, but for decompositions in the emulation."""
    if not device.emulation:
        pytest.skip("counts the calls on the emulated GPU")
    calls, plain = [], device.emulation.work
    monkeypatch.setattr(device.emulation, "work", lambda *a, **k: calls.append(a) or plain(*a, **k))
    basis, counts = KLBasis(device.array(references())), []
    for n in (2, 20):
        targets = np.array([speckles((31, 28), (0.1 * k, 0)) for k in range(n)])
        given = device.array(targets), device.array(targets > np.quantile(targets, 0.97))
        calls.clear()
        basis.subtract(given[0], 5, missing=given[1])
        counts.append(sum("eigh" not in what for what, *_ in calls))
    assert counts[0] == counts[1]


def test_pixels_are_rolled_together(device):
    rng = np.random.default_rng(0)
    images, shifts = rng.random((4, 6, 7)) < 0.3, np.array([(0, 0), (1, -2), (-9, 3), (6, 7)])
    found = device.get(rolled(device.array(images), shifts))
    for image, shift, expected in zip(found, shifts.tolist(), images, strict=True):
        assert np.array_equal(image, np.roll(expected, shift, axis=(0, 1)))


def test_targets_without_any_pixel_that_counts_are_left_as_they_are(device):
    targets = speckles((31, 28))[None]
    basis = KLBasis(device.array(references()))
    lacking = device.array(np.ones(targets.shape, bool))
    left = device.get(basis.subtract(device.array(targets), 4, missing=lacking))
    assert_allclose(left, targets, atol=1e-9)


def test_errors(device):
    refs = references().copy()
    refs[2, 0, 0] = np.inf
    for text, wrong in (
        ("at least one reference image", np.zeros((0, 4, 4))),
        ("constant", np.ones((3, 4, 4))),
        ("reference 3 of 8 is not finite", refs),
    ):
        with pytest.raises(InputError, match=text):
            KLBasis(device.array(wrong))
    for text, weight in (
        (r"weight has shape \(4, 4\), references \(31, 28\)", np.ones((4, 4))),
        ("weight is not finite, negative, or 0 nearly everywhere", np.zeros((31, 28))),
        ("weight is not finite", np.full((31, 28), np.nan)),
        ("weight is not finite, negative", np.full((31, 28), -1.0)),
    ):
        with pytest.raises(InputError, match=text):
            KLBasis(device.array(references()), weight=weight)
    basis = KLBasis(device.array(references()))
    with pytest.raises(ParameterError, match="truncate is -1"):
        basis.subtract(device.array(np.zeros((1, 31, 28))), -1)
    with pytest.raises(InputError, match="targets have shape"):
        basis.subtract(device.array(np.zeros((1, 3, 3))), 1)
    if device.is_gpu:
        with pytest.raises(TypeError, match="mixed"):
            basis.subtract(np.zeros((1, 31, 28)), 1)


def test_several_truncations_equal_one_at_a_time(device):
    refs, target = references(), speckles((31, 28), seed=3)[None]
    wanted = [30, 0, 2, 3, 6, 8, 2]
    for k, left, err in zip(wanted, *subtracted(device, refs, target, wanted), strict=True):
        one, its_err = subtracted(device, refs, target, k)
        assert_allclose(left, one, rtol=0, atol=1e-11)
        assert_array_equal(err, its_err)


@pytest.mark.parametrize("n_targets", [1, 2, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_number_of_targets_in_either_precision(device, n_targets, dtype):
    shape = (7, 19)
    refs = references(5, shape).astype(dtype)
    targets = references(n_targets, shape, seed=1).astype(dtype)
    found, expected = (subtracted(d, refs, targets, [2, 4])[0] for d in (device, CPU))
    for left, wanted in zip(found, expected, strict=True):
        assert_close(left, wanted)


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
    assert_many_close(device.call(klip_many, refs, targets, wanted), refs, targets, wanted)


def test_what_is_not_usable_is_left_out(device):
    refs, targets = sets(3, 6, (10, 12))
    refs, targets = refs.copy(), targets.copy()
    refs[0, 2] = np.nan
    refs[1, 0, 3, 3], refs[1, 5, 0, 0] = np.inf, np.nan
    refs[2], targets[2] = np.nan, np.nan
    targets[1, 4, 4] = np.nan
    found = [[plane] for plane in device.call(klip_many, *read_only(refs, targets), 2)]
    assert_many_close(found, refs[:2], targets[:2], [2])
    for (plane,) in found:
        assert np.isnan(plane[2]).all()


def test_errors_of_many(device):
    refs, targets = (np.array(a) for a in sets(2, 3, (5, 6)))
    constant, unusable = refs.copy(), refs.copy()
    constant[1], unusable[1] = 4.0, np.nan
    for error, text, *given in (
        (InputError, r"references have shape \(2, 3, 5, 6\), targets \(1, 5", refs, targets[:1], 2),
        (ParameterError, "truncate is -2", refs, targets, [3, -2]),
        (InputError, "are all constant", constant, targets, 2),
        (InputError, "none of 3 reference images is usable for target 2", unusable, targets, 2),
    ):
        with pytest.raises(error, match=text):
            device.call(klip_many, *given)
