import numpy as np
import pytest

from gpucoron.errors import InputError
from gpucoron.ops.outliers import sharp_outliers
from tests.ops.test_bad_pixels import diffraction_limited
from tests.scenes import read_only


def field(amplitude, seed=0, n=2, shape=(40, 40)):
    """A smooth change of the given rms, in units of the noise, and noise."""
    rng = np.random.default_rng(seed)
    smooth = diffraction_limited(n, shape, seed=seed) / 100 * amplitude
    return smooth + rng.normal(size=smooth.shape), np.ones(smooth.shape)


def run(difference, err, snr=5.0):
    candidates = np.abs(difference) > snr * err
    read_only(difference, err, candidates)
    return candidates, sharp_outliers(difference, err, candidates, np.ones(err.shape, bool), snr)


def test_smooth_changes_are_cleared():
    candidates, sharp = run(*field(8.0))
    assert candidates.sum() > 500
    assert sharp.sum() < 0.1 * candidates.sum()


@pytest.mark.parametrize("amplitude", [0.0, 1.0, 8.0])
def test_sharp_ones_are_kept(amplitude):
    difference, err = field(amplitude, seed=1)
    rays = [(0, 10, 10), (0, 25, 30), (1, 5, 33), (1, 20, 20), (1, 20, 21)]
    for place in rays:
        difference[place] += 60.0 * np.sign(difference[place])
    _, sharp = run(difference, err)
    assert all(sharp[place] for place in rays)


def test_only_candidates_are_ever_named():
    difference, err = field(5.0, seed=2)
    candidates, sharp = run(difference, err)
    assert not (sharp & ~candidates).any()


def test_without_witnesses_a_candidate_stays():
    difference, err = field(0.0, n=1)
    difference[0, 5, 5] = 100
    candidates = np.abs(difference) > 5
    out = sharp_outliers(difference, err, candidates, np.zeros(err.shape, bool), 5.0)
    np.testing.assert_array_equal(out, candidates)


def test_errors():
    difference, err = field(0.0)
    with pytest.raises(InputError, match="expected the same of all"):
        sharp_outliers(difference, err[:1], err > 0, err > 0, 5.0)
