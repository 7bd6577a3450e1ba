"""Correlated speckles against their scatter in random fields."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from gpucoron.core.stack import IntegrationStack
from gpucoron.steps.resample import resample
from gpucoron.steps.speckle_correlation import (
    box_factors,
    measured_correlation,
    turned_correlation,
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


def test_rolls_displace_speckles_by_the_turn():
    correlation = np.maximum(1 - np.arange(17) / 4.0, 0)
    turn = np.deg2rad(10.0)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) - np.eye(2)
    found = turned_correlation(correlation, turned, (5, 41), (20.0, 2.0))
    assert found[2, 20] == 1.0
    assert found[2, 30] == pytest.approx(1 - 20 * np.sin(turn / 2) / 4)


@pytest.mark.parametrize("angles, width", [((0.0, 10.0), 1.5), ((0.0, 0.0), 1.5), ((5, -25), 2.5)])
def test_errors_of_speckles_are_their_scatter(angles, width):
    """The same speckles in all rolls: pixels, and means over 4 x 4, of 40 realisations."""
    rng, shape = np.random.default_rng(5), (64, 64)
    y, x = np.indices(shape) - 31.5
    maps = []
    for angle in np.deg2rad(angles):
        maps.append(
            np.stack(
                [
                    x * np.cos(angle) - y * np.sin(angle) + 39.5,
                    x * np.sin(angle) + y * np.cos(angle) + 39.5,
                ],
                axis=2,
            )
        )
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
