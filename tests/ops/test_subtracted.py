"""Passes over PSF-subtracted pixels: shifted models against scipy, sums against numpy's."""

import numpy as np
import pytest
import scipy.ndimage
from numpy.testing import assert_allclose, assert_array_equal

from gpucoron.ops.subtracted import mean_and_noise, subtract_moved, total_error
from tests.helpers.scenes import read_only


def images(seed, n=4, shape=(21, 19)):
    """Images with a few pixels that are not finite."""
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(n, *shape))
    data[rng.uniform(size=data.shape) < 0.05] = np.nan
    data[0, 3, 4], data[:, 7, 8] = np.inf, np.nan
    return data.astype(np.float32)


@pytest.mark.parametrize("shape", [(21, 19), (20, 18)])
def test_models_are_shifted_as_scipy_shifts(device, shape):
    rng = np.random.default_rng(3)
    data = images(3, shape=shape)
    moved, targets = rng.normal(size=(2, *data.shape))
    left = rng.normal(size=(3, *data.shape))
    left[:, :, :5] = np.nan  # outside of the zones
    offsets = rng.normal(0, 0.3, (len(data), 2))
    arrays = read_only(data, targets, moved)
    found = subtract_moved(
        *map(device.array, arrays), [device.array(planes) for planes in left], offsets
    )
    for planes, result in zip(left, map(device.get, found), strict=True):
        models = moved - np.where(np.isnan(planes), 0.0, planes)
        wanted = [
            target - np.fft.ifft2(scipy.ndimage.fourier_shift(np.fft.fft2(model), offset)).real
            for target, model, offset in zip(targets, models, offsets, strict=True)
        ]
        wanted = np.where(np.isfinite(data) & ~np.isnan(planes), wanted, np.nan)
        assert result.dtype == np.float32
        assert_allclose(result, wanted, atol=2e-6)


@pytest.mark.parametrize("lacking", [False, True])
def test_errors_are_the_root_of_all_variances(device, lacking):
    rng = np.random.default_rng(4)
    data = images(4)
    own, reference, speckle = rng.uniform(1, 2, (3, *data.shape)).astype(np.float32)
    own[~np.isfinite(data)] = 0.0  # where it does not matter
    if lacking:
        own[1, 2, 2], data[1, 2, 2] = 0.0, 1.0
    found, lacks = total_error(*map(device.array, read_only(data, own, reference, speckle)))
    wanted = np.where(np.isfinite(data), np.sqrt(own + reference + speckle), np.nan)
    assert lacks is lacking
    assert_allclose(device.get(found), wanted, rtol=1e-6)


def test_means_leave_out_what_is_not_finite(device):
    data = images(5)
    own = np.random.default_rng(5).uniform(1, 2, data.shape).astype(np.float32)
    mean, noise = map(device.get, mean_and_noise(*map(device.array, read_only(data, own))))
    known = np.where(np.isfinite(data), data, np.nan).astype(np.float64)
    count = np.isfinite(data).sum(axis=0)
    seen = count > 0
    assert_array_equal(np.isnan(mean), ~seen)
    assert_array_equal(np.isnan(noise), ~seen)
    assert_allclose(mean[seen], np.nanmean(known[:, seen], axis=0), rtol=1e-12)
    variance = np.where(np.isfinite(data), own, 0.0).astype(np.float64).sum(axis=0)
    assert_allclose(noise[seen], variance[seen] / count[seen] ** 2, rtol=1e-12)
