"""Fitted shifts of simulated exposures, defects and noise on, against the clean scene's."""

import numpy as np
import pytest

from gpucoron.io import read_exposure, read_psfmask
from gpucoron.simulate import simulate
from gpucoron.steps import Alignment, outlier_detection, stack_refs


def fits(science, references, mask, preset, zero):
    plan = Alignment(science, references, mask, preset=preset, zero_non_science=zero)
    return np.concatenate([plan.fit(i) for i in range(len(plan.science))])


def clean(stack, scene):
    return stack.replace(
        data=scene.astype(np.float32), err=np.ones(scene.shape, np.float32),
        dq=np.where(stack.dq & 512, stack.dq, 0).astype(np.uint32),
        var_poisson=None, var_rnoise=None, var_flat=None)


@pytest.mark.slow
@pytest.mark.parametrize("instrument, bound", [("nircam", 0.004), ("miri-4qpm", 0.003)])
def test_defects_hardly_move_a_fit(tmp_path, instrument, bound):
    """Seeds 1 to 5, rms px: nircam 0.0075 0.0018 0.0023 0.0015 0.0015; 4QPM 0.0011 0.0009 0.0006
    0.0007 0.0010; with jwst's flags and fill 0.005 to 0.022 and 0.10 to 0.24. Seed 3 is run. Nine
    fits, three by three and correlated, tell the spread of pulls only to a factor.
    """
    made = simulate(tmp_path, instrument, seed=3, shape=(128, 128), n_science=1, n_integrations=3,
                    n_references=3, n_reference_integrations=3, truth_scenes=True)
    zero = instrument.startswith("miri")
    science, *references = [
        (read_exposure(p, role), np.load(str(p).replace("_calints.fits", "_clean.npy")))
        for paths, role in ((made.science, "science"), (made.psf, "psf")) for p in paths]
    mask = read_psfmask(made.psfmask, (128, 128))
    error = {}
    for preset in (None, "jwst"):
        flagged = [outlier_detection(e.stack, preset=preset).stack for e, _ in references]
        stacked = stack_refs(flagged)
        scene = clean(stacked, np.concatenate([c for _, c in references]))
        truth = fits(clean(science[0].stack, science[1]), scene, mask, preset, zero)
        own = outlier_detection(science[0].stack, preset=preset).stack
        found = fits(own, stacked, mask, preset, zero)
        assert (found["status"] == 0).all()
        difference = np.stack([found[k] - truth[k] for k in "xy"])
        error[preset] = np.sqrt(np.mean(difference**2))
        if preset is None:
            pull = np.sqrt(np.mean((difference / [found["x_err"], found["y_err"]]) ** 2))
    assert error[None] < bound
    assert error[None] < 0.3 * error["jwst"]
    assert 0.4 < pull < 2.0
