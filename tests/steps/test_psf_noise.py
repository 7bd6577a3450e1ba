"""Errors of PSF-subtracted images: against naive sums, and against the scatter of noise."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpucoron.core.stack import IntegrationStack
from gpucoron.ops.zones import make_zones
from gpucoron.steps import klip
from gpucoron.steps.psf_noise import ReferenceErrors, own_variance, with_scatter
from gpucoron.steps.speckle_noise import speckle_variance
from tests.helpers.scenes import read_only, speckles

SHAPE = (60, 55)
EXPOSURES = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])


def stars(rng, n, noise, drift=0.0):
    """Images of one star on a bright background, of which `drift` is new in each."""
    common = speckles(SHAPE, (0.1, 0.2)) * 3
    return np.array(
        [
            common + drift * rng.normal(0, 1, SHAPE) + noise * rng.normal(0, 1, SHAPE)
            for _ in range(n)
        ]
    )


def scene(seed, n=4, drift=0.0, science_noise=1.0, reference_noise=1.5):
    rng = np.random.default_rng(seed)
    data = stars(rng, n, science_noise, drift).astype(np.float32)
    ones = np.ones_like(data)
    stack = IntegrationStack(
        *read_only(data, science_noise * ones, np.zeros(data.shape, np.uint32)),
        var_poisson=read_only(0.75 * science_noise**2 * ones),
        var_rnoise=read_only(0.25 * science_noise**2 * ones),
    )
    references = stars(rng, len(EXPOSURES), reference_noise)
    if drift:  # the same speckles in all images of an exposure
        news = drift * rng.normal(0, 1, (4, *SHAPE))
        references += news[EXPOSURES]
    variances = np.full((4, *SHAPE), reference_noise**2)
    errors = ReferenceErrors(variances, EXPOSURES, np.full(SHAPE, science_noise))
    return stack, read_only(references), errors


def run(device, stack, references, errors, truncate, **options):
    there = errors._replace(
        variances=device.array(errors.variances), pixel=device.array(errors.pixel)
    )
    coefficients = []
    out = klip(
        device.put(stack),
        device.array(references),
        truncate,
        errors=there,
        coefficients=coefficients,
        **options,
    )
    on_host = [
        device.get(o.replace(reference_noise=None)).replace(reference_noise=o.reference_noise)
        for o in out
    ]
    return on_host, [device.get(rows) for rows in coefficients]


@pytest.mark.parametrize("per_integration", [False, True])
def test_var_ref_is_the_sum_over_references(device, per_integration):
    stack, references, errors = scene(3)
    rng = np.random.default_rng(1)
    errors = errors._replace(variances=rng.uniform(1, 3, errors.variances.shape))
    given = np.stack([references] * len(stack)) if per_integration else references
    (out,), (rows,) = run(device, stack, given, errors, [3])
    for k in range(len(stack)):
        naive = sum(rows[k, j] ** 2 * errors.variances[EXPOSURES[j]] for j in range(12))
        assert_allclose(out.var_ref[k], naive, rtol=1e-6)
        left = stack.data[k] - stack.data[k].mean(dtype=float)
        left = left - sum(rows[k, j] * (r - r.mean()) for j, r in enumerate(references))
        assert_allclose(out.data[k], left, atol=1e-3)
    total = stack.var_poisson + stack.var_rnoise + out.var_ref + out.var_speckle
    assert_allclose(out.err, np.sqrt(total), rtol=1e-6)
    mean = rows.mean(axis=0)
    assert_allclose(out.reference_noise.coefficients, mean, rtol=1e-12)
    assert_allclose(
        out.reference_noise.variance,
        sum(mean[j] ** 2 * errors.variances[EXPOSURES[j]] for j in range(12)),
        rtol=1e-6,
    )


@pytest.mark.parametrize("per_integration", [False, True])
def test_in_zones_var_ref_is_the_sum_over_references_of_each(device, per_integration):
    stack, references, errors = scene(3)
    rng = np.random.default_rng(1)
    errors = errors._replace(variances=rng.uniform(1, 3, errors.variances.shape))
    given = np.stack([references] * len(stack)) if per_integration else references
    zones = make_zones(SHAPE, (27.2, 29.6), 2, 3, iwa=2, owa=25)
    (out,), (rows,) = run(device, stack, given, errors, [3], zones=zones)
    of_one, mean = np.full(stack.shape, np.nan), np.full(SHAPE, np.nan)
    for z in range(6):
        inside = zones.labels == z
        for k in range(len(stack)):
            planes = rows[z, k][:, None] ** 2 * errors.variances[EXPOSURES][:, inside]
            of_one[k, inside] = planes.sum(axis=0)
        planes = rows[z].mean(axis=0)[:, None] ** 2 * errors.variances[EXPOSURES][:, inside]
        mean[inside] = planes.sum(axis=0)
    inside = zones.labels >= 0
    assert_allclose(out.var_ref[:, inside], of_one[:, inside], rtol=1e-6)
    total = stack.var_poisson + stack.var_rnoise + out.var_ref + out.var_speckle
    assert_allclose(out.err[:, inside], np.sqrt(total)[:, inside], rtol=1e-6)
    assert np.isnan(out.err[:, ~inside]).all() and np.isnan(out.data[:, ~inside]).all()
    noise = out.reference_noise
    assert_allclose(noise.variance[inside], mean[inside], rtol=1e-6)
    assert_allclose(noise.coefficients, rows.mean(axis=1).T, rtol=1e-12)


def test_zones_in_corners_may_be_empty_or_a_pixel(device):
    """A star beside the middle: some sections of the outer annuli have next to nothing."""
    stack, references, errors = scene(3)
    zones = make_zones(SHAPE, (20, 40), 9, 8, optimise=2)
    counts = [len(pixels) for pixels in zones.pixels]
    assert min(counts) == 0 and 0 < min(count for count in counts if count) < 5
    (out,), _ = run(device, stack, references, errors, [3], zones=zones)
    assert np.isfinite(out.data).all() and np.isfinite(out.err).all()


@pytest.mark.parametrize("seed, drift", [(0, 0.0), (1, 4.0)])
def test_one_zone_has_the_errors_of_the_whole_image(device, seed, drift):
    stack, references, errors = scene(seed, drift=drift)
    (whole,), _ = run(device, stack, references, errors, [2])
    (out,), _ = run(device, stack, references, errors, [2], zones=make_zones(SHAPE, (27, 30)))
    for name in ("data", "err", "var_ref", "var_speckle"):
        assert_allclose(getattr(out, name), getattr(whole, name), rtol=1e-5, atol=1e-4)
    noise, expected = out.reference_noise, whole.reference_noise
    assert_allclose(noise.coefficients, expected.coefficients, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("drift, truncate", [(0.0, 3), (4.0, 1)])
def test_errors_in_zones_are_the_scatter(device, seed, drift, truncate):
    """Of noise, and of what is new in every exposure; modes take up some of it in small zones."""
    stack, references, errors = scene(seed, drift=drift)
    if drift:
        new = drift * np.random.default_rng(100 + seed).normal(0, 1, SHAPE)
        stack = stack.replace(data=(stars(np.random.default_rng(9), 4, 1.0) + new).astype("f4"))
    zones = make_zones(SHAPE, (27, 30), 2, 4)
    (out,), _ = run(device, stack, references, errors, [truncate], zones=zones)
    pulls = out.data / out.err
    for z in range(8):
        low, high = (0.9, 1.05) if drift == 0 else (0.75, 1.3)
        assert low < np.std(pulls[:, zones.labels == z]) < high
    assert (out.var_speckle.mean() > 8.0) == (drift > 0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("truncate", [1, 3, 8])
def test_noise_alone_has_no_speckles_and_the_right_errors(device, seed, truncate):
    """However large the noise of the references."""
    stack, references, errors = scene(seed, reference_noise=2.0)
    (out,), _ = run(device, stack, references, errors, [truncate])
    assert np.std(out.data / out.err) == pytest.approx(1.0, abs=0.03)
    assert out.var_speckle.mean() < 0.06 * (1.0 + out.var_ref.mean())


@pytest.mark.parametrize("seed", range(2))
def test_speckles_that_are_left_are_in_the_error(device, seed):
    """What is new in every exposure, of all integrations alike, several times the noise."""
    stack, references, errors = scene(seed, drift=4.0)
    rng = np.random.default_rng(100 + seed)
    new = 4.0 * rng.normal(0, 1, SHAPE)
    data = stars(rng, len(stack), 1.0) + new
    stack = stack.replace(data=data.astype(np.float32))
    (out,), _ = run(device, stack, references, errors, [1])
    assert 0.8 < np.std(out.data / out.err) < 1.3
    assert out.var_speckle.mean() > 8.0


def test_a_disk_is_not_taken_for_speckles(device):
    """Where references predict each other, an excess of the science star is not in its error."""
    stack, references, errors = scene(0, reference_noise=0.2)
    y, x = np.indices(SHAPE)
    disk = 30.0 * np.exp(-(((np.hypot(y - 30, x - 27) - 15) / 3) ** 2))
    (out,), _ = run(device, stack, references, errors, [1])
    seen = stack.replace(data=(stack.data + disk).astype(np.float32))
    (bright,), _ = run(device, seen, references, errors, [1])
    on = disk > 15
    assert bright.data[:, on].mean() > 10
    assert_allclose(np.median(bright.err[:, on]), np.median(out.err[:, on]), rtol=0.1)


def test_pixels_without_variances_have_the_exposures_error(device):
    stack, _, _ = scene(0)
    hurt = stack.var_poisson.copy()
    hurt[0, 3, 4], hurt[1, 5, 6] = np.nan, -2.0
    given = device.put(stack.replace(var_poisson=hurt))
    found = device.get(own_variance(given, device.array(np.full(SHAPE, 3.0))))
    assert found[0, 3, 4] == found[1, 5, 6] == 9.0
    assert np.count_nonzero(found != 1.0) == 2
    bare = device.put(stack.replace(var_poisson=None, var_rnoise=None, err=2 * stack.err))
    assert (device.get(own_variance(bare, device.array(np.ones(SHAPE)))) == 4.0).all()


def test_one_reference_exposure(device):
    """No exposure can be left out: the residual alone says what is left."""
    stack, references, errors = scene(0)
    errors = errors._replace(variances=errors.variances[:1], exposures=np.zeros(12, int))
    (out,), _ = run(device, stack, references, errors, [3])
    assert np.std(out.data / out.err) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("bad", [0, 7])
def test_unusable_references_and_integrations(device, bad):
    stack, references, errors = scene(2)
    broken = np.concatenate([references, np.full((1, *SHAPE), np.nan)])
    order = np.insert(np.arange(12), bad, 12)
    data = stack.data.copy()
    data[1] = np.nan
    errors = errors._replace(exposures=np.append(EXPOSURES, 1)[order])
    (out,), (rows,) = run(device, stack.replace(data=data), broken[order], errors, [3])
    assert (rows[:, bad] == 0).all()
    assert np.isnan(out.err[1]).all() and np.isfinite(np.delete(out.err, 1, axis=0)).all()
    fewer = stack.planes([0, 2, 3])
    (expected,), _ = run(device, fewer, references, errors._replace(exposures=EXPOSURES), [3])
    assert_allclose(np.delete(out.err, 1, axis=0), expected.err, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4), (5, 5), (11, 17)])
def test_small_images(device, shape):
    rng = np.random.default_rng(0)
    references = rng.normal(size=(4, *shape))
    residual = rng.normal(size=(2, *shape))
    errors = ReferenceErrors(
        device.array(np.ones((2, *shape))), np.array([0, 0, 1, 1]), device.array(np.ones(shape))
    )
    (found,) = speckle_variance(
        [device.array(residual)],
        [device.array(np.full((2, 4), 0.25))],
        device.array(references),
        errors,
        device.array(np.ones(residual.shape)),
        truncations=[1],
    )
    assert found.shape == shape and (device.get(found) >= 0).all()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("nothing", [0.0, np.nan])
@pytest.mark.parametrize("known", ["references", "nothing"])
def test_where_no_noise_is_known_err_is_the_scatter(seed, nothing, known, caplog):
    """White noise of 2, whose ERR nobody knows, with as many modes as there are references."""
    rng = np.random.default_rng(seed)
    data = (2.0 * rng.normal(size=(2, *SHAPE))).astype(np.float32)
    data[1, 3, 4] = np.nan
    stack = IntegrationStack(
        *read_only(data, np.full_like(data, nothing), np.zeros(data.shape, np.uint32))
    )
    references = 0.01 * rng.normal(size=(3, *SHAPE))
    own = own_variance(stack, np.full(SHAPE, nothing))
    if known == "references":
        errors = ReferenceErrors(np.full((3, *SHAPE), 1e-4), np.arange(3), np.full(SHAPE, nothing))
        result = klip(stack, references, 3, errors=errors)
    else:
        result = with_scatter(klip(stack, references, 3), own)
    assert_array_equal(np.isnan(result.err), np.isnan(data))
    assert (result.err[np.isfinite(data)] > 0.5).all()
    assert np.nanmedian(result.err) == pytest.approx(2.0, rel=0.05)
    assert "their ERR in psfsub is at least the scatter of what is left around" in caplog.text


def test_a_known_noise_stays_where_that_of_other_pixels_is_not_known():
    stack, references, errors = scene(4)
    errors = errors._replace(pixel=np.zeros(SHAPE))
    whole = klip(stack, references, 3, errors=errors)
    variances = {name: getattr(stack, name).copy() for name in ("var_poisson", "var_rnoise")}
    for variance in variances.values():
        variance[:, 10, 12] = 0.0
    partial = klip(stack.replace(**variances), references, 3, errors=errors)
    unknown = np.zeros(stack.shape, bool)
    unknown[:, 10, 12] = True
    assert_array_equal(partial.var_ref, whole.var_ref)
    same = ~unknown & (partial.var_speckle == whole.var_speckle)  # VAR_SPECKLE takes noise off
    assert_array_equal(partial.err[same], whole.err[same])
    assert same.mean() > 0.5
    assert (partial.err[unknown] > 0.5 * whole.err[unknown]).all()
