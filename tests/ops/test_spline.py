"""Cubic splines of several images at once, against scipy's."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import map_coordinates

from gpucoron.ops.cpu.spline import cubic_spline
from tests.helpers.scenes import read_only


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", [(2, 2), (2, 7), (3, 3), (1, 6), (31, 40), (50, 37)])
def test_equals_scipy(seed, shape):
    """At places inside, at the rim, on pixels, and outside, where there is NaN."""
    rng = np.random.default_rng(seed)
    images = read_only(rng.normal(size=(3, *shape)) + 100 * rng.normal(size=(3, 1, 1)))
    size = np.array(shape)[:, None]
    places = rng.uniform(-0.1, 1.1, (2, 400)) * (size - 1)
    places = np.concatenate([places, rng.integers(0, size, (2, 60)), [[0, 0], [-1e-9, 0.0]]], 1)
    places = np.concatenate([places, np.broadcast_to(size - 1, (2, 2))], axis=1)
    y, x = places.reshape(2, 4, -1)
    missing = np.zeros(images.shape, bool)
    found = cubic_spline(images, missing, y, x)
    expected = np.array([map_coordinates(i, [y, x], order=3, cval=np.nan) for i in images])
    assert_array_equal(np.isnan(found), np.isnan(expected))
    assert_allclose(found, expected, rtol=0, atol=1e-12 * abs(images).max())


def test_what_is_made_up_is_nan_around():
    """One of the four pixels about a place is enough, and of the images that it is missing in."""
    images = np.arange(2 * 6 * 7.0).reshape(2, 6, 7)
    missing = np.zeros(images.shape, bool)
    missing[1, 2, 3] = True
    y, x = np.meshgrid(np.arange(5) + 0.5, np.arange(6) + 0.25, indexing="ij")
    lost = np.isnan(cubic_spline(images, missing, y, x))
    assert not lost[0].any()
    assert_array_equal(np.argwhere(lost[1]), [[1, 2], [1, 3], [2, 2], [2, 3]])
    on_pixel = cubic_spline(images, missing, np.array([[2.0, 2.0]]), np.array([[4.0, 3.0]]))
    assert_array_equal(np.isnan(on_pixel[:, 0]), [[False, False], [False, True]])
