import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gpucoron.core.stack import IntegrationStack
from gpucoron.steps import outlier_detection
from tests.helpers.scenes import read_only, speckles


def exposure(n=5, shape=(12, 13), seed=0):
    rng = np.random.default_rng(seed)
    data = rng.normal(100, 1, (n, *shape)).astype(np.float32)
    return data, np.ones_like(data), np.zeros(data.shape, np.uint32), np.full_like(data, 0.5)


def run(device, data, err, dq, var, **options):
    stack = IntegrationStack(*read_only(data, err, dq), var_rnoise=read_only(var))
    out = device.call(outlier_detection, stack, **options)
    assert out.stack.var_flat is None
    return out


def test_flags_only_what_stands_out(device):
    data, err, dq, var = exposure()
    data[2, 4, 5] += 50
    dq[1, 3, 3] = 1
    err[0, 6, 6] = np.nan
    dq[4, 1, 1] = 4  # JUMP_DET alone is no reason to leave a pixel out
    out = run(device, data, err, dq, var)
    assert out.flagged.tolist()[2] >= 1
    assert out.stack.dq[2, 4, 5] == 1 | 16
    assert out.stack.dq[1, 3, 3] == 1
    assert out.stack.dq[0, 6, 6] == 1  # no error, so no outlier; but NaN
    assert out.stack.dq[4, 1, 1] & 1 == 0 or abs(data[4, 1, 1] - out.median[1, 1]) > 5
    for array in (out.stack.data, out.stack.err, out.stack.var_rnoise):
        assert_array_equal(np.isnan(array), (out.stack.dq & 1) != 0)


def test_threshold_agrees_with_the_formula(device):
    data, err, dq, var = exposure(seed=3)
    err *= np.random.default_rng(4).uniform(0.1, 1, err.shape).astype(np.float32)
    out = run(device, data, err, dq, var, snr=3.0, preset="jwst")
    expected = np.abs(data - np.median(data, axis=0)) > np.float32(3.0) * err
    assert_array_equal((out.stack.dq & 16) != 0, expected)
    assert_array_equal(out.flagged, expected.sum(axis=(1, 2)))
    assert expected.any()


def test_of_one_or_two_integrations_only_the_one_that_is_hit_is_flagged(device):
    data, err, dq, var = exposure(n=2)
    data[0, 5, 5] += 100
    for n in (1, 2):
        found = run(device, *(a[:n].copy() for a in (data, err, dq, var)))
        assert np.argwhere(found.stack.dq & 16).tolist() == [[0, 5, 5]]
    two = run(device, data, err, dq, var, preset="jwst")
    assert two.flagged.tolist() == [1, 1]


@pytest.mark.parametrize("maskpt, expected", [(0.7, 100.0), (0.0, 400.0)])
def test_maskpt_zero_lets_bad_pixels_into_the_median(device, maskpt, expected):
    data, err, dq, var = exposure(n=3)
    data[:, 2, 2] = (100, 400, 500)
    dq[1:, 2, 2] = 1
    assert run(device, data, err, dq, var, maskpt=maskpt).median[2, 2] == expected


def test_an_exposure_without_a_good_pixel_passes(device):
    data, err, dq, var = exposure()
    dq[:] = 1
    out = run(device, data, err, dq, var)
    assert np.isnan(out.stack.data).all()


def test_a_star_that_moves_is_no_outlier_but_a_cosmic_ray_on_it_is(device):
    shape, n = (40, 41), 5
    rng = np.random.default_rng(8)
    moves = rng.normal(0, 0.03, (n, 2))
    clean = np.array([speckles(shape, m, brightness=50) for m in moves])
    err = np.sqrt(1 + clean.clip(0) * 0.02).astype(np.float32)
    data = (clean + rng.normal(size=clean.shape) * err).astype(np.float32)
    data[3, 20, 22] += 40 * err[3, 20, 22]
    data[3, 20, 23] += 15 * err[3, 20, 23]
    dq = np.zeros(data.shape, np.uint32)
    flags = {
        preset: (run(device, data, err, dq, err, preset=preset).stack.dq & 16) > 0
        for preset in ("jwst", None)
    }
    hit = np.zeros(data.shape, bool)
    hit[3, 20, 22:24] = True
    assert flags["jwst"][~hit].sum() > 100
    assert flags[None][~hit].sum() < 0.1 * flags["jwst"][~hit].sum()
    assert flags[None][hit].all()
