"""The fit of a companion, against the truth and pyKLIP."""

import contextlib
import io

import numpy as np
import pytest
from scipy import ndimage, optimize

from gpucoron.analysis.annulus import AnnulusNoise, matern
from gpucoron.analysis.candidates import Field, find_candidates
from gpucoron.analysis.companion import COVARIANCES, fit_companion
from gpucoron.analysis.local_model import LocalModel, fit_source
from gpucoron.analysis.matched_filter import patch_half
from gpucoron.errors import InputError
from tests.helpers.sources import GaussianPatches

FWHM, STAR, SHAPE = 2.6, (60.0, 61.0), (121, 120)
MODEL = GaussianPatches(FWHM, lobes=-0.05)  # as KLIP's forward model, negative beside the core


def field(sources, seed, smooth=0.7, model=MODEL, fwhm=FWHM):
    """Sources in noise that is correlated as drizzled noise is, of variance 1."""
    image = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), smooth)
    image = image / image.std() + sum(model.plane(SHAPE, *s) for s in sources)
    return Field(image, np.ones(SHAPE), STAR, fwhm)


def test_the_local_model_is_the_model():
    for offset in ((0.3, 0.2), (-0.7, 0.7), (0.0, -0.5)):
        local = LocalModel(MODEL, (30, 40), 6)
        exact = MODEL.plane((81, 61), 30 + offset[0], 40 + offset[1], 1.0)[34:47, 24:37]
        np.testing.assert_allclose(local.image(np.array(offset)), exact, atol=2e-3)


def test_a_fit_walks_to_the_source():
    image = MODEL.plane(SHAPE, 78.4, 50.7, 5.0)
    for start in ((78.0, 51.0), (79.6, 49.4), (76.9, 52.0)):
        fit = fit_source(MODEL, image, np.ones(SHAPE), start, 5)
        assert fit.converged
        np.testing.assert_allclose((fit.x, fit.y, fit.flux), (78.4, 50.7, 5.0), atol=5e-3)


def test_correlation_length_of_the_annulus():
    """The Matern length of noise that was drawn with one."""
    y, x = np.indices((24, 24)).reshape(2, -1)
    covariance = matern(np.hypot(x - x[:, None], y - y[:, None]), 1.5)
    random, lengths = np.random.default_rng(1), []
    root = np.linalg.cholesky(covariance + 1e-9 * np.eye(576))
    for _ in range(12):
        image = (root @ random.normal(size=576)).reshape(24, 24)
        noise = AnnulusNoise.measure(image, np.ones((24, 24)), (17, 12), (11.5, 11.5), 6.0, 4)
        lengths.append(noise.correlation_length())
    assert np.mean(lengths) == pytest.approx(1.5, rel=0.15)


def test_the_posterior_covers_the_truth():
    x, y, flux = truth = 78.4, 50.7, 25.0
    pulls = []
    for seed in range(10):
        fit = fit_companion(
            field([truth], seed), MODEL, (78, 51), covariance="matern", steps=200, burn_in=60
        )
        pulls.append((fit.median - truth) / np.sqrt(np.diag(fit.sample_covariance)))
        assert fit.n_likelihoods == 64 * 201 and 0.3 < fit.acceptance < 0.9
    scatter = np.sqrt(np.mean(np.square(pulls)))
    assert 0.7 < scatter < 1.3


def test_a_bright_companion_beside_another():
    """At an SNR of 50: within 0.1 px and 2 % with either covariance."""
    truth, other = (78.4, 50.7, 60.0), (72.0, 44.0, 40.0)
    here = field([truth, other], 4)
    others = [c for c in find_candidates(here, MODEL).candidates if abs(c.x - 72) < 2]
    for covariance in COVARIANCES:
        fit = fit_companion(
            here, MODEL, (78, 51), covariance=covariance, others=others, steps=200, burn_in=60
        )
        assert np.hypot(*(fit.median[:2] - truth[:2])) < 0.1
        assert fit.median[2] == pytest.approx(60, rel=0.04)


@pytest.mark.parametrize(
    ("seed", "flux"), [(2, 15.0), (21, 15.0), (22, 15.0), (21, 80.0), (22, 80.0)]
)
def test_agrees_with_pyklip(seed, flux):
    """The likelihood of pyklip.fitpsf.FMAstrometry on the same image.

    Within a third of the errors, or where the SNR is above 50 within 0.1 px and 2 %.
    """
    fitpsf = pytest.importorskip("pyklip.fitpsf", reason="pyklip is not installed")
    truth, wide = (78.4, 50.7, flux), GaussianPatches(3.6)  # which its splines shift well
    here = field([truth], seed, model=wide, fwhm=3.6)
    fit = fit_companion(here, wide, (78, 51), background=False, steps=400, burn_in=100)
    half = patch_half(3.6)
    guess = np.array([78.0, 51.0]) - STAR
    separation, angle = np.hypot(*guess), np.degrees(np.arctan2(-guess[0], guess[1])) % 360
    theirs = fitpsf.FMAstrometry(separation, angle, 2 * half + 1, method="maxl")
    with contextlib.redirect_stdout(io.StringIO()):
        theirs.generate_fm_stamp(wide.plane(SHAPE, 78.0, 51.0, 1.0), STAR, padding=5)
        theirs.generate_data_stamp(here.image, STAR, dr=4, exclusion_radius=10)
        theirs.set_kernel("matern32", [fit.correlation_px], ["l"])

    def likelihood(place):
        logarithms = np.log([max(place[2], 1e-9), fit.correlation_px])
        parameters = [*place[:2], *logarithms]
        return fitpsf.lnlike(parameters, theirs, fitpsf.covars.matern32, negate=True)

    found = optimize.minimize(likelihood, (78.0, 51.0, 0.8 * flux), method="Nelder-Mead").x
    error = np.sqrt(np.diag(fit.sample_covariance))
    away = np.abs(fit.median - found)
    if flux / error[2] < 50:
        assert (away < error / 3).all()
    else:
        assert np.hypot(*away[:2]) < 0.1 and away[2] < 0.02 * flux


def test_nothing_to_fit():
    here = field([], 1)
    with pytest.raises(InputError, match="covariance is 'gauss', expected matern or diagonal"):
        fit_companion(here, MODEL, (78, 51), covariance="gauss")
    blank = here._replace(image=np.full(SHAPE, np.nan))
    with pytest.raises(InputError, match=r"no point source at x, y = 78.0, 51.0 px"):
        fit_companion(blank, MODEL, (78, 51))
