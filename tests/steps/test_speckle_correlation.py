"""Correlated speckles against their scatter in random fields."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from gpucoron.core.stack import IntegrationStack
from gpucoron.steps.resample import resample
from gpucoron.steps.speckle_correlation import (
    Speckles,
    box_factors,
    common_correlation,
    measured_correlation,
)

SIZE = 96


def speckles(rng, width, shape=(SIZE, SIZE)):
    """A field of variance 1 with the correlation ``exp(-d^2 / (4 width^2))``."""
    white = rng.normal(size=tuple(n + 40 for n in shape))
    return gaussian_filter(white, width)[20:-20, 20:-20] * 2 * np.sqrt(np.pi) * width


def boxes(image, side=4):
    ny, nx = (n // side for n in image.shape)
    cut = image[: ny * side, : nx * side].reshape(ny, side, nx, side)
    return cut.swapaxes(1, 2).reshape(ny, nx, -1)


@pytest.mark.parametrize("width", [1.0, 1.7, 3.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_correlation_is_that_of_the_field(width, seed):
    """Beside noise of a tenth of its variance, and in half of the image; with a planet."""
    rng = np.random.default_rng(seed)
    variance = np.ones((SIZE, SIZE))
    variance[:, : SIZE // 2] = 1e-4
    noise = np.sqrt(0.1)
    data = np.sqrt(variance) * speckles(rng, width) + noise * rng.normal(size=variance.shape)
    data[40:43, 70:73] += 50
    data[10, 10] = np.nan
    found = measured_correlation(data, np.sqrt(variance + noise**2), variance)
    lags = np.arange(7)
    expected = np.exp(-(lags**2) / (4 * width**2))
    assert found[0] == 1.0 and np.all(np.diff(found) <= 0) and found.min() >= 0
    np.testing.assert_allclose(found[:7], expected, atol=0.17)  # worst seen 0.143: few speckles


def test_without_speckles_nothing_is_correlated():
    plane = np.random.default_rng(1).normal(size=(30, 32))
    found = measured_correlation(plane, np.ones_like(plane), np.zeros_like(plane))
    assert found.tolist() == [1.0] + [0.0] * 16
    assert all(factor == pytest.approx(1.0) for _, factor in box_factors(found, (1, 4)))


@pytest.mark.parametrize("width", [1.0, 2.0])
def test_box_factors_are_direct_sums(width):
    lags = np.arange(17)
    correlation = np.exp(-(lags**2) / (4 * width**2))
    places = np.argwhere(np.ones((4, 4)))
    distances = np.hypot(*(places[:, None] - places).transpose(2, 0, 1))
    direct = np.sqrt(np.interp(distances, lags, correlation).sum()) / 4
    factors = dict(box_factors(correlation, (1, 4, 16)))
    assert factors[1] == pytest.approx(1.0)
    assert factors[4] == pytest.approx(direct, rel=1e-12)
    assert factors[16] < factors[0] < factors[16] * 1.5


def turn_by(degrees):
    turn = np.deg2rad(degrees)
    return np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])


def turned_images(rng, pattern, angles, center):
    """The pattern of the detector in two images that are turned about its middle, with noise."""
    y, x = np.indices((SIZE, SIZE)) - np.reshape(center[::-1], (2, 1, 1))
    images = []
    for angle in angles:
        (a, b), (c, d) = turn_by(angle)
        at = [c * x + d * y + pattern.shape[0] / 2, a * x + b * y + pattern.shape[1] / 2]
        images.append(map_coordinates(pattern, at, order=3) + 0.3 * rng.normal(size=y.shape))
    return images


def test_rolls_have_speckles_in_common_near_the_star():
    """As far as the turn displaces them by less than their width; sources do not count."""
    width, center, angles = 2.0, (45.0, 50.0), (4.0, -8.0)
    y, x = np.indices((SIZE, SIZE))
    distance = np.hypot(x - center[0], y - center[1])
    displaced = 2 * np.sin(np.deg2rad(12.0) / 2) * distance
    expected = np.exp(-(displaced**2) / (4 * width**2))
    found = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        images = turned_images(rng, speckles(rng, width, (2 * SIZE, 2 * SIZE)), angles, center)
        for image in images:
            image[15:19, 60:64] += 200.0
            image[0, 3] = np.nan
        parts = [
            Speckles.of(image, np.full_like(image, 0.09), np.ones_like(image), turn_by(angle))
            for image, angle in zip(images, angles, strict=True)
        ]
        found.append(common_correlation(*parts, center))
        np.testing.assert_allclose(found[-1], common_correlation(*parts[::-1], center), atol=1e-12)
    assert np.min(found) >= 0 and np.max(found) <= 1
    mean = np.mean(found, axis=0)  # with one speckle within 5 px a single one is off by 0.6
    assert abs(mean - expected)[distance < 45].max() < 0.25


def test_independent_speckles_have_nothing_in_common():
    rng = np.random.default_rng(4)
    parts = [
        Speckles.of(
            speckles(rng, 1.5), np.full((SIZE, SIZE), 0.1), np.ones((SIZE, SIZE)), turn_by(a)
        )
        for a in (0.0, 10.0)
    ]
    y, x = np.indices((SIZE, SIZE)) - 48.0
    assert common_correlation(*parts, (48.0, 48.0))[np.hypot(y, x) < 45].mean() < 0.1


def roll_maps(angles, shape):
    """Pixel maps of images turned about their middle, which comes to 39.5, 39.5."""
    y, x = np.indices(shape) - (shape[0] - 1) / 2
    turns = np.deg2rad(angles)
    return [
        np.stack([x * np.cos(t) - y * np.sin(t), x * np.sin(t) + y * np.cos(t)], axis=2) + 39.5
        for t in turns
    ]


def test_errors_on_each_device(device):
    """Two rolls with the same speckles, of one and two integrations, with bad pixels."""
    rng, shape = np.random.default_rng(9), (64, 64)
    field = 2 * speckles(rng, 1.7, shape)
    stacks = []
    for n in (1, 2):
        data = (field + 0.3 * rng.normal(size=(n, *shape))).astype(np.float32)
        dq = (rng.random(data.shape) < 0.01).astype(np.uint32)
        data[dq > 0] = np.nan
        noise, of_speckles = (np.full(data.shape, v, np.float32) for v in (0.09, 4.0))
        stack = IntegrationStack(
            data, np.sqrt(noise), dq, var_rnoise=noise, var_speckle=of_speckles
        )
        stacks.append(stack)
    arguments = stacks, roll_maps((0.0, 10.0), shape), (80, 80)
    wanted = resample(*arguments, center=(39.5, 39.5))
    found = device.call(resample, *arguments, center=(39.5, 39.5))
    for name in ("err", "var_speckle"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-5)
    assert dict(found.speckle_correlation)[4] == pytest.approx(
        dict(wanted.speckle_correlation)[4], rel=1e-5
    )


@pytest.mark.parametrize("angles, width", [((0.0, 10.0), 1.5), ((0.0, 0.0), 1.5), ((5, -25), 2.5)])
def test_errors_of_speckles_are_their_scatter(angles, width):
    """The same speckles in all rolls: pixels, and means over 4 x 4, of 40 realisations."""
    rng, shape = np.random.default_rng(5), (64, 64)
    maps = roll_maps(angles, shape)
    variance = np.full((1, *shape), 4.0, np.float32)
    small = np.full((1, *shape), 0.01, np.float32)
    pulls, means = [], []
    for _ in range(40):
        field = 2 * speckles(rng, width, shape)
        stacks = [
            IntegrationStack(
                (field + 0.1 * rng.normal(size=variance.shape)).astype(np.float32),
                np.sqrt(variance + small),
                np.zeros(variance.shape, np.uint32),
                var_rnoise=small,
                var_speckle=variance,
            )
            for _ in maps
        ]
        found = resample(stacks, maps, (80, 80), center=(39.5, 39.5))
        part = np.s_[20:60, 20:60]
        pulls.append(found.data[part] / found.err[part])
        error = found.error_of_mean(boxes(found.err[part]), boxes(found.var_speckle[part]))
        means.append(boxes(found.data[part].astype(float)).mean(axis=2) / error)
    assert np.std(pulls) == pytest.approx(1.0, abs=0.12)
    assert np.std(means) == pytest.approx(1.0, abs=0.15)
