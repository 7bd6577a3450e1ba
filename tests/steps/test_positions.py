"""Positions of images from fits of some pairs: which pairs, errors, and what cannot be measured."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from gpucoron.core.stack import IntegrationStack
from gpucoron.ops.registration import CONVERGED, LEFT_OUT, PREDICTED, left_out
from gpucoron.steps import Alignment, align_refs
from gpucoron.steps.positions import (
    POINTING_ERROR,
    SPANNING,
    Pointing,
    joint_positions,
    spanning_integrations,
)
from tests.helpers.scenes import read_only, speckles

RMS = 20.0
NOISE = 0.002


class Pairs:
    """Fits of all pairs of images at random positions, with the noise of each image in its row.

    The science integrations come as columns, too, after the references.
    """

    def __init__(self, n, m, seed=0, mismatch=0.0):
        rng = np.random.default_rng(seed)
        self.science, self.references = rng.normal(0, 0.02, (n, 2)), rng.normal(0, 1, (m, 2))
        images = np.concatenate([self.references, self.science])
        images += rng.normal(0, NOISE, (m + n, 2))
        shifts = images[None] - images[m:, None] + rng.normal(0, mismatch, (n, m + n, 2))
        self.fits = np.zeros((n, m + n), dtype=left_out(1).dtype)
        self.fits["y"], self.fits["x"] = np.moveaxis(shifts, 2, 0)
        self.fits["y_err"] = self.fits["x_err"] = NOISE * np.sqrt(2)
        brightness = np.concatenate([rng.uniform(0.5, 2, m), rng.uniform(0.9, 1.1, n)])
        self.fits["beta"] = brightness / brightness[m:, None]
        self.fits["residual"] = RMS * rng.uniform(0.05, 0.3, m + n)
        self.asked = np.zeros((n, m + n), int)
        self.usable = np.ones(n, bool), np.ones(m, bool)

    def __call__(self, integrations):
        """Fit some integrations as `joint_positions` wants it."""
        m, first = len(self.references), spanning_integrations(self.usable[0])
        others = m + np.setdiff1d(np.flatnonzero(self.usable[0]), first)
        columns = np.concatenate([np.arange(m), others])
        which = np.zeros(self.asked.shape, bool)
        which[np.ix_(integrations, columns)] = True
        which[:, :m] &= self.usable[1]
        self.asked += which
        return np.where(which, self.fits, left_out(1)[0])[np.ix_(integrations, columns)]

    def solve(self, groups, pointing=None):
        noise = [np.tile([NOISE, NOISE, 0.3], (len(use), 1)) for use in self.usable]
        n_others = max(0, self.usable[0].sum() - SPANNING)
        rms = np.full(len(groups) + n_others, RMS)
        return joint_positions(self, self.usable, np.asarray(groups), rms, noise, pointing)


def test_some_pairs_do():
    pairs = Pairs(20, 36)
    found = pairs.solve(np.repeat(np.arange(9), 4))
    assert found.n_pairs == pairs.asked.sum() == SPANNING * (36 + 16)
    assert pairs.asked.max() == 1 and not found.findings
    assert all((status == CONVERGED).all() for status in found.status)
    shifts = pairs.references[None] - pairs.science[:, None]
    # of both images, and of 720 pairs
    assert np.abs(np.stack([found.fits["y"], found.fits["x"]], 2) - shifts).max() < 4.5 * NOISE * 2
    assert_allclose(found.science.mean(axis=0), 0, atol=1e-12)
    assert_allclose(np.concatenate(found.xy_cov), 0.3 * NOISE**2)
    ratio = found.brightness[1][None] / found.brightness[0][:, None]
    assert_allclose(ratio, pairs.fits["beta"][:, :36], rtol=1e-6)


@pytest.mark.parametrize("mismatch", [0.0, 0.01])
def test_errors_are_those_of_single_images_and_of_the_closure(mismatch):
    """Noise of an image is common to its fits; what pairs have on top of it is averaged."""
    pulls = []
    for seed in range(30):
        pairs = Pairs(6, 12, seed, mismatch)
        found = pairs.solve(np.arange(12))
        for own, truth, errors in (
            (found.science, pairs.science, found.science_errors),
            (found.references, pairs.references, found.references_errors),
        ):
            away = own - truth
            pulls.append(((away - away.mean(axis=0)) / errors).ravel())
    assert 0.8 < np.std(np.concatenate(pulls)) < 1.2


def test_wrong_fits_are_not_used_and_all_pairs_are_fitted_then():
    pairs = Pairs(20, 36, 3)
    pairs.fits["x"][0, [0, 4, 8]] += 3.0
    found = pairs.solve(np.repeat(np.arange(9), 4))
    assert [f.reason for f in found.findings] == ["closure"]
    assert (pairs.asked[:, :36] > 0).all()
    assert found.status[0][0] == CONVERGED and found.n_fits[0].tolist() == [33] + [36] * 19
    away = found.references - pairs.references
    assert np.abs(away - away.mean(axis=0)).max() < 5 * NOISE


def test_an_image_without_good_fits_is_where_its_exposure_is():
    pairs = Pairs(5, 12, 4)
    pairs.references[4:8] = pairs.references[4]
    for name, k in (("y", 0), ("x", 1)):
        pairs.fits[name][:, 4:8] = pairs.references[4, k] - pairs.science[:, k, None]
    pairs.fits["residual"][:, 6] = 0.95 * RMS
    found = pairs.solve(np.repeat(np.arange(3), 4))
    assert found.status[1].tolist() == [PREDICTED if j == 6 else CONVERGED for j in range(12)]
    assert np.abs(found.references[6] - found.references[4]).max() < 0.01
    assert (found.fits["status"][:, 6] == PREDICTED).all()
    assert (found.references_errors[6] > 0.02).all() and found.xy_cov[1][6] == 0


def test_what_nothing_measures_is_where_the_headers_have_it():
    pairs = Pairs(4, 6, 5)
    headers = Pointing(np.array([100.0, 90.0]), np.arange(12.0).reshape(6, 2) + 95)
    pairs.fits["residual"][:, 4:] = 0.95 * RMS
    found = pairs.solve(np.repeat(np.arange(3), 2), lambda: headers)
    expected = (headers.references - headers.science)[:, ::-1]
    offset = np.median(found.references[:4] - expected[:4], axis=0)
    assert_allclose(found.references[4:], expected[4:] + offset)
    assert_allclose(found.references_errors[4:], POINTING_ERROR)
    pairs.fits["residual"] = 0.95 * RMS
    nothing = pairs.solve(np.repeat(np.arange(3), 2), lambda: headers)
    assert_allclose(nothing.references, expected)
    assert all((status == PREDICTED).all() for status in nothing.status)
    assert_allclose(pairs.solve(np.zeros(6, int)).references, 0)


def test_images_without_pixels_are_left_out():
    pairs = Pairs(4, 6, 6)
    pairs.usable[0][1] = pairs.usable[1][2] = False
    found = pairs.solve(np.repeat(np.arange(3), 2))
    assert found.status[0][1] == found.status[1][2] == LEFT_OUT
    assert np.isnan(found.science[1]).all() and np.isnan(found.references[2]).all()
    assert (found.fits["status"][1] == LEFT_OUT).all()
    assert (np.delete(found.fits["status"][:, 2], 1) == LEFT_OUT).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_images_with_stars_at_known_places(seed):
    """Positions are within 4.5 errors of the truth, 9 px away as well."""
    rng = np.random.default_rng(seed)
    shape, noise = (60, 61), 0.5
    truth = rng.normal(0, 0.7, (8, 2)) + np.repeat([[0, 0], [9.0, -5.0]], 4, axis=0)
    own = rng.normal(0, 0.02, (5, 2))

    def stack(places):
        images = [speckles(shape, p) + rng.normal(0, noise, shape) for p in places]
        data = np.array(images, np.float32)
        return IntegrationStack(
            *read_only(data, np.full_like(data, noise), np.zeros(data.shape, np.uint32))
        )

    plan = Alignment(stack(own), stack(truth), np.ones(shape))
    found = plan.positions
    assert all((status == CONVERGED).all() for status in found.status)
    away = [found.science - own, found.references - truth]
    away = [a - away[0].mean(axis=0) for a in away]
    for a, errors in zip(away, (found.science_errors, found.references_errors), strict=True):
        assert (np.abs(a) < 4.5 * errors).all() and (errors < 0.02).all()
    table = plan.positions.table("exposure", [])
    assert len(table) == 13 and table["exptype"].tolist() == ["science"] * 5 + ["psf"] * 8
    joint = align_refs(stack(own), stack(truth), np.ones(shape))
    assert joint.data.shape == (5, 8, *shape) and (joint.fits["status"] == CONVERGED).all()
