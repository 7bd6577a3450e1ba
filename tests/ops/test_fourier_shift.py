import numpy as np
import pytest
from scipy.ndimage import fourier_shift as scipy_phases

from gpucoron.errors import InputError
from gpucoron.ops.fourier_shift import fourier_shift
from tests import oracles, tolerances
from tests.scenes import read_only, speckles

SHAPES = [(20, 30), (21, 30), (20, 31), (21, 31), (8, 5), (2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_direct_sum_and_scipy(shape):
    rng = np.random.default_rng(0)
    images, shifts = read_only(rng.normal(0, 100, (4, *shape)), rng.uniform(-3, 3, (4, 2)))
    out = fourier_shift(images, shifts)
    for image, shift, result in zip(images, shifts, out, strict=True):
        full = np.fft.ifftn(scipy_phases(np.fft.fftn(image), shift)).real
        np.testing.assert_allclose(result, full, atol=tolerances.SHIFT_ABS)
        np.testing.assert_allclose(
            result, oracles.fourier_shift(image, shift), atol=tolerances.SHIFT_ABS)


@pytest.mark.parametrize("shape", SHAPES)
def test_whole_pixels_roll(shape):
    image = np.random.default_rng(1).normal(size=(1, *shape))
    out = fourier_shift(image, np.array([[2, -1]]))
    np.testing.assert_allclose(out[0], np.roll(image[0], (2, -1), (0, 1)), atol=1e-12)


def test_there_and_back_and_against_the_scene():
    image = speckles((65, 65))[None]
    there = fourier_shift(image, np.array([[0.37, -1.21]]))
    np.testing.assert_allclose(there[0], speckles((65, 65), (0.37, -1.21)), atol=0.02)
    back = fourier_shift(there, np.array([[-0.37, 1.21]]))
    np.testing.assert_allclose(back, image, atol=1e-10)


def test_float32_input_is_shifted_in_double():
    image = speckles((64, 64))[None].astype(np.float32)
    out = fourier_shift(image, np.array([[0.25, 0.25]]))
    assert out.dtype == np.float64
    np.testing.assert_array_equal(out, fourier_shift(image.astype(float), np.array([[0.25, 0.25]])))


def test_errors():
    image = np.zeros((2, 8, 8))
    with pytest.raises(InputError, match="shifts have shape"):
        fourier_shift(image, np.zeros((1, 2)))
    image[1, 3, 3] = np.nan
    with pytest.raises(InputError, match="image or shift 1 is not finite"):
        fourier_shift(image, np.zeros((2, 2)))
