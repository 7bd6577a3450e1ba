import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpucoron.errors import InputError
from gpucoron.ops.kriging import FAR, NEAR, correlation_of, joint_spread, krige
from gpucoron.ops.kriging_tables import finest_correlation
from tests.helpers import oracles, tolerances
from tests.helpers.scenes import read_only
from tests.ops.test_bad_pixels import diffraction_limited


def punched(seed, cutoff, size=3, noise=0.5):
    """An image with square holes, its truth, and the error planes."""
    truth = diffraction_limited(shape=(64, 60), cutoff=cutoff, seed=seed)[0]
    image = truth + np.random.default_rng(seed + 100).normal(0, noise, truth.shape)
    usable = np.ones(truth.shape, dtype=bool)
    for y in range(8, 52, 13):
        for x in range(8, 48, 13):
            usable[y : y + size, x : x + size] = False
    return (*read_only(np.where(usable, image, np.nan), usable, np.full(truth.shape, noise)), truth)


@pytest.mark.parametrize("cutoff", [0.2, 0.3, 0.42])
def test_the_measured_correlation_is_that_of_the_spectrum(cutoff):
    """An image of finite size scatters about it: mean of twenty, worst seen 0.03."""
    images = diffraction_limited(20, (96, 80), cutoff)
    measured = np.mean([correlation_of(image) for image in images], axis=0)
    k = np.linspace(0, cutoff, 4001)
    u = k / cutoff
    mtf = 2 / np.pi * (np.arccos(u) - u * np.sqrt(1 - u * u))
    angles = (np.arange(200) + 0.5) * np.pi / 200
    for square in (1, 2, 4, 9, 25):
        waves = np.cos(2 * np.pi * np.sqrt(square) * k[:, None] * np.cos(angles)).mean(axis=1)
        expected = np.sum(mtf**2 * k * waves) / np.sum(mtf**2 * k)
        assert measured[square] == pytest.approx(expected, abs=0.05)
    assert measured[0] == 1


def test_white_noise_does_not_count():
    image = diffraction_limited(1, (96, 96), 0.25)[0]
    noisy = image + np.random.default_rng(1).normal(0, 10, image.shape)
    assert_allclose(correlation_of(noisy)[:10], correlation_of(image)[:10], atol=0.05)


def test_an_image_that_shows_nothing_has_the_finest_structure():
    table = correlation_of(np.full((20, 21), 3.0))
    assert np.isfinite(table).all() and table[0] == 1 and 0.4 < table[1] < 0.9


@pytest.mark.parametrize("cutoff, left", [(0.25, 0.1), (0.4, 0.6)])
def test_knowing_the_correlation_helps_and_so_do_far_neighbours(cutoff, left):
    rms = {"finest": [], "measured": [], "far": []}
    pulls = []
    for seed in range(4):
        image, usable, err, truth = punched(seed, cutoff)
        y, x = np.nonzero(~usable)
        known = correlation_of(truth)
        for name, options in (
            ("finest", {}),
            ("measured", {"correlation": known}),
            ("far", {"correlation": known, "reach": FAR}),
        ):
            values, variances = krige(np.where(usable, image, 0), usable, err, y, x, **options)
            rms[name].append(np.mean((values - truth[y, x]) ** 2))
        pulls.append(np.mean((values - truth[y, x]) ** 2 / variances))
    rms = {name: np.sqrt(np.mean(squares)) for name, squares in rms.items()}
    assert rms["measured"] < 0.8 * rms["finest"]
    assert rms["far"] < min(left * rms["finest"], rms["measured"])
    assert 0.4 < np.sqrt(np.mean(pulls)) < 1.5  # 0.57 and 0.94: the noise floor is cautious


def with_gaps(seed=0, shape=(17, 23), noise=1.0):
    """An image, which of its pixels are usable, errors, and pixels to predict."""
    rng = np.random.default_rng(seed)
    image = diffraction_limited(1, shape, seed=seed)[0] + rng.normal(0, noise, shape)
    err = rng.uniform(0.5, 1.5, shape) * noise
    err[3, 4:8] = np.nan, np.inf, 0.0, 5.0
    usable = rng.random(shape) < 0.8
    usable[8:16, 10:19] = False
    usable[11, 14] = True  # alone
    image[~usable & (rng.random(shape) < 0.5)] = np.nan
    y, x = (np.ravel(a) for a in np.mgrid[: shape[0] : 2, : shape[1] : 3])
    y, x = np.append(y, [12, shape[0] - 1]), np.append(x, [14, shape[1] - 1])
    return read_only(image, usable, err, y, x)


def check(device, arrays, correlation=None, reach=NEAR):
    table = finest_correlation() if correlation is None else correlation
    expected = oracles.krige(*arrays, table, reach)
    for got, want in zip(device.call(krige, *arrays, correlation, reach), expected, strict=True):
        assert_allclose(got, want, rtol=tolerances.KRIGING_REL, atol=1e-12)
    return expected


@pytest.mark.parametrize("reach", [1, NEAR, 5, FAR])
def test_equals_the_oracle(device, reach):
    values, variances = check(device, with_gaps(), reach=reach)
    assert np.isnan(values).any() == (reach <= NEAR)  # the pixels round the one alone
    assert np.nanmax(variances) > 10 * np.nanmin(variances)


@pytest.mark.parametrize("noise", [1e-6, 30.0, 1e4])
def test_from_no_noise_to_nothing_but_noise(device, noise):
    check(device, with_gaps(seed=1, noise=noise))


def test_a_measured_correlation(device):
    image = read_only(diffraction_limited(1, (64, 64))[0])
    table = device.call(correlation_of, image)
    assert_array_equal(table, correlation_of(image))
    check(device, with_gaps(seed=2), table)


def test_one_value_everywhere_is_predicted_without_variance(device):
    image, usable, err, y, x = with_gaps()
    flat = np.full_like(image, 7.0)
    values, variances = device.call(krige, flat, usable, np.zeros_like(err), y, x)
    known = ~np.isnan(values)
    assert (values[known] == 7).all() and (variances[known] == 0).all()


def test_float32_images_and_nothing_to_do(device):
    image, usable, err, y, x = with_gaps(seed=3)
    single = image.astype(np.float32), usable, err.astype(np.float32), y, x
    check(device, single)
    none = np.zeros(0, np.int64)
    assert all(a.shape == (0,) for a in device.call(krige, image, usable, err, none, none))


def test_joint_spread_is_the_sum_over_neighbours(device):
    table = np.where(finest_correlation() > 0.1, finest_correlation(), -0.1)  # which counts as 0
    spread = np.where(np.random.default_rng(4).random((9, 11)) < 0.3, 2.0, 0.0)
    spread[2, 3] = np.nan
    found = device.call(joint_spread, read_only(spread), table)
    known = np.nan_to_num(spread)
    y, x = np.nonzero(known)
    square = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    near = np.where(square <= NEAR**2, np.maximum(table[square], 0), 0)
    expected = np.zeros_like(known)
    expected[y, x] = np.sqrt(known[y, x] * (near @ known[y, x]))
    assert_allclose(found, expected, rtol=1e-14)


def test_errors():
    with pytest.raises(InputError, match="finite"):
        correlation_of(np.full((5, 5), np.nan))
    with pytest.raises(InputError, match="shape"):
        correlation_of(np.zeros((1, 5, 5)))
