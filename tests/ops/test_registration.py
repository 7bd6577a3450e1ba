import numpy as np
import pytest

from gpucoron.errors import InputError
from gpucoron.ops.chebyshev import PhaseSeries
from gpucoron.ops.registration import CONVERGED, LEFT_OUT, Registration
from tests import oracles, tolerances
from tests.scenes import read_only, speckles

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


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("shape", [(32, 40), (33, 40), (32, 41), (33, 41)])
def test_finds_the_minimum_of_the_direct_objective(shape, background):
    frame, references, mask = case(shape)
    frame, references = frame + 40, references - 25
    fits = Registration(references, mask, guide=frame, background=background).fit(frame)
    assert (fits["status"] == CONVERGED).all()
    for fit, reference in zip(fits, references, strict=True):
        found = [fit["x"], fit["y"], fit["beta"]]
        best, cost = oracles.registration(frame, reference, mask, found + [0.0] * background)
        np.testing.assert_allclose(found, best[:3], atol=tolerances.REGISTRATION_PX)
        assert fit["residual"] ** 2 * np.sum(mask**2) == pytest.approx(cost, rel=1e-9)


@pytest.mark.parametrize("offset", [(5, -5), (-4.6, 3.3), (0.5, 4.5), (-5, 0)])
def test_large_offsets_are_found_with_and_without_a_guide(offset):
    frame, references, mask = case((64, 60), offsets=[offset])
    for guide in (frame, None):
        fit = Registration(references, mask, guide=guide).fit(frame)[0]
        assert fit["status"] == CONVERGED
        assert fit["y"] == pytest.approx(offset[0], abs=0.1)
        assert fit["x"] == pytest.approx(offset[1], abs=0.1)


def test_result_does_not_depend_on_the_guide():
    frame, references, mask = case((48, 48))
    other = speckles((48, 48), (1.8, -2.2))
    a = Registration(references, mask, guide=frame).fit(frame)
    b = Registration(references, mask, guide=other).fit(frame)
    for name in ("x", "y", "beta", "residual", "x_err"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-9, atol=1e-10)


def test_without_search_it_walks_to_the_nearest_minimum():
    frame, references, mask = case((48, 48), offsets=[(0.4, 0.3), (1.7, -1.1)])
    fits = Registration(references, mask, search=0, background=False).fit(frame)
    for fit, reference in zip(fits, references, strict=True):
        best, _ = oracles.registration(frame, reference, mask, (0, 0, 1))
        np.testing.assert_allclose([fit["x"], fit["y"]], best[:2], atol=1e-7)


def test_a_background_moves_nothing():
    frame, references, mask = case((40, 41))
    plain = Registration(references, mask).fit(frame)
    lifted = Registration(references + 300.0, mask).fit(frame - 80.0)
    for name in ("x", "y", "beta", "residual", "x_err"):
        np.testing.assert_allclose(plain[name], lifted[name], rtol=1e-6, atol=1e-8)


def test_noise_free_shift_is_recovered_exactly():
    shape = (45, 51)
    frame = speckles(shape)
    shifts = [(0.3, 0.7), (-0.61, 0.02)]
    references = np.array([2.5 * oracles.fourier_shift(frame, s) for s in shifts])
    fits = Registration(references).fit(frame)
    np.testing.assert_allclose(np.stack([fits["y"], fits["x"]], 1), shifts, atol=1e-9)
    np.testing.assert_allclose(fits["beta"], 2.5, rtol=1e-12)
    assert (fits["residual"] < 1e-5 * frame.max()).all()


def test_unusable_images_are_left_out():
    frame, references, mask = case((32, 32))
    references = references.copy()
    references[1, 3, 3] = np.nan
    plan = Registration(references, mask)
    fits = plan.fit(frame)
    assert list(fits["status"] == LEFT_OUT) == [False, True, False, False, False]
    assert np.isnan(fits["x"][1])
    clean = Registration(np.delete(references, 1, 0), mask).fit(frame)
    np.testing.assert_array_equal(np.delete(fits, 1), clean)
    assert (plan.fit(np.full((32, 32), np.nan))["status"] == LEFT_OUT).all()


def test_negative_brightness_is_reported_not_returned_as_converged():
    frame, _, mask = case((32, 32), noise=0)
    fits = Registration(-frame[None], mask).fit(frame)
    assert fits["status"][0] != CONVERGED or fits["beta"][0] > 0


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
            np.testing.assert_allclose(phase, expected, atol=1e-14)
        np.testing.assert_allclose(series.sine @ basis.T, np.sin(np.pi * 0.8 * t), atol=1e-14)


def test_errors():
    references = np.zeros((2, 8, 8))
    with pytest.raises(InputError, match="mask has shape"):
        Registration(references, np.ones((8, 9)))
    with pytest.raises(InputError, match="no more than three pixels"):
        Registration(references, np.zeros((8, 8)))
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
        plan.propagate(np.repeat(clean[None], n, 0), reference_error[None], np.zeros(n, int), frame,
                       frame_error)
        truth = Registration(clean[None], mask).fit(frame)[0]
        for _ in range(draws):
            fits = plan.fit(frame + rng.normal(size=shape) * frame_error)
            pulls.append([(fits[k] - truth[k]) / fits[f"{k}_err"] for k in ("x", "y", "beta")])
    spread = np.sqrt(np.mean(np.array(pulls) ** 2, axis=(0, 2)))
    assert ((spread > 0.8) & (spread < 1.2)).all(), spread
