import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import fourier_shift as scipy_phases

from gpucoron.errors import InputError
from gpucoron.ops.fourier_shift import (
    fourier_shift,
    gradient,
    multiply_phases,
    shift_spectra,
    shift_variances,
    spectra,
)
from tests.helpers import oracles, tolerances
from tests.helpers.scenes import read_only, speckles

SHAPES = [(20, 30), (21, 30), (20, 31), (21, 31), (8, 5), (2, 2)]


def shifted(device, images, shifts):
    return device.call(fourier_shift, images, np.asarray(shifts))


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_direct_sum_and_scipy(shape, device):
    rng = np.random.default_rng(0)
    images, shifts = rng.normal(0, 100, (4, *shape)), rng.uniform(-3, 3, (4, 2))
    shifts[1] = 2, -1
    read_only(images, shifts)
    out = shifted(device, images, shifts)
    for image, shift, result in zip(images, shifts, out, strict=True):
        full = np.fft.ifftn(scipy_phases(np.fft.fftn(image), shift)).real
        assert_allclose(result, full, atol=tolerances.SHIFT_ABS)
        assert_allclose(result, oracles.fourier_shift(image, shift), atol=tolerances.SHIFT_ABS)
    assert_allclose(out[1], np.roll(images[1], (2, -1), (0, 1)), atol=1e-10)


def test_float32_input_is_shifted_in_double(device):
    image = speckles((64, 64))[None].astype(np.float32)
    out = shifted(device, image, [[0.25, 0.25]])
    assert out.dtype == np.float64
    assert_array_equal(out, shifted(device, image.astype(float), [[0.25, 0.25]]))


@pytest.mark.parametrize("shape", SHAPES)
def test_shifted_spectra_belong_to_real_images(shape, device):
    """Hermitian where a complex-to-real transform would not look: both Nyquist columns, too."""
    rng = np.random.default_rng(2)
    images, shifts = rng.normal(size=(3, *shape)), rng.uniform(-5, 5, (3, 2))
    both = device.get(multiply_phases(spectra(device.array(images)), shifts, shape))
    back = np.fft.rfft2(np.fft.irfft2(both, s=shape))
    assert_allclose(both, back, atol=1e-12)
    moved = [oracles.fourier_shift(i, s) for i, s in zip(images, shifts, strict=True)]
    assert_allclose(both, np.fft.rfft2(moved), atol=1e-11)


@pytest.mark.parametrize("places, dtype", [("123", "f8"), ("135", "f8"), ("123", "f4")])
def test_part_of_the_spectra_into_any_array(device, places, dtype):
    """Non-contiguous input, host shifts, and `out` beside what must stay as it is."""
    rng = np.random.default_rng(3)
    images, shifts = rng.normal(size=(5, 9, 12)), rng.uniform(-2, 2, (5, 2))
    whole, places = shifted(device, images, shifts), list(map(int, places))
    room = device.array(np.zeros((6, 9, 12), dtype))
    out = room[1 : places[-1] + 1 : places[1] - 1]
    of_images = spectra(device.array(images))
    assert shift_spectra(of_images[::2], shifts[::2], (9, 12), out) is out
    assert_array_equal(device.get(room)[places], whole[::2].astype(dtype))
    assert not np.delete(device.get(room), places, axis=0).any()
    assert device.get(shift_spectra(of_images[:0], shifts[:0], (9, 12))).shape == (0, 9, 12)


@pytest.mark.parametrize("shape", [(16, 18), (17, 18), (16, 19)])
def test_gradient_is_a_small_shift(shape, device):
    image = speckles(shape)
    along_y, along_x = device.get(gradient(device.array(image)))
    step = 1e-5
    for k, found in enumerate((along_y, along_x)):
        shift = np.where(np.arange(2) == k, step, 0.0)
        expected = oracles.fourier_shift(image, -shift) - oracles.fourier_shift(image, shift)
        assert_allclose(found, expected / (2 * step), atol=1e-5)


def test_large_stacks_go_in_parts(device, monkeypatch):
    monkeypatch.setattr("gpucoron.ops.cuda.fourier_shift.PLANES", 2)
    rng = np.random.default_rng(4)
    images, shifts = rng.normal(size=(5, 6, 7)), rng.uniform(-2, 2, (5, 2))
    expected = [oracles.fourier_shift(i, s) for i, s in zip(images, shifts, strict=True)]
    assert_allclose(shifted(device, images, shifts), expected, atol=1e-12)


def test_errors(device):
    image = np.zeros((2, 8, 8))
    with pytest.raises(InputError, match="shifts have shape"):
        shifted(device, image, np.zeros((1, 2)))
    with pytest.raises(InputError, match="image or shift 1 is not finite"):
        shifted(device, np.where(np.indices(image.shape)[0] == 1, np.nan, image), np.zeros((2, 2)))
    with pytest.raises(InputError, match="image or shift 1 is not finite"):
        shifted(device, image, [[0, 0], [np.inf, 0]])


@pytest.mark.parametrize("shape", [(9, 11), (12, 10), (8, 7)])
def test_variances_of_shifted_noise_are_direct_sums(device, shape):
    """Each pixel's noise is shifted by itself, squared, and added with its variance."""
    rng = np.random.default_rng(4)
    variances, shifts = rng.uniform(0.5, 4.0, (2, *shape)), np.array([(0.3, -1.6), (2.0, 0.5)])
    found = device.get(shift_variances(device.array(variances), shifts))
    units = np.eye(variances[0].size).reshape(-1, *shape)
    for plane, variance, shift in zip(found, variances, shifts, strict=True):
        spread = fourier_shift(units, np.tile(shift, (len(units), 1))) ** 2
        expected = np.tensordot(variance.ravel(), spread, 1)
        even = all(n % 2 == 0 for n in shape)
        assert_allclose(plane, expected, rtol=0.05 if even else 1e-9)
