import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpucoron.errors import DeviceMemoryError, InputError
from gpucoron.ops.chebyshev import PhaseSeries
from gpucoron.ops.cpu import registration as _registration_cpu
from gpucoron.ops.cuda import registration as _registration_cuda
from gpucoron.ops.fourier_shift import phases
from gpucoron.ops.registration import CONVERGED, FIT_DTYPE, LEFT_OUT, NOT_CONVERGED, Registration
from gpucoron.ops.registration_search import masked_correlation
from tests.helpers import oracles, tolerances
from tests.helpers.scenes import read_only, speckles

NUMBERS = "x y beta residual x_err".split()
OFFSETS = [(0.0, 0.0), (0.31, -0.22), (0.95, 0.48), (-1.2, 0.6), (2.5, -1.5)]


def case(shape, noise=5.0, offsets=OFFSETS, seed=0):
    rng = np.random.default_rng(seed)
    frame = speckles(shape) + rng.normal(0, noise, shape)
    references = np.array([speckles(shape, o, brightness=1.4) for o in offsets])
    references += rng.normal(0, noise, references.shape)
    mask = np.ones(shape)
    mask[shape[0] // 2 - 2 : shape[0] // 2 + 3, shape[1] // 2 - 2 : shape[1] // 2 + 3] = 0
    mask[:2] = 0.5
    return read_only(frame, references, mask)


def assert_same(a, b, device):
    """To the bit; on a GPU to rounding, for its libraries choose how they sum by the batch."""
    for name in FIT_DTYPE.names:
        slack = 1e-11 if device.name == "cuda" else 0.0
        assert_allclose(a[name], b[name], rtol=slack, atol=slack, err_msg=name)


def fitted(device, frame, references, mask=None, guide=None, **options):
    """Fits of one frame; `guide` is a host array like the others."""
    plan = Registration(device.array(references), mask, guide=device.put(guide), **options)
    return plan.fit(device.array(frame))


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("shape", [(32, 40), (33, 40), (32, 41), (33, 41)])
def test_finds_the_minimum_of_the_direct_objective(shape, background, device):
    frame, references, mask = case(shape)
    frame, references = frame + 40, references - 25
    fits = fitted(device, frame, references, mask, guide=frame, background=background)
    assert (fits["status"] == CONVERGED).all()
    for fit, reference in zip(fits, references, strict=True):
        found = [fit["x"], fit["y"], fit["beta"]]
        best, cost = oracles.registration(frame, reference, mask, found + [0.0] * background)
        assert_allclose(found, best[:3], atol=tolerances.REGISTRATION_PX)
        assert fit["residual"] ** 2 * np.sum(mask**2) == pytest.approx(cost, rel=1e-9)


@pytest.mark.parametrize("offset", [(5, -5), (-4.6, 3.3), (0.5, 4.5), (-5, 0)])
def test_large_offsets_are_found_with_and_without_a_guide(offset, device):
    frame, references, mask = case((64, 60), offsets=[offset])
    for guide in (frame, None):
        fit = fitted(device, frame, references, mask, guide=guide)[0]
        assert fit["status"] == CONVERGED
        assert fit["y"] == pytest.approx(offset[0], abs=0.1)
        assert fit["x"] == pytest.approx(offset[1], abs=0.1)


@pytest.mark.parametrize("k", [-50, 50])
def test_the_unit_of_the_pixels_does_not_matter(device, k):
    frame, references, mask = case((33, 40), offsets=[(0.3, -0.2), (2.5, -1.5), (9.0, 1.0)])
    a = fitted(device, frame, references, mask, guide=frame)
    scaled = np.ldexp(frame, k)
    b = fitted(device, scaled, np.ldexp(references, k), mask, guide=scaled)
    b["residual"] = np.ldexp(b["residual"], -k)
    assert_same(a, b, device)


@pytest.mark.parametrize("offset", [(9, 0), (-12, 11), (0.4, -15.3)])
def test_offsets_anywhere_in_the_frame_are_found(offset, device):
    """Of an exposure, with the mask moved along; and of one image among others."""
    frame, references, mask = case((64, 60), offsets=[offset, offset, (0.3, 0.2)])
    guided = fitted(device, frame, references, mask, guide=frame, groups=[0, 0, 1])
    for fits in (guided, fitted(device, frame, references, mask)):
        assert (fits["status"] == CONVERGED).all()
        assert_allclose(fits["y"][:2], offset[0], atol=0.1)
        assert_allclose(fits["x"][:2], offset[1], atol=0.1)
    moved = np.roll(references[0], (-2, 3), axis=(0, 1))
    again = fitted(device, frame, np.stack([references[0], moved]), mask, guide=frame)
    assert_allclose(again["y"][1] - again["y"][0], -2, atol=1e-9)
    assert_allclose(again["x"][1] - again["x"][0], 3, atol=1e-9)
    plan = Registration(device.array(references[2:]), mask, guide=device.put(frame))
    far = plan.fit_many(device.array(np.stack([frame, speckles((64, 60), offset)])))[1, 0]
    assert_allclose([far["y"], far["x"]], np.subtract((0.3, 0.2), offset), atol=0.1)


def test_far_references_have_the_uncertainties_of_near_ones(device):
    frame, references, mask = case((64, 60), offsets=[(0.3, -0.2)])
    error = 1 + 0.01 * np.abs(references)
    found = []
    for shift in ((0, 0), (14, -10)):
        images, errors = (np.roll(a, shift, axis=(1, 2)) for a in (references, error))
        plan = Registration(device.array(images), mask, guide=(own := device.put(frame)))
        own_error = device.array(np.ones_like(frame))
        plan.propagate(device.array(images), device.array(errors), np.zeros(1, int), own, own_error)
        found.append(plan.fit(own)[0])
    near, far = found
    assert_allclose([far["y"] - 14, far["x"] + 10], [near["y"], near["x"]], atol=1e-9)
    for name in ("x_err", "y_err", "beta_err", "beta", "residual"):
        assert far[name] == pytest.approx(near[name], rel=1e-9)


def test_covariances_are_the_scatter_of_fits_with_noise():
    """A star stretched along a diagonal: its errors along x and y go together."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:32, :32] - 16.0
    star = 100 * np.exp(-((x - y) ** 2) / 2 / 2.0**2 - (x + y) ** 2 / 2 / 5.0**2)
    errors = 0.5 + 0.02 * star
    plan = Registration(star[None] + errors * rng.normal(size=star.shape))
    noise = plan.propagate(star[None], errors[None], np.zeros(1, int), star, 0 * star)
    found = plan.fit_many(star + errors * rng.normal(size=(1500, *star.shape)))
    scatter = np.cov([found["y"][:, 0], found["x"][:, 0]])
    alone, _ = noise.errors_and_correlations()
    assert_allclose(alone[0, :2], np.sqrt(np.diag(scatter)), rtol=0.08)
    assert_allclose(alone[0, 2], scatter[0, 1] / np.sqrt(scatter[0, 0] * scatter[1, 1]), atol=0.05)
    assert abs(alone[0, 2]) > 0.4


def test_masked_correlation_is_the_direct_sum(device):
    rng = np.random.default_rng(4)
    shape = (9, 10)
    weight = np.where(rng.uniform(size=shape) < 0.8, rng.uniform(0.5, 1, shape), 0.0)
    frame, reference = 5 + rng.normal(size=(2, *shape))
    found = device.get(masked_correlation(*map(device.array, (weight, reference[None], frame))))[0]
    for y, x in np.ndindex(shape):
        moved, both = (np.roll(a, (y, x), axis=(0, 1)) for a in (frame, weight))
        both = both * weight
        p, f = (a - np.average(a, weights=both) for a in (reference, moved))
        covariance = np.sum(both * p * f)
        expected = covariance**2 / np.sum(both * p * p) / np.sum(both * f * f)
        assert_allclose(found[y, x], expected if covariance > 0 else -np.inf, rtol=1e-9)


def test_result_does_not_depend_on_the_guide(device):
    frame, references, mask = case((48, 48))
    other = speckles((48, 48), (1.8, -2.2))
    a = fitted(device, frame, references, mask, guide=frame)
    b = fitted(device, frame, references, mask, guide=other)
    for name in NUMBERS:
        assert_allclose(a[name], b[name], rtol=1e-9, atol=1e-10)


def test_without_search_it_walks_to_the_nearest_minimum(device):
    frame, references, mask = case((36, 36), offsets=[(0.4, 0.3), (1.7, -1.1), (3.2, 2.4)])
    fits = fitted(device, frame, references, mask, search=0, background=False)
    for fit, reference in zip(fits, references, strict=True):
        best, _ = oracles.registration(frame, reference, mask, (0, 0, 1))
        assert_allclose([fit["x"], fit["y"]], best[:2], atol=1e-7)


def test_a_background_moves_nothing(device):
    frame, references, mask = case((40, 41))
    plain = fitted(device, frame, references, mask)
    lifted = fitted(device, frame - 80.0, references + 300.0, mask)
    for name in NUMBERS:
        assert_allclose(plain[name], lifted[name], rtol=1e-6, atol=1e-8)


def test_noise_free_shift_is_recovered_exactly(device):
    shape = (45, 51)
    frame = speckles(shape)
    shifts = [(0.3, 0.7), (-0.61, 0.02)]
    references = np.array([2.5 * oracles.fourier_shift(frame, s) for s in shifts])
    fits = fitted(device, frame, references)
    assert_allclose(np.stack([fits["y"], fits["x"]], 1), shifts, atol=1e-9)
    assert_allclose(fits["beta"], 2.5, rtol=1e-12)
    assert (fits["residual"] < 1e-5 * frame.max()).all()


def test_unusable_images_are_left_out(device):
    frame, references, mask = case((32, 32))
    references = references.copy()
    references[1, 3, 3] = np.nan
    plan = Registration(device.array(references), mask)
    fits = plan.fit(device.array(frame))
    assert list(fits["status"] == LEFT_OUT) == [False, True, False, False, False]
    assert np.isnan(fits["x"][1])
    clean = fitted(device, frame, np.delete(references, 1, 0), mask)
    assert_same(np.delete(fits, 1), clean, device)
    frames = np.stack([np.full((32, 32), np.nan), frame])
    both = plan.fit_many(device.array(frames))
    assert (both["status"][0] == LEFT_OUT).all()
    assert_same(both[1], fits, device)
    assert (plan.fit_many(device.array(frames[:1]))["status"] == LEFT_OUT).all()
    assert plan.fit_many(device.array(frames[:0])).shape == (0, 5)


def test_negative_brightness_is_reported_not_returned_as_converged(device):
    frame, _, mask = case((32, 32), noise=0)
    fits = fitted(device, frame, -frame[None], mask)
    assert fits["status"][0] != CONVERGED or fits["beta"][0] > 0


def test_what_is_zero_is_not_moved(device):
    frame, references, mask = case((16, 17))
    images = np.stack([references[0], np.zeros_like(frame)])
    plan = Registration(device.array(images), mask)
    fits = plan.fit_many(device.array(np.stack([frame, np.zeros_like(frame)])))
    assert fits["status"].tolist() == [[CONVERGED, NOT_CONVERGED], [NOT_CONVERGED] * 2]
    for name in ("x", "y", "beta"):
        assert not fits[name][[0, 1, 1], [1, 0, 1]].any()
    total = np.sum(mask**2 * (images[0] - np.average(images[0], weights=mask**2)) ** 2)
    assert fits["residual"][1] == pytest.approx([np.sqrt(total / np.sum(mask**2)), 0])


@pytest.mark.parametrize("search", [6.0, 0.0])
@pytest.mark.parametrize("shape", [(20, 24), (21, 25)])
def test_devices_agree_on_hard_cases(shape, search, device):
    """Noise alone, another image, shifts out of the box: same minima, status and steps."""
    rng = np.random.default_rng(11)
    frames = np.stack([speckles(shape, s) + rng.normal(0, 5, shape) for s in ((0, 0), (0.4, -3))])
    references = np.stack(
        [speckles(shape, o) for o in ((2.1, -2.2), (5, -5), (-4.2, 0.3))]
        + [speckles(shape, seed=9), np.zeros(shape), -frames[0], rng.normal(size=shape)]
    )
    mask = np.ones(shape)
    mask[9:12, 8:12] = 0
    guide = frames[0] if search else None
    expected = Registration(references, mask, guide=guide, search=search).fit_many(frames)
    more = {"guide": device.put(guide), "search": search}
    plan = Registration(device.array(references), device.array(mask), **more)
    fits = plan.fit_many(device.array(frames))
    assert {NOT_CONVERGED, CONVERGED} == set(expected["status"].ravel())
    assert_array_equal(fits["status"], expected["status"])
    good = expected["status"] == CONVERGED
    for name in FIT_DTYPE.names[:-1]:
        close = {"rtol": 1e-9, "atol": tolerances.REGISTRATION_PX}
        assert_allclose(fits[name][good], expected[name][good], **close)
    assert_same(plan.fit(device.array(frames[1])), fits[1], device)


@pytest.mark.parametrize("shape", [(7, 410), (12, 70), (2, 3)])
def test_contraction_is_the_sum_over_frequencies(shape, device):
    """Of any complex numbers, and of more columns than a block has threads."""
    rng = np.random.default_rng(3)
    ny, nh = shape[0], shape[1] // 2 + 1
    g, f = (rng.normal(size=(2, ny, nh)) + 1j * rng.normal(size=(2, ny, nh)) for _ in range(2))
    ops = _registration_cuda if device.is_gpu else _registration_cpu
    which, of_frame = np.array([0, 1, 1]), np.array([1, 1, 0])
    t = np.array([-0.7, 0.2, 0.9])
    for half_width in (2.3, 4.6):
        y, x = (
            PhaseSeries.of_axis(n, half_width, half_spectrum=h)
            for n, h in zip(shape, (False, True), strict=True)
        )
        packed = [ops.pack(device.array(a)) for a in (g, f)]
        series = device.get(
            ops.contract(packed[0], which, packed[1], of_frame, ops.tables(y, x), 0.5, 3)
        )
        basis = np.cos(np.outer(np.arccos(t), np.arange(y.terms)))
        found = basis @ series @ basis.T
        phase_y, phase_x, _ = phases(half_width * np.stack([t, t], axis=1), shape)
        twice = np.where((np.arange(nh) > 0) & (2 * np.arange(nh) != shape[1]), 2.0, 1.0)
        product = g[which].conj() * f[of_frame] * twice
        expected = 0.5 * np.einsum("pyx,iy,jx->pij", product, phase_y, phase_x).real
        assert_allclose(found, expected, atol=1e-11)


def test_batches_change_nothing(device):
    frame, references, mask = case((24, 27))
    frames = np.stack([frame + k for k in range(3)] + [np.roll(frame, 4, 0)])
    plan = Registration(device.array(references), mask)
    fits = []
    for plan._batch_size in (1, 3, 100):
        fits.append(plan.fit_many(device.array(frames)))
    assert_same(fits[0], fits[1], device)
    assert_same(fits[0], fits[2], device)


@pytest.mark.parametrize("device", ["host-forward", "cuda"], indirect=True)
@pytest.mark.slow
def test_full_memory_halves_the_frames_of_a_fit(device):
    frame, references, mask = case((24, 27))
    frames = device.array(np.stack([np.roll(frame, k, 0) for k in range(-4, 4)]))
    plan, pool = Registration(device.array(references), mask), device.cupy.get_default_memory_pool()
    whole, sizes, batch = plan.fit_many(frames), [], plan._fit_batch

    def counted(part, *rest):
        sizes.append(len(part))
        batch(part, *rest)

    plan._fit_batch = counted
    plan.fit_many(frames)
    assert sizes == [8]
    try:
        for allowed in 2 ** np.arange(22, 9, -1):
            sizes.clear()
            pool.set_limit(size=0)
            taken = device.leave_memory(allowed)
            assert_same(plan.fit_many(frames), whole, device)
            if sizes[-1] == 1:
                break
            del taken
    except DeviceMemoryError as problem:
        assert sizes[-1] == 1 and str(problem).startswith("align_refs: the GPU's memory is full")
    finally:
        pool.set_limit(size=0)
    assert list(dict.fromkeys(sizes)) == [8, 4, 2, 1]


def test_uncertainties_match_the_scatter_of_many_fits():
    """White noise on the references only, which is what the least-squares formula assumes."""
    shape, noise, n = (40, 40), 3.0, 200
    rng = np.random.default_rng(5)
    frame = speckles(shape)
    references = speckles(shape, (0.3, 0.2)) + rng.normal(0, noise, (n, *shape))
    fits = Registration(references).fit(frame)
    for name in ("x", "y", "beta"):
        ratio = fits[name].std() / fits[f"{name}_err"].mean()
        assert 0.85 < ratio < 1.15, name  # 200 fits tell a scatter to 5%


def test_series_reproduce_the_phases():
    t = np.linspace(-1, 1, 41)
    for size in (16, 17):
        series = PhaseSeries.of_axis(size, 0.8, half_spectrum=False)
        basis = np.cos(np.outer(np.arccos(t), np.arange(series.terms)))
        for k in range(size // 2 + 1):
            phase = series.even[k] @ basis[:, 0::2].T - 1j * (series.odd[k] @ basis[:, 1::2].T)
            expected = np.exp(-2j * np.pi * k * 0.8 * t / size)
            if 2 * k == size:
                expected = expected.real
            assert_allclose(phase, expected, atol=1e-14)
        assert_allclose(series.sine @ basis.T, np.sin(np.pi * 0.8 * t), atol=1e-14)


def test_errors():
    references = np.zeros((2, 8, 8))
    for text, mask in (
        ("mask has shape", np.ones((8, 9))),
        ("no more than three pixels", np.zeros((8, 8))),
    ):
        with pytest.raises(InputError, match=text):
            Registration(references, mask)
    with pytest.raises(InputError, match="frame has shape"):
        Registration(references).fit(np.zeros((9, 8)))


def test_propagated_uncertainties_match_the_scatter_of_noisy_images():
    """Noise in frame and references, brighter where they are, and speckles that do not fit."""
    shape, n, draws = (40, 44), 60, 6
    rng = np.random.default_rng(7)
    mask = np.ones(shape)
    mask[18:22, 20:24] = 0
    frame = speckles(shape)
    clean = 1.4 * speckles(shape, (0.3, -0.4)) + 0.5 * speckles(shape, (2, 3), seed=9)
    reference_error, frame_error = (np.sqrt(1 + 0.02 * np.abs(i)) for i in (clean, frame))
    pulls = []
    for _ in range(draws):
        references = clean + rng.normal(size=(n, *shape)) * reference_error
        plan = Registration(references, mask)
        groups = np.zeros(n, int)
        given = np.repeat(clean[None], n, 0), reference_error[None], groups, frame, frame_error
        plan.propagate(*given)
        truth = Registration(clean[None], mask).fit(frame)[0]
        for _ in range(draws):
            fits = plan.fit(frame + rng.normal(size=shape) * frame_error)
            pulls.append([(fits[k] - truth[k]) / fits[f"{k}_err"] for k in ("x", "y", "beta")])
    spread = np.sqrt(np.mean(np.array(pulls) ** 2, axis=(0, 2)))
    assert ((spread > 0.8) & (spread < 1.2)).all(), spread


def test_host_and_device_are_not_mixed(device):
    if not device.is_gpu:
        pytest.skip("there is one place only")
    images = np.stack([speckles((9, 10))] * 2)
    plan = Registration(device.array(images))
    with pytest.raises(TypeError, match="same device"):
        plan.fit_many(images)
    with pytest.raises(TypeError, match="mixed"):
        Registration(device.array(images), guide=images[0])
