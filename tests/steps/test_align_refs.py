import copy

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpucoron.core.stack import IntegrationStack, PlaneSource
from gpucoron.errors import InputError
from gpucoron.ops.dq import DO_NOT_USE, FLUX_ESTIMATED, NON_SCIENCE
from gpucoron.ops.fourier_shift import fourier_shift
from gpucoron.steps import Alignment, align_refs
from gpucoron.steps.align_refs import FITS_DTYPE
from gpucoron.steps.bad_pixels import BadPixelFiller, ReferenceLibrary
from tests.helpers.scenes import changed, read_only, speckles

SHAPE = (40, 41)
OFFSETS = [(0.4, -0.3), (-0.8, 0.2), (0.1, 0.9), (1.4, -1.2)]


def stack(images, bad=None):
    images = np.asarray(images, np.float32)
    dq = np.zeros(images.shape, np.uint32)
    if bad is not None:
        dq[bad] = 1
    err = np.full_like(images, 0.5)
    return IntegrationStack(*read_only(images, err, dq))


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    science = [speckles(SHAPE, (0.01 * i, -0.02 * i)) + rng.normal(0, 0.5, SHAPE) for i in range(3)]
    references = [speckles(SHAPE, o, brightness=1.5) + rng.normal(0, 0.5, SHAPE) for o in OFFSETS]
    return stack(science), stack(references)


def test_each_aligns_every_reference_to_every_integration(scene):
    science, references = scene
    out = align_refs(science, references)
    assert out.data.shape == out.err.shape == (3, 4, *SHAPE)
    assert out.fits["sci_integration"].tolist() == [1] * 4 + [2] * 4 + [3] * 4
    assert out.fits["ref_plane"].tolist() == [1, 2, 3, 4] * 3
    assert (out.fits["status"] == 0).all()
    for row in out.fits:
        i, r = row["sci_integration"] - 1, row["ref_plane"] - 1
        truth = np.array(OFFSETS[r]) - np.array([0.01, -0.02]) * i
        assert abs(row["y"] - truth[0]) < 0.02 and abs(row["x"] - truth[1]) < 0.02
        moved = fourier_shift(references.data[r : r + 1], np.array([[-row["y"], -row["x"]]]))
        assert_allclose(out.data[i, r], moved[0], atol=1e-9)
    assert np.isfinite(out.err).all() and (out.err >= 0).all()


@pytest.mark.parametrize("align", ["joint", "first"])
def test_err_is_propagated_through_the_shift(scene, align):
    """A shift is a matrix along each axis; variances take its squares."""
    science, references = scene
    err = np.random.default_rng(1).uniform(0.1, 2.0, references.shape).astype(np.float32)
    references = references.replace(err=err)
    out = align_refs(science, references, align=align)
    found = out.err.reshape(-1, *SHAPE)[:4]
    for r, row in enumerate(out.fits[:4]):
        along = []
        for n, shift in zip(SHAPE, (-row["y"], -row["x"]), strict=True):
            phases = np.exp(-2j * np.pi * np.fft.fftfreq(n) * shift)
            along.append(np.fft.ifft(np.fft.fft(np.eye(n), axis=0) * phases[:, None], axis=0).real)
        variance = along[0] ** 2 @ err[r].astype(float) ** 2 @ (along[1] ** 2).T
        assert_allclose(found[r], np.sqrt(variance), rtol=1e-6)


def test_first_uses_the_first_integration_for_all(scene):
    science, references = scene
    first, each = (align_refs(science, references, align=align) for align in ("first", "each"))
    assert first.data.shape == (4, *SHAPE)
    assert_array_equal(first.data, each.data[0])
    assert_array_equal(first.fits, each.fits[:4])


def test_iterating_equals_the_whole(scene):
    science, references = scene
    whole = align_refs(science, references)
    for i, data, err, fits in Alignment(science, references, np.ones(SHAPE)):
        assert_array_equal(data, whole.data[i])
        assert_array_equal(err, whole.err[i])
        assert_array_equal(fits, whole.fits[4 * i : 4 * i + 4])


def test_bad_pixels_in_the_masked_core_do_not_move_the_fit():
    """Filled from the exposure's other integrations they change a shift by less than 1e-3 px."""
    rng = np.random.default_rng(2)
    science = np.array([speckles(SHAPE) + rng.normal(0, 0.1, SHAPE) for _ in range(5)])
    bad = np.zeros(science.shape, bool)
    bad[np.arange(5), 19 + np.arange(5) % 3, 18 + np.arange(5)] = True
    mask = np.ones(SHAPE)
    mask[15:26, 15:26] = 0
    references = stack([speckles(SHAPE, o) for o in OFFSETS])
    clean = align_refs(stack(science), references, mask).fits
    spoilt = science.copy()
    spoilt[bad] = 1e5
    dirty = align_refs(stack(spoilt, bad), references, mask).fits
    assert all(np.abs(clean[name] - dirty[name]).max() < 1e-3 for name in "xy")


def test_an_integration_without_pixels_is_left_out(scene):
    science, references = scene
    science = changed(science, data=(0, np.nan))
    out = align_refs(science, references, align="each")
    assert np.isnan(out.data[0]).all() and np.isfinite(out.data[1:]).all()
    assert out.fits["status"].tolist() == [2] * 4 + [0] * 8
    first = align_refs(science, references, align="first")
    assert first.fits["sci_integration"].tolist() == [2] * 4
    assert_array_equal(first.data, out.data[1])
    joint = align_refs(science, references)
    assert np.isnan(joint.data[0]).all() and np.isfinite(joint.data[1:]).all()
    assert joint.fits["status"].tolist() == [2] * 4 + [0] * 8


