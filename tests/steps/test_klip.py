import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpucoron.core.stack import IntegrationStack
from gpucoron.errors import InputError
from gpucoron.ops.fourier_shift import fourier_shift
from gpucoron.ops.zones import make_zones
from gpucoron.steps import klip
from tests.helpers import oracles
from tests.helpers.scenes import changed, read_only, speckles

SHAPE = (30, 29)


def scene(n=3, nref=6):
    rng = np.random.default_rng(0)
    science = np.array([speckles(SHAPE, rng.normal(0, 0.1, 2)) for _ in range(n)], np.float32)
    refs = np.array(
        [speckles(SHAPE, rng.normal(0, 0.2, 2)) + rng.normal(0, 1, SHAPE) for _ in range(nref)]
    )
    dq = np.zeros(science.shape, np.uint32)
    stack = IntegrationStack(*read_only(science, np.ones_like(science), dq))
    return stack, read_only(refs)


def run(device, stack, references, truncate, **options):
    """Subtract on the device; data and err come back in single precision, dq is passed on."""
    there = device.put(stack)
    out = klip(there, device.array(references), truncate, **options)
    for one in out if isinstance(out, list) else [out]:
        assert one.dq is there.dq and one.data.dtype == one.err.dtype == np.float32
    return device.get(out)


def given(refs, per_integration, n=3):
    """References as klip takes them: shared by all integrations, or some for each."""
    return np.stack([refs] * n) if per_integration else refs


@pytest.mark.parametrize("per_integration", [False, True])
@pytest.mark.parametrize("truncate", [1, 4, 50])
def test_equals_the_oracle(device, truncate, per_integration):
    stack, refs = scene()
    out = run(device, stack, given(refs, per_integration), truncate)
    for i in range(len(stack)):
        left, err = oracles.klip(stack.data[i].astype(float), refs, truncate)
        assert_allclose(out.data[i], left, atol=1e-4)  # float32 of values up to 300
        assert_allclose(out.err[i], err, atol=1e-5)


@pytest.mark.parametrize("truncate", [0, 2, [1, 6, 50]])
def test_offsets_equal_references_moved_to_each_target(device, truncate):
    """On odd sizes, where a shift loses nothing: one decomposition for targets anywhere."""
    rng = np.random.default_rng(2)
    shape, offsets = (31, 29), rng.normal(0, 0.8, (4, 2))
    data = np.array([speckles(shape, o) + rng.normal(0, 1, shape) for o in offsets], np.float32)
    stack = IntegrationStack(data, np.ones_like(data), np.zeros(data.shape, np.uint32))
    refs = np.array([speckles(shape, rng.normal(0, 0.2, 2)) for _ in range(6)])
    out = run(device, stack, refs, truncate, offsets=offsets)
    moved = np.stack([fourier_shift(refs, np.tile(o, (6, 1))) for o in offsets])
    each = run(device, stack, moved, truncate)
    for one, other in zip(*(a if isinstance(a, list) else [a] for a in (out, each)), strict=True):
        assert_allclose(one.data, other.data, atol=2e-4)  # float32 of values up to 300


@pytest.mark.parametrize("per_integration", [False, True])
def test_a_source_that_is_ignored_changes_nothing_else(device, per_integration):
    """Its pixels are as bright as they were, in psfsub as well."""
    stack, refs = scene()
    weight = np.ones(SHAPE)
    weight[18:23, 6:11] = 0
    bright = changed(stack, data=(np.s_[:, 20, 8], stack.data[:, 20, 8] + 500))
    offsets = None if per_integration else np.zeros((3, 2))
    options = {"weight": weight, "offsets": offsets}
    without, out = (
        run(device, s, given(refs, per_integration), 4, **options) for s in (stack, bright)
    )
    added = np.zeros(SHAPE)
    added[20, 8] = 500
    assert_allclose(out.data - without.data, np.stack([added] * 3), atol=1e-4)
    assert_array_equal(out.err, without.err)
    for i in range(len(stack)):
        left, err = oracles.klip(stack.data[i].astype(float), refs, 4, weight)
        assert_allclose(without.data[i], left, atol=1e-4)
        assert_allclose(out.err[i], err, atol=1e-5)


@pytest.mark.parametrize("per_integration", [False, True])
def test_zones_of_targets_that_are_elsewhere(device, per_integration):
    """With one zone the model is that of the whole image; zones differ by what they leave."""
    rng = np.random.default_rng(3)
    shape, offsets = (31, 29), rng.normal(0, 0.8, (3, 2))
    data = np.array([speckles(shape, o) + rng.normal(0, 1, shape) for o in offsets], np.float32)
    stack = IntegrationStack(data, np.ones_like(data), np.zeros(data.shape, np.uint32))
    refs = np.array([speckles(shape, rng.normal(0, 0.2, 2)) for _ in range(6)])
    if per_integration:
        refs = np.stack([fourier_shift(refs, np.tile(o, (6, 1))) for o in offsets])
    options = {} if per_integration else {"offsets": offsets}
    whole = run(device, stack, refs, [1, 4], **options)
    one = run(device, stack, refs, [1, 4], zones=make_zones(shape, (14, 15)), **options)
    for a, b in zip(whole, one, strict=True):
        assert_allclose(a.data, b.data, atol=2e-4)  # float32 of values up to 300
    zones = make_zones(shape, (14, 15), 2, 2, iwa=2, owa=12)
    still = np.zeros((3, 2)) if "offsets" in options else None
    out = run(device, stack, refs, 4, zones=zones, offsets=still)
    inside = zones.labels >= 0
    assert np.isnan(out.data[:, ~inside]).all() and np.isfinite(out.data[:, inside]).all()
    found = [refs] * 3 if refs.ndim == 3 else refs
    for target, own, left in zip(stack.data.astype(float), found, out.data, strict=True):
        for z in range(4):
            area = zones.labels == z
            expected, _ = oracles.klip(target, own, 4, area.astype(float))
            assert_allclose(left[area], expected[area], atol=1e-3)


