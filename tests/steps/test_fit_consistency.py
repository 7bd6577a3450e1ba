"""Fits that cannot be right: tables with known faults, and images that explain nothing."""

import numpy as np
import pytest

from gpucoron.core.stack import IntegrationStack
from gpucoron.ops.registration import CONVERGED, INCONSISTENT, LEFT_OUT
from gpucoron.pipeline.fit_warnings import blame
from gpucoron.steps.align_refs import FITS_DTYPE, align_refs
from gpucoron.steps.fit_consistency import find_inconsistent_fits, mark_inconsistent
from tests.helpers.scenes import speckles

RMS = 20.0


def table(nsci, nref, seed=0, noise=0.001):
    """Fits of images at random positions and of random brightness, as precise as is usual."""
    rng = np.random.default_rng(seed)
    fits = np.zeros((nsci, nref), dtype=FITS_DTYPE)
    for name in "xy":
        positions = rng.normal(0, 1, nref), rng.normal(0, 0.02, (nsci, 1))
        fits[name] = positions[0] - positions[1] + rng.normal(0, noise, (nsci, nref))
        fits[f"{name}_err"] = noise
    fits["beta"] = rng.uniform(0.05, 2, nref) / rng.uniform(0.9, 1.1, (nsci, 1))
    fits["residual"] = RMS * rng.uniform(0.05, 0.35, nref)
    fits["status"] = CONVERGED
    fits["sci_integration"] = np.arange(1, nsci + 1)[:, None]
    fits["ref_plane"] = np.arange(1, nref + 1)
    return fits


def found(fits):
    """Reason: list of (integration, reference) from 0."""
    findings = find_inconsistent_fits(fits.ravel(), np.full(fits.shape[1], RMS))
    for finding in findings:
        assert finding.worst > finding.limit
    return {f.reason: np.argwhere(f.pairs.reshape(fits.shape)).tolist() for f in findings}


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (2, 1), (2, 2), (3, 6), (10, 36)])
@pytest.mark.parametrize("seed", range(3))
def test_good_fits_are_left_alone(shape, seed):
    assert found(table(*shape, seed)) == {}
    assert found(table(*shape, seed, noise=0.05)) == {}


@pytest.mark.parametrize(
    ("reason", "name", "change"),
    [
        ("uncertainty", "x_err", lambda v: 0.6),
        ("uncertainty", "y_err", lambda v: np.nan),
        ("residual", "residual", lambda v: 0.83 * RMS),
        ("brightness", "beta", lambda v: 2 * v),
        ("brightness", "beta", lambda v: v / 2),
        ("closure", "x", lambda v: v + 0.7),
        ("closure", "y", lambda v: v - 7),
    ],
)
def test_a_fault_of_one_fit(reason, name, change):
    fits = table(4, 6)
    fits[name][2, 3] = change(fits[name][2, 3])
    assert found(fits) == {reason: [[2, 3]]}
    marked = mark_inconsistent(
        fits.ravel(), find_inconsistent_fits(fits.ravel(), np.full(6, RMS))
    ).reshape(4, 6)
    assert np.argwhere(marked["status"] == INCONSISTENT).tolist() == [[2, 3]]
    assert (fits["status"] == CONVERGED).all()


def test_a_residual_far_above_the_others():
    fits = table(3, 6)
    fits["residual"] = 0.1 * RMS
    fits["residual"][:, 4] = 0.55 * RMS
    assert found(fits) == {"residual": [[0, 4], [1, 4], [2, 4]]}


def test_scatter_far_above_the_uncertainty_is_not_its_own_excuse():
    fits = table(5, 15, noise=0.5)
    for name in ("x_err", "y_err"):
        fits[name] = 0.013
    assert len(found(fits)["closure"]) > 20


def test_what_is_not_fitted_does_not_count():
    fits = table(3, 4)
    for name in ("x", "y", "beta", "x_err", "y_err", "residual"):
        fits[name][:, 1] = fits[name][2] = np.nan
    fits["status"][:, 1] = fits["status"][2] = LEFT_OUT
    assert found(fits) == {}
    fits["status"] = LEFT_OUT
    assert found(fits) == {}


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ([(0, 2), (1, 2), (2, 2)], ([2], [], [])),
        ([(1, k) for k in range(5)], ([], [1], [])),
        ([(0, 2), (1, 2), (2, 2), (0, 4)], ([2], [], [(0, 4)])),
        ([(1, k) for k in range(5)] + [(0, 0), (2, 0)], ([0], [1], [])),
        ([(0, 1), (2, 3)], ([], [], [(0, 1), (2, 3)])),
    ],
)
def test_images_explain_pairs(bad, expected):
    pairs = np.zeros((3, 5), dtype=bool)
    pairs[tuple(np.transpose(bad))] = True
    assert blame(pairs, np.ones_like(pairs)) == expected


def stack(images):
    return IntegrationStack(
        data=images, err=np.ones_like(images), dq=np.zeros(images.shape, np.uint32)
    )


def test_images_without_a_star_are_inconsistent():
    shape, rng = (48, 50), np.random.default_rng(2)
    star = np.stack([speckles(shape, (0.1 * k, 0.2)) for k in range(4)])
    noise = rng.normal(0, 1, star.shape)
    good = align_refs(stack(star[:2] + noise[:2]), stack(star[2:] + noise[2:]))
    assert (good.fits["status"] == CONVERGED).all()
    for science, references in ((noise, star), (star, noise), (noise, noise)):
        fits = align_refs(stack(science[:2]), stack(references[2:])).fits
        assert (fits["status"] != CONVERGED).mean() > 0.5
