"""Fit a companion: posterior of its position and flux by negative injection into the i2d."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpucoron.analysis.annulus import AnnulusNoise
from gpucoron.analysis.candidates import THRESHOLD, Candidate, Field, widened
from gpucoron.analysis.joint_sources import apart, source_image
from gpucoron.analysis.local_model import (
    REACH_PX,
    LocalModel,
    Projected,
    cut_patch,
    fit_source,
    without_background,
)
from gpucoron.analysis.matched_filter import PatchModel, patch_half
from gpucoron.errors import InputError

__all__ = ["COVARIANCES", "CompanionFit", "fit_companion"]

COVARIANCES = ("matern", "diagonal")
WALKERS, STEPS, BURN_IN = 64, 1000, 200
PRIOR = 0.375  # FWHM, along x and y, where a companion may be


@dataclass(frozen=True, eq=False)
class CompanionFit:
    """The posterior of a companion's position and flux in a combined image.

    Attributes
    ----------
    samples : (n, 3) float64
        x, y (px from 0) and flux, in the unit of the forward model; without the first steps.
    best : (3,) float64
        Where the likelihood is greatest.
    chi2 : float
        Of the residuals there, per pixel.
    covariance : str
        Which one of `COVARIANCES` the noise has.
    correlation_px : float
        Length of the Matern covariance; 0 for the diagonal one.
    n_likelihoods : int
        How many were computed.
    acceptance : float
        Share of accepted steps.
    autocorrelation : float
        Steps after which a walker has forgotten where it was; `samples` has about
        ``len(samples) / autocorrelation`` independent ones.
    """

    samples: np.ndarray
    best: np.ndarray
    chi2: float
    covariance: str
    correlation_px: float
    n_likelihoods: int
    acceptance: float
    autocorrelation: float

    @property
    def median(self) -> np.ndarray:
        """Medians of x, y and flux."""
        return np.median(self.samples, axis=0)

    @property
    def sample_covariance(self) -> np.ndarray:
        """Covariance (3, 3) of x, y and flux."""
        return np.cov(self.samples.T)

    def as_candidate(self, measured: Candidate) -> Candidate:
        """Return a measurement of the companion with median and covariance of the posterior.

        The posterior is that of a companion within 0.375 FWHM. One below 5 sigma may be anywhere
        that was searched, so its position has the covariance of the measurement, if that is larger.
        """
        x, y, flux = (float(v) for v in self.median)
        covariance = self.sample_covariance
        snr = flux / math.sqrt(covariance[2, 2])
        if measured.significance < THRESHOLD:
            covariance = widened(covariance, measured.covariance[:2, :2])
        return replace(measured, x=x, y=y, flux=flux, covariance=covariance, snr=snr)


def fit_companion(
    field: Field,
    model: PatchModel,
    start: tuple[float, float],
    *,
    covariance: str = "matern",
    background: bool = True,
    others: Sequence[Candidate] = (),
    walkers: int = WALKERS,
    steps: int = STEPS,
    burn_in: int = BURN_IN,
    seed: int = 0,
) -> CompanionFit:
    """Sample the posterior of x, y and flux of a companion.

    Parameters
    ----------
    field : Field
    model : PatchModel
        What a source of flux 1 leaves in the image.
    start : (x, y), px from 0
        The companion is looked for within one FWHM of it.
    covariance : {"matern", "diagonal"}
        Of the noise: Matern 3/2 with the length that neighbouring pixels of the annulus have, or
        independent pixels; in both cases with the pixels' errors scaled to the scatter there.
    background : bool
        Fit a constant beside the companion; without, the noise is taken to have a mean of 0.
    others : sequence of Candidate
        Other sources, which are subtracted.
    walkers, steps, burn_in : int
        Of the ensemble sampler; the first `burn_in` steps are dropped.
    seed : int

    Raises
    ------
    InputError
        No pixel near `start` has data, no companion converges there, or a covariance that does
        not exist.

    Notes
    -----
    The likelihood is Gaussian, ``-(d - f M(x, y))^T C^-1 (d - f M(x, y)) / 2`` with the forward
    model M, which is linear in the flux f: subtracting it from the image is the same as injecting
    the negative source into the exposures and reducing again. The image near the companion is a
    polynomial of its position (`LocalModel`), so that all walkers cost a product of small matrices.
    C is scaled so that fluxes have the scatter that they have over the annulus; the correlation of
    neighbours alone makes errors too small where speckles or a disk exceed a PSF. Priors are
    flat within 0.375 FWHM, and at least 0.75 px, of the pixel nearest to the best position.

    References
    ----------
    .. [1] Wang et al. 2016, AJ 152, 97 (Bayesian KLIP astrometry).
    .. [2] Foreman-Mackey et al. 2013, PASP 125, 306 (emcee).
    """
    if covariance not in COVARIANCES:
        raise InputError(f"covariance is {covariance!r}, expected {' or '.join(COVARIANCES)}")
    half = patch_half(field.fwhm_px)
    image, model = apart(field.image, model, others)
    err = np.asarray(field.err, dtype=np.float64)
    with np.errstate(divide="ignore"):
        weight = np.where(np.isfinite(err) & (err > 0), 1.0 / err**2, 0.0)
    first = fit_source(model, image, weight, start, half, field.fwhm_px)
    if not first.converged:
        raise InputError(
            f"no point source at x, y = {start[0]:.1f}, {start[1]:.1f} px: the position does not "
            "converge within one FWHM of it, expected a companion there"
        )
    place = first.x, first.y
    left = image - source_image(model, place, first.flux, image.shape)
    noise = AnnulusNoise.measure(
        left, err, place, field.star, field.fwhm_px, half, [(c.x, c.y) for c in others]
    )
    inverse = _inverse(noise, covariance, _usable(image, weight, first.local.centre, half))
    inverse = without_background(inverse) if background else inverse
    reach = max(REACH_PX, PRIOR * field.fwhm_px)
    local = LocalModel(model.of_flux(first.flux), first.local.centre, half, reach)
    data = np.nan_to_num(cut_patch(image, local.centre, half)).ravel()
    best = Projected(local, data, inverse).best_offset(first.offset)
    inflation = _inflation(noise, inverse, local.image(best).ravel())
    likelihood = Projected(local, data, inverse / inflation)
    flux = likelihood.flux(best)
    spread = _spread(likelihood, best, flux)
    sampler = _sample(likelihood, np.array([*best, flux]), spread, (walkers, steps), seed)
    chain = sampler.get_chain(discard=min(burn_in, steps - 1), flat=True)
    residual = data - flux * local.image(best).ravel()
    return CompanionFit(
        samples=chain + [*local.centre, 0.0],
        best=np.array([*(best + local.centre), flux]),
        chi2=float(residual @ inverse @ residual / max((np.diag(inverse) > 0).sum(), 1)),
        covariance=covariance,
        correlation_px=noise.correlation_length() if covariance == "matern" else 0.0,
        n_likelihoods=walkers * (steps + 1),
        acceptance=float(np.mean(sampler.acceptance_fraction)),
        autocorrelation=float(np.max(sampler.get_autocorr_time(tol=0))),
    )


def _usable(image, weight, centre, half) -> np.ndarray:
    data, weights = (cut_patch(plane, centre, half).ravel() for plane in (image, weight))
    return np.isfinite(data) & (weights > 0)


def _inverse(noise: AnnulusNoise, covariance: str, usable: np.ndarray) -> np.ndarray:
    """Return the inverse of the covariance of the usable pixels; 0 for the others."""
    used = np.ix_(usable, usable)
    inverse = np.zeros((usable.size, usable.size))
    inverse[used] = np.linalg.inv(noise.covariance(covariance)[used])
    return inverse


def _inflation(noise: AnnulusNoise, inverse: np.ndarray, image: np.ndarray) -> float:
    """Return the variance of fluxes over the annulus in units of that by the covariance.

    Speckles and disks reach further than pixels that are correlated with their neighbours alone.
    """
    weighted = inverse @ image
    variance = 1.0 / max(float(image @ weighted), 1e-300)
    if noise.n < 2:
        return 1.0
    measured = float(noise.covariance_of((weighted * variance)[None])[0, 0])
    return max(measured / variance, 1e-6)


def _spread(likelihood: Projected, best: np.ndarray, flux: float) -> np.ndarray:
    """Return the standard deviations of x, y and flux by the curvature of the likelihood."""
    local = likelihood.local
    rows = np.vstack([flux * local.slopes(best), local.terms(best[None])])
    return np.sqrt(np.diag(np.linalg.pinv(rows @ likelihood.products @ rows.T, hermitian=True)))


def _sample(likelihood: Projected, best, spread, size, seed):
    """Run the ensemble sampler from a ball about the best fit."""
    import emcee

    (walkers, steps), scale = size, np.maximum(spread, 1e-12)
    reach = likelihood.local.reach

    def log_probability(places):
        inside = (np.abs(places[:, :2]) <= reach).all(axis=1)
        offsets = np.clip(places[:, :2], -reach, reach)
        return np.where(inside, -0.5 * likelihood.chi2(offsets, places[:, 2]), -np.inf)

    random = np.random.RandomState(seed)  # noqa: NPY002  emcee takes the state of one
    start = best + 0.5 * scale * random.normal(size=(walkers, 3))
    start[:, :2] = np.clip(start[:, :2], -0.95 * reach, 0.95 * reach)
    sampler = emcee.EnsembleSampler(walkers, 3, log_probability, vectorize=True)
    sampler.random_state = random.get_state()
    sampler.run_mcmc(start, steps)
    return sampler
