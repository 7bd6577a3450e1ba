import numpy as np
import pytest

from gpucoron.errors import InputError
from gpucoron.ops.median import median
from tests import oracles
from tests.scenes import read_only


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 10, 47, 48, 49, 50, 131])
def test_equals_the_oracle_bit_for_bit(n, dtype):
    rng = np.random.default_rng(n)
    images = rng.normal(100, 30, (n, 7, 71)).astype(dtype)
    images[rng.random(images.shape) < 0.1] = np.nan
    images[:, 2, :5] = np.nan
    good = rng.random(images.shape) < 0.8
    read_only(images, good)
    np.testing.assert_array_equal(median(images, good), oracles.median(images, good))


@pytest.mark.parametrize("n", [5, 64, 2000])
def test_equals_numpy(n):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 50, (n, 3, 65)).astype(np.float32)  # many ties
    np.testing.assert_array_equal(median(images), np.median(images, axis=0))


def test_infinities_are_ordered_and_sorted_input_is_no_trap():
    images = np.sort(np.random.default_rng(2).normal(size=(100, 2, 66)), axis=0)
    images[-1, 0, 0], images[0, 0, 1] = np.inf, -np.inf
    np.testing.assert_array_equal(median(images), np.median(images, axis=0))


@pytest.mark.parametrize("images, good, text", [
    (np.zeros((3, 3)), None, r"shape \(3, 3\), expected \(n, ny, nx\)"),
    (np.zeros((0, 3, 3)), None, "n > 0"),
    (np.zeros((2, 3, 3), int), None, "dtype int64"),
    (np.zeros((2, 3, 3)), np.ones((3, 3), bool), r"good has shape \(3, 3\)"),
])
def test_errors_say_what_was_found(images, good, text):
    with pytest.raises(InputError, match=text):
        median(images, good)
