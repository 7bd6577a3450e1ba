"""Fits of a star from different starts: the search of `fit_star`."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np

from gpucoron.optics.coronagraph_model import StarModel
from gpucoron.optics.star_fit import Pixels, Prior, StarFitter

MISFIT_LIMIT = 0.1  # unexplained part of the light above which the model's error is a guess
MOST_NM = 200.0  # rms of a wavefront that JWST may have: other solutions have 250 to 600
MOST_WAVEFRONTS = 16  # that are drawn where every start without a wavefront fails
COARSE_STOP = np.inf, 0.5
FINE_STOP = 0.01, 0.9
CLIP = 6.0  # sigma
MOST_CLIPPED = 0.02  # of the pixels that may be hits, where they leave more than a model should
DETECTED = 5.0  # standard deviations of noise


class StarSearch(NamedTuple):
    """What is fitted, from different starts."""

    model: StarModel
    pixels: Pixels
    steps: np.ndarray
    prior: Prior
    own_masks: bool
    coarse: bool  # low orders first, where the wavefront is not known
    cell_px: float

    def best(self, starts) -> StarFitter:
        """Return the fit from the first start, or the best from all where that one cannot be right.

        Then the images together are fitted from what each of them tells alone: one alone is
        explained more easily. At last fits start with low orders drawn from their prior; about one
        in four of these finds the star.
        """
        best = self._fitted(starts[0])
        for start in starts[1:]:
            if self.explains(best):
                return best
            best = self._better(best, self._fitted(start))
        for k in range(len(self.steps) if self.coarse and len(self.steps) > 1 else 0):
            if self.explains(best):
                return best
            best = self._better(best, self._fitted(*self._of_one(k, starts)))
        if self.explains(best):
            return best
        sigma_nm = np.asarray(self.model.low_orders().sigma_nm)
        random = np.random.default_rng(0)
        lost = self.coarse and not (self.seen(best) and self._plausible(best))
        for k in range(MOST_WAVEFRONTS if lost and sigma_nm.size else 0):
            fit = self._fitted(starts[k % len(starts)], random.normal(0, sigma_nm))
            if self.explains(fit) and self.seen(fit):
                return fit
        return best

    def explains(self, fit) -> bool:
        """Return whether a fit leaves little of the light, with a wavefront that JWST may have."""
        return fit.misfit < MISFIT_LIMIT and self._plausible(fit)

    def _plausible(self, fit):
        return fit.model.wavefront_nm(fit.modes) < MOST_NM

    def _better(self, one, other):
        """Return the fit of lower cost, if no other is plausible."""
        return min(one, other, key=lambda fit: (not self._plausible(fit), fit.cost))

    def covariance(self, fit) -> np.ndarray:
        """Return that of star, masks, and flux and background of each image."""
        return fit.covariance(self.cell_px)

    def _of_one(self, k, starts):
        """Return the star and the low orders that image `k` alone tells."""
        one = self._replace(pixels=self.pixels.one(k), steps=self.steps[k : k + 1])
        fit = one.best(starts)
        return fit.star, fit.modes[: len(self.model.low_orders().sigma_nm)]

    def seen(self, fit) -> bool:
        """Return whether an image has more light of the star than modes can find in noise.

        The flux's own error does not tell: behind a round mask flux and wavefront are one.
        """
        light = (fit.flux[:, None, None] * fit.shape) ** 2 * fit.pixels.weight
        signal = np.where(fit.flux > 0, light.sum(axis=(1, 2)), 0.0)
        return bool(np.any(signal > DETECTED**2 + 2 * len(fit.modes)))

    def _fitted(self, start, modes=None):
        """Fit low orders (from `modes`), then all, then again without pixels that are far off."""
        pixels = copy.copy(self.pixels)
        if self.coarse:
            low = self.model.low_orders()
            few = self.prior.first(len(low.sigma_nm))
            fit = StarFitter(low, pixels, self.steps, start, few, self.own_masks)
            if modes is not None:
                fit.start_from(modes)
            fit.run(*COARSE_STOP)
            fit = fit.with_model(self.model, self.prior)
        else:
            fit = StarFitter(self.model, pixels, self.steps, start, self.prior, self.own_masks)
        fit.run(*FINE_STOP)
        most = 1.0 if fit.misfit < MISFIT_LIMIT else MOST_CLIPPED
        if fit.clip(CLIP, most):
            fit.run(*FINE_STOP)
        return fit


def deviations(covariance):
    """Return standard errors."""
    return np.sqrt(np.diag(covariance))


def flux_errors(fit, sigma):
    """Return the standard errors of the fluxes."""
    return sigma[2 + 2 * fit.n_masks :: 2]