def test_references_that_may_not_serve_take_no_part(device):
    stack, refs = scene()
    allowed = np.ones((3, 6), bool)
    allowed[0, :3] = allowed[2, 4] = False
    out = run(device, stack, refs, 3, allowed=allowed)
    for k in range(3):
        left, _ = oracles.klip(stack.data[k].astype(float), refs[allowed[k]], 3)
        assert_allclose(out.data[k], left, atol=1e-4)


def test_offsets_that_do_not_fit_are_refused():
    stack, refs = scene()
    with pytest.raises(InputError, match=r"offsets have shape \(2, 2\), expected \(3, 2\)"):
        klip(stack, refs, 2, offsets=np.zeros((2, 2)))
    with pytest.raises(InputError, match="offsets need references that all integrations share"):
        klip(stack, np.stack([refs] * 3), 2, offsets=np.zeros((3, 2)))


def test_shared_references_equal_the_same_ones_repeated(device):
    stack, refs = scene()
    once = run(device, stack, refs, 3)
    each = run(device, stack, np.stack([refs] * 3), 3)
    assert_allclose(once.data, each.data, atol=1e-5)
    assert_allclose(once.err, each.err, atol=1e-6)


@pytest.mark.parametrize("per_integration", [False, True])
def test_one_unusable_reference_changes_nothing(device, per_integration):
    stack, refs = scene()
    with_nan = np.concatenate([refs, np.full((1, *SHAPE), np.nan)])
    without, out = (run(device, stack, given(r, per_integration), 3) for r in (refs, with_nan))
    assert_allclose(without.data, out.data, rtol=0, atol=1e-5 * device.is_gpu * per_integration)
    assert_allclose(without.err, out.err, rtol=1e-6 * device.is_gpu * per_integration)


@pytest.mark.parametrize("per_integration", [False, True])
def test_a_target_without_pixels_stays_nan(device, per_integration):
    stack, refs = scene()
    stack = changed(changed(stack, data=(1, np.nan)), data=((2, 3, 4), np.inf))
    out = run(device, stack, given(refs, per_integration), 3)
    assert np.isnan(out.data[1]).all() and np.isnan(out.err[1]).all()
    assert np.isfinite(out.data[0]).all() and np.isfinite(out.err[[0, 2]]).all()
    assert np.isnan(out.data[2]).sum() == 1 and np.isnan(out.data[2, 3, 4])


def test_references_of_a_target_without_pixels_may_be_missing(device):
    stack, refs = scene()
    refs = np.stack([refs] * 3)
    refs[1] = np.nan
    out = run(device, changed(stack, data=(1, np.nan)), refs, 3)
    assert np.isnan(out.data[1]).all() and np.isfinite(out.data[[0, 2]]).all()


def test_a_planet_keeps_its_place(device):
    stack, refs = scene()
    stack = changed(stack, data=(np.s_[:, 20, 8], stack.data[:, 20, 8] + 500))
    out = run(device, stack, refs, 3).data
    assert all(np.unravel_index(np.argmax(d), SHAPE) == (20, 8) for d in out)


def test_errors(device):
    stack, refs = scene()
    for text, references in (
        (r"references have shape \(6, 3, 3\)", np.zeros((6, 3, 3))),
        ("references for 2 integrations, but there are 3", np.stack([refs] * 2)),
        ("none of 6 reference images is usable", np.full_like(refs, np.nan)),
        ("none of 6 reference images is usable for target 1", np.full((3, *refs.shape), np.nan)),
    ):
        with pytest.raises(InputError, match=text):
            run(device, stack, references, 50)


def test_one_reference_is_scaled_and_subtracted(device):
    stack, refs = scene()
    out = run(device, stack, refs[:1], 50)
    reference = refs[0] - refs[0].mean()
    for target, left in zip(stack.data.astype(float), out.data, strict=True):
        target = target - target.mean()
        scale = (target * reference).sum() / (reference**2).sum()
        assert_allclose(left, target - scale * reference, atol=1e-4)
    assert (out.err == 0).all()


@pytest.mark.parametrize("per_integration", [False, True])
def test_several_truncations_come_as_a_list(device, per_integration):
    stack, refs = scene()
    refs = given(refs, per_integration)
    several = run(device, stack, refs, [1, 3, 50])
    for truncate, out in zip([1, 3, 50], several, strict=True):
        one = run(device, stack, refs, truncate)
        assert_allclose(out.data, one.data, rtol=0, atol=1e-5 * device.is_gpu)
        assert_array_equal(out.err, one.err)


def test_references_on_a_gpu_are_left_as_they_are(device):
    stack, refs = scene()
    there = device.array(refs.copy())
    klip(device.put(stack), there, 3, overwrite_references=device.is_gpu)
    assert_array_equal(device.get(there), refs)


@pytest.mark.parametrize("per_integration", [False, True])
def test_eigenvalues_come_along(device, per_integration):
    stack, refs = scene()
    spectra = []
    run(device, stack, given(refs, per_integration), 3, spectra=spectra)
    centred = refs.reshape(len(refs), -1) - refs.mean(axis=(1, 2))[:, None]
    direct = np.linalg.eigvalsh(centred @ centred.T / (centred.shape[1] - 1))[::-1]
    assert len(spectra) == (3 if per_integration else 1)
    for values in spectra:
        assert_allclose(device.get(values), direct, rtol=1e-9)