@pytest.mark.parametrize("nothing", [0.0, -1.0, np.nan])
def test_uncertainties_without_an_err_are_those_of_the_residual(scene, nothing):
    science, references = scene
    sources = tuple(PlaneSource("one exposure", k + 1) for k in range(len(references)))
    scene = science, references = science, references.replace(sources=sources)
    bare = [s.replace(err=np.full_like(s.err, nothing)) for s in scene]
    known, found = align_refs(science, references).fits, align_refs(*bare).fits
    for name in ("x", "y", "beta", "residual", "status"):
        assert_array_equal(found[name], known[name])
    # the residual of these scenes is their noise, 0.5, which is what `err` says
    assert_allclose(found["x_err"], known["x_err"], rtol=0.2)


def test_preset_leaves_err_unfilled(scene):
    science, references = scene
    references = changed(references, err=((2, 5, 5), np.nan))
    out = align_refs(science, references, preset="jwst", align="first")
    assert np.isnan(out.err[2]).all() and np.isfinite(out.err[[0, 1, 3]]).all()
    assert np.isfinite(align_refs(science, references).err).all()


@pytest.mark.parametrize("align", ["joint", "each", "first"])
def test_flags_are_where_bad_pixels_went(scene, align):
    """By what a bad pixel adds to the shifted image: less than the first lobe of sinc elsewhere."""
    science, references = scene
    bad = np.zeros(references.shape, bool)
    bad[np.arange(4), [10, 17, 30, 22], [9, 31, 12, 25]] = True
    references = changed(references, data=(bad, np.nan), dq=(bad, 4))
    out = align_refs(science, references, align=align)
    assert out.dq.shape == out.data.shape and out.dq.dtype == np.uint32
    for flags, row in zip(out.dq.reshape(-1, *SHAPE), out.fits, strict=True):
        r, shift = row["ref_plane"] - 1, [[-row["y"], -row["x"]]]
        share = np.abs(fourier_shift(bad[r : r + 1].astype(float), np.array(shift))[0])
        filled = flags == DO_NOT_USE | FLUX_ESTIMATED | 4
        assert 1 <= filled.sum() <= 4 and share[filled].min() > 0.01
        assert share[~filled].max() < 0.22
        edge = flags == DO_NOT_USE | NON_SCIENCE
        assert_array_equal(flags, np.where(filled, flags, np.where(edge, flags, 0)))
        assert edge.sum() == (abs(row["y"]) > 0.5) * 41 + (abs(row["x"]) > 0.5) * (
            40 - (abs(row["y"]) > 0.5)
        )
    plan = Alignment(references, science, np.ones(SHAPE), align=align)
    assert_array_equal(plan.science_dq != 0, bad)
    plan = Alignment(references, science, np.ones(SHAPE), preset="jwst", align="first")
    assert_array_equal(plan.science_dq, references.dq)
    assert not plan.shift_dq(plan.fit(0)).any()


def test_non_science_pixels_become_zero(scene):
    science, references = scene
    science = changed(science, dq=(np.s_[:, :, :4], 1 | 512))
    plan = Alignment(science, references, np.ones(SHAPE), zero_non_science=True)
    assert (plan.science[:, :, :4] == 0).all()


def moved(device, prepared):
    """Prepared references on the device, filled on the host so that only what follows differs."""
    out = copy.copy(prepared)
    for name, value in vars(prepared).items():
        if isinstance(value, np.ndarray) and value.ndim == 3:
            setattr(out, name, device.array(value))
    out.fill_science = lambda science: device.put(prepared.fill_science(device.get(science)))
    return out


@pytest.mark.parametrize("preset", [None, "jwst"])
@pytest.mark.parametrize("align", ["each", "first"])
def test_devices_agree(scene, device, align, preset):
    """With an integration, a reference and the err of another left out."""
    science = changed(scene[0], data=(0, np.nan))
    references = changed(scene[1], data=(1, np.nan), err=(2, np.nan))
    prepared = ReferenceLibrary(references, BadPixelFiller(preset=preset))
    expected = align_refs(science, prepared, align=align)
    out = align_refs(device.put(science), moved(device, prepared), align=align)
    for name in FITS_DTYPE.names:
        assert_allclose(out.fits[name].astype(float), expected.fits[name], atol=1e-9)
    for name in ("data", "err"):
        assert_allclose(device.get(getattr(out, name)), getattr(expected, name), atol=1e-9)


def test_on_a_gpu_all_integrations_are_fitted_at_once(scene, device):
    if not device.is_gpu or not device.emulation:
        pytest.skip("counts the launches of the emulated GPU")
    science, references = scene
    prepared = moved(device, ReferenceLibrary(references, BadPixelFiller()))
    plan = Alignment(device.put(science), prepared, np.ones(SHAPE))
    before = len(device.emulation.launches)
    for i in plan.integrations:
        plan.fit(i)
    names = [name for _, name, *_ in device.emulation.launches[before:]]
    assert names.count("fit_pairs<30, 42>") == 1


def test_errors(scene):
    science, references = scene
    with pytest.raises(InputError, match=r"science images are \(40, 41\), references are"):
        align_refs(science, stack(np.ones((2, 9, 9))))
    with pytest.raises(InputError, match="no science integration has a usable pixel"):
        align_refs(changed(science, data=(np.s_[:], np.nan)), references)
