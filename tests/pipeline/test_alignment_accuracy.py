"""Fitted shifts of simulated and real exposures, against what they should be."""

import json

import numpy as np
import pytest

from gpucoron.core.stack import IntegrationStack
from gpucoron.io import read_exposure, read_psfmask
from gpucoron.simulate import simulate
from gpucoron.steps import Alignment, outlier_detection, stack_refs

pytestmark = pytest.mark.slow


def fits(science, references, mask, preset=None, zero=False):
    plan = Alignment(science, references, mask, preset=preset, zero_non_science=zero)
    return np.concatenate([plan.fit(i) for i in range(len(plan.science))])


def clean(stack, scene):
    dq = np.where(stack.dq & 512, stack.dq, 0).astype(np.uint32)
    variances = dict.fromkeys(("var_poisson", "var_rnoise", "var_flat"))
    err = np.ones(scene.shape, np.float32)
    return stack.replace(data=scene.astype(np.float32), err=err, dq=dq, **variances)


def without(stack: IntegrationStack, lost) -> IntegrationStack:
    """The stack with more pixels bad."""
    return stack.replace(
        data=np.where(lost, np.nan, stack.data),
        err=np.where(lost, np.nan, stack.err),
        dq=stack.dq | np.where(lost, 1, 0).astype(np.uint32),
    )


def steepest(image, size=3):
    """A patch where the image changes most, where it hurts most."""
    y, x = np.unravel_index(np.argmax(np.hypot(*np.gradient(image))), image.shape)
    patch = np.zeros(image.shape, dtype=bool)
    patch[y - size // 2 : y + size // 2 + 1, x - size // 2 : x + size // 2 + 1] = True
    return patch


def errors(found, truth):
    """Give the rms error and the rms pull of x and y."""
    difference = np.stack([found[k] - truth[k] for k in "xy"])
    sigma = np.stack([found["x_err"], found["y_err"]])
    return np.sqrt(np.mean(difference**2)), np.sqrt(np.mean((difference / sigma) ** 2))


class Scene:
    """One simulated set: exposures as the detector gives them, and without noise and defects."""

    def __init__(self, folder, instrument, seed, integrations=3, references=3):
        n = {"n_integrations": integrations, "n_reference_integrations": integrations}
        n |= {"n_science": 1, "n_references": references}
        made = simulate(folder, instrument, seed, shape=(128, 128), truth_scenes=True, **n)
        (self.own, own), *others = [
            (read_exposure(p, role).stack, np.load(str(p).replace("_calints.fits", "_clean.npy")))
            for paths, role in ((made.science, "science"), (made.psf, "psf"))
            for p in paths
        ]
        self.others = [stack for stack, _ in others]
        self.scene = np.concatenate([c for _, c in others])
        self.mask, self.zero = read_psfmask(made.psfmask, (128, 128)), instrument != "nircam"
        self.plain = clean(self.own, own), clean(stack_refs(self.others), self.scene)

    def errors(self, preset=None, lost=False):
        truth = fits(*self.plain, self.mask, preset, self.zero)
        own = without(outlier_detection(self.own, preset=preset).stack, lost)
        stacked = without(
            stack_refs([outlier_detection(e, preset=preset).stack for e in self.others]), lost
        )
        found = fits(own, stacked, self.mask, preset, self.zero)
        assert (found["status"] == 0).all()
        return errors(found, truth)


@pytest.mark.parametrize(
    "instrument, seed, bound", [("nircam", 3, 0.004), ("miri-4qpm", 3, 0.002), ("nircam", 1, 0.012)]
)
def test_defects_hardly_move_a_fit(tmp_path, instrument, seed, bound):
    """Seeds 1 to 5, rms px: nircam 0.0057 0.0016 0.0022 0.0015 0.0015; 4QPM 0.0010 0.0008 0.0005
    and less; with jwst's flags and fill 0.005 to 0.022 and 0.10 to 0.24. NIRCam's seed 1 has 4x5
    pixels bad in everything, its brightest speckle in them: the pull is 1.3, and was 4.7 before.
    Nine fits, three by three and correlated, tell the spread of pulls only to a factor.
    """
    made = Scene(tmp_path, instrument, seed)
    error, pull = made.errors()
    assert error < bound
    if seed == 3:
        assert error < 0.3 * made.errors(preset="jwst")[0] and 0.4 < pull < 2.0
    else:
        assert 0.3 < pull < 2.5


@pytest.mark.parametrize(
    "instrument, seed, integrations, size, bound",
    [("nircam", 2, 3, 3, 0.009), ("miri-4qpm", 1, 3, 3, 0.004)]
    + [("nircam", 2, 1, 3, 0.009), ("miri-4qpm", 1, 1, 3, 0.004)]
    + [("nircam", 2, 3, 5, 0.025), ("miri-lyot", 1, 1, 7, 0.008)],
)
def test_a_patch_that_is_bad_in_everything(tmp_path, instrument, seed, integrations, size, bound):
    """3x3 pixels on the steepest slope of all, rms px: 0.0061, 0.0022, 0.0040, 0.0018. With the
    correlation of the finest possible structure 0.018, 0.050, 0.016, 0.061, and pulls of 9 to 100.
    5x5 (NIRCam) and 7x7 (Lyot): 0.019 and 0.0041, pulls of 1.0 and 0.7; left out instead of filled
    0.018 and 0.021, pulls of 12.
    """
    made = Scene(tmp_path, instrument, seed, integrations, 3 if integrations > 1 else 5)
    error, pull = made.errors(lost=steepest(made.scene[0] * made.mask, size))
    assert error < bound
    assert pull < 2.5


@pytest.mark.parametrize("lost, bound", [("2% of all pixels", 0.001), ("3x3 on the peak", 0.03)])
def test_bad_pixels_planted_in_real_exposures(shared_data, lost, bound):
    """AU Mic, one integration an exposure: 1 to 3% of the pixels move a fit by 0.0001 to 0.0005 px,
    3x3 pixels of the core, bad in all exposures, by 0.0006 to 0.0070, and the uncertainties say so.
    """
    folder = shared_data / "aumic_f444w"
    members = json.loads(next(folder.glob("*asn.json")).read_text())["products"][0]["members"]
    (science, *_), psf = (
        [read_exposure(folder / m["expname"], k).stack for m in members if m["exptype"] == k]
        for k in ("science", "psf")
    )
    references = stack_refs(psf)
    mask = shared_data / "psfmask" / "jwst_nircam_psfmask_0019.fits"
    mask = read_psfmask(mask, science.shape[1:])
    rng = np.random.default_rng(0)
    if lost.startswith("2%"):
        holes = [rng.random(stack.shape) < 0.02 for stack in (science, references)]
    else:
        holes = [steepest(np.nan_to_num(science.data[0]) * mask)] * 2
    whole = fits(science, references, mask)
    spoilt = without(science, holes[0]), without(references, holes[1])
    error, pull = errors(fits(*spoilt, mask), whole)
    assert error < bound
    assert pull < 2.0
