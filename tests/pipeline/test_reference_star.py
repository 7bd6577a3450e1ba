"""What dithered references tell, and when they are believed."""

import numpy as np
import pytest

from gpucoron.core.stack import PlaneSource
from gpucoron.io.exposures import read_exposure
from gpucoron.pipeline.reference_star import DitheredReferences, ReferenceFit
from gpucoron.steps.align_refs import FITS_DTYPE
from gpucoron.steps.stack_refs import stack_refs
from tests.helpers.tiny_sets import simulated

STEPS = np.array([[0.5, 0.1], [-0.6, 0.4], [0.1, -0.5]])


def table(steps, status=0):
    """Fits of two integrations to two images of each of three references at these places."""
    fits = np.zeros((2, 6), FITS_DTYPE)
    fits["ref_plane"], fits["status"] = np.arange(1, 7), status
    places = np.repeat(steps, 2, axis=0) + np.random.default_rng(0).normal(0, 0.01, (6, 2))
    fits["x"], fits["y"] = places[:, 0] + 3.0, places[:, 1] - 2.0
    return fits.ravel()


@pytest.mark.parametrize(
    ("fits", "believed"),
    [
        (table(STEPS), True),
        (table(0.8 * STEPS), True),  # behind a phase mask shifts are not the star's motion
        (table(0 * STEPS), False),  # recentred
        (table(-STEPS), False),
        (table(STEPS, status=3), False),
    ],
)
def test_dithers_have_to_be_seen_by_the_registration(fits, believed):
    known = ReferenceFit(None, ("a", "b", "c"), STEPS - STEPS.mean(axis=0))
    sources = [PlaneSource(name, k + 1) for name in "abc" for k in range(2)]
    assert known.agrees(fits, sources) == believed


def test_which_exposures_are_fitted_and_their_means():
    references = [read_exposure(path, "psf") for path in simulated().made.psf]
    stacked = stack_refs([exposure.stack for exposure in references])
    found = DitheredReferences.of(references, stacked)
    assert 2 <= len(found.exposures) <= 3
    for exposure, mean in zip(found.exposures, found.means, strict=True):
        stack = exposure.stack
        good = (stack.dq & 1 == 0) & np.isfinite(stack.data)
        expected = np.ma.masked_array(stack.data.astype(float), ~good).mean(axis=0).filled(np.nan)
        np.testing.assert_allclose(mean.image, expected, rtol=1e-6)
    for exposure in references:
        exposure.primary_header["XOFFSET"] = exposure.primary_header["YOFFSET"] = 0.0
    assert DitheredReferences.of(references, stacked) is None
