"""Levenberg-Marquardt fit of a model of the star to dithered images: the engine of `fit_star`."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from gpucoron.optics.coronagraph_model import Grid, StarModel

_ITERATIONS, _TRIALS = 30, 6
_LONGEST_PX = 2.0  # that a step may move the star
_DAMPING, _LEAST_DAMPING, _FACTOR = 1e-2, 1e-6, 8.0


@dataclass
class Pixels:
    """The pixels of the images that are fitted, on the grid of the model."""

    grid: Grid
    data: np.ndarray  # (n, ny, nx) MJy/sr, 0 where not used
    variance: np.ndarray  # (n, ny, nx) (MJy/sr)^2
    weight: np.ndarray  # (n, ny, nx) 0 where not used, else 1 / (variance + model error^2)
    light: np.ndarray  # (ny, nx) MJy/sr, smoothed rms of the images

    @classmethod
    def cut(cls, images, errors, outside, grid, smoothing_px, model_error) -> Pixels:
        """Take the pixels of the grid; `outside` (ny, nx) weighs those of the whole array."""
        window = np.ix_(np.arange(len(images)), grid.y, grid.x)
        data, sigma = images[window], errors[window]
        known = np.isfinite(data) & np.isfinite(sigma) & (sigma > 0)
        share = known * outside[np.ix_(grid.y, grid.x)]
        data, sigma = np.where(known, data, 0), np.where(known, sigma, 1)
        weight = (share > 0).sum(axis=0)
        mean_square = np.sum(data**2 * (share > 0), axis=0)
        width = smoothing_px / grid.stride
        smooth = [ndimage.gaussian_filter(v.astype(float), width) for v in (mean_square, weight)]
        light = np.sqrt(smooth[0] / np.maximum(smooth[1], 1e-9))
        weight = share / (sigma**2 + (model_error * light) ** 2)
        return cls(grid, data, sigma**2, weight, light)

    def one(self, k: int) -> Pixels:
        """Return those of image `k` alone."""
        which = slice(k, k + 1)
        return Pixels(
            *(self.grid, self.data[which], self.variance[which], self.weight[which], self.light)
        )


class Prior(NamedTuple):
    """What is known of the wavefront and the mask's centre before a fit."""

    modes_nm: np.ndarray  # (modes,)
    mask: np.ndarray  # (2,) x, y of its centre, px
    covariance: np.ndarray  # (modes + 2, modes + 2) of these

    @classmethod
    def nominal(cls, model: StarModel, mask, mask_error_px: float) -> Prior:
        """Return that of a model's modes, and of a mask at its nominal centre."""
        sigma = np.append(model.sigma_nm, [mask_error_px, mask_error_px])
        return cls(np.zeros(len(model.sigma_nm)), np.asarray(mask, float), np.diag(sigma**2))

    def first(self, count: int) -> Prior:
        """Return that of the first `count` modes alone."""
        which = np.r_[0:count, len(self.modes_nm) : len(self.modes_nm) + 2]
        return Prior(self.modes_nm[:count], self.mask, self.covariance[np.ix_(which, which)])

    def drifted(self, drift_nm: np.ndarray) -> Prior:
        """Return that of a time when each mode may have changed by this standard deviation."""
        change = np.diag(np.append(drift_nm, [0.0, 0.0]) ** 2)
        return self._replace(covariance=self.covariance + change)

    def precision(self, n_masks: int) -> tuple[np.ndarray, np.ndarray]:
        """Return expected values of modes, star and masks, and their inverse covariance.

        Nothing is known of the star, and each of several masks has the prior of the one.
        """
        m = len(self.modes_nm)
        inverse = np.linalg.inv(self.covariance)
        values = np.concatenate([self.modes_nm, [0.0, 0.0], np.tile(self.mask, n_masks)])
        matrix = np.zeros((len(values), len(values)))
        matrix[:m, :m] = inverse[:m, :m]
        for k in range(m + 2, len(values), 2):
            own = slice(k, k + 2)
            matrix[own, own] = inverse[m:, m:]
            matrix[:m, own], matrix[own, :m] = inverse[:m, m:], inverse[m:, :m]
        return values, matrix


class StarFitter:
    """State of the fit: position of star and mask, modes, flux and background.

    Parameters
    ----------
    model : StarModel
    pixels : Pixels
    steps : (n, 2) float, px
        Position of the star in each image from the common origin.
    star : (float, float), px
        First guess of the origin.
    prior : Prior
        Of the wavefront, which the fit starts from, and the mask.
    own_masks : bool
        Each image has its own mask centre.
    """

    def __init__(self, model: StarModel, pixels, steps, star, prior: Prior, own_masks: bool):
        self.pixels, self.steps = pixels, np.asarray(steps, float)
        self.own_masks, self.n_masks = own_masks, len(steps) if own_masks else 1
        self.star, self.masks = np.asarray(star, float), np.tile(prior.mask, (self.n_masks, 1))
        self._prepare(model, prior)
        self.modes = np.array(prior.modes_nm)
        self._evaluate()

    def _prepare(self, model, prior):
        self.model, self.n_modes, self.converged = model, len(model.sigma_nm), False
        self._expected, self._precision = prior.precision(self.n_masks)
        self._rows: list = []

    def with_model(self, model: StarModel, prior: Prior) -> StarFitter:
        """Return a fit of a model with more modes that starts from here."""
        other = copy.copy(self)
        other._prepare(model, prior)
        other.modes = np.pad(self.modes, (0, other.n_modes - self.n_modes))
        other._evaluate()
        return other

    def start_from(self, modes: np.ndarray) -> None:
        """Start from this wavefront, nm, instead of none."""
        self.modes = np.asarray(modes, float)
        self._evaluate()

    def run(self, tolerance_px: float, gain: float) -> None:
        """Iterate until a step moves the star by less and leaves this part of the cost, or more."""
        damping = _DAMPING
        for _ in range(_ITERATIONS):
            self._linearise()
            before, here = self.cost, self._parameters()
            for _trial in range(_TRIALS):
                step = self._step(damping)
                self._set(here + step)
                self._evaluate()
                if self.cost <= before:
                    break
                damping *= _FACTOR
            else:
                self._set(here)
                self._evaluate()
                self.converged = bool(np.hypot(*self._step(0.0)[self._star]) < 3 * tolerance_px)
                break
            if _trial == 0:
                damping = damping / _FACTOR if damping > _LEAST_DAMPING else 0.0
            small = np.hypot(*step[self._star]) < tolerance_px
            if small and self.cost > gain * before:
                self.converged = True
                break

    def clip(self, limit: float, most: float = 1.0) -> int:
        """Leave out pixels beyond `limit` robust sigma; return how many there are.

        Returns 0 where there would be more than a part `most` of all, which are no hits.
        """
        deviation = np.abs(self.residual) * np.sqrt(self.pixels.weight)
        typical = 1.4826 * np.median(deviation[self.pixels.weight > 0])
        bad = deviation > limit * max(typical, 1.0)
        if bad.sum() > most * np.count_nonzero(self.pixels.weight):
            return 0
        self.pixels.weight = np.where(bad, 0.0, self.pixels.weight)
        self._evaluate()
        return int(np.count_nonzero(bad))

    @property
    def _star(self):
        return slice(self.n_modes, self.n_modes + 2)

    def _parameters(self):
        return np.concatenate([self.modes, self.star, self.masks.ravel()])

    def _set(self, values):
        self.modes, self.star = values[: self.n_modes], values[self._star]
        self.masks = values[self.n_modes + 2 :].reshape(self.n_masks, 2)

    def _places(self, k):
        return self.star + self.steps[k], self.masks[k if self.own_masks else 0]

    def _evaluate(self):
        """Compute images, best flux and background, residuals and cost."""
        n, model, weight = len(self.steps), self.model, self.pixels.weight
        self._fields = [model.fields(self.modes, *self._places(k)) for k in range(n)]
        self.shape = np.array([model.image(f) for f in self._fields], np.float64)
        self.flux, self.background = np.zeros((2, n))
        for k, (image, w) in enumerate(zip(self.shape, weight, strict=True)):
            columns = np.stack([image.ravel(), np.ones(image.size)]) * np.sqrt(w.ravel())
            target = self.pixels.data[k].ravel() * np.sqrt(w.ravel())
            unit = np.maximum(np.linalg.norm(columns, axis=1), 1e-300)
            normal = (columns / unit[:, None]) @ (columns / unit[:, None]).T
            solution = np.linalg.lstsq(normal, (columns / unit[:, None]) @ target, rcond=1e-10)[0]
            self.flux[k], self.background[k] = solution / unit
        fitted = self.flux[:, None, None] * self.shape + self.background[:, None, None]
        self.residual = np.where(weight > 0, self.pixels.data - fitted, 0.0)
        away = self._parameters() - self._expected
        self.cost = np.sum(weight * self.residual**2) + away @ self._precision @ away

    def _linearise(self):
        """Compute the normal equations at the present parameters."""
        linear, n = self.n_modes + 2 + 2 * self.n_masks, len(self.steps)
        size = linear + 2 * n
        self.hessian, gradient = np.zeros((size, size)), np.zeros(size)
        self._rows = []
        for k in range(n):
            used = self.pixels.weight[k] > 0
            by = self.model.derivatives(self._fields[k], self.modes, *self._places(k))
            by = np.concatenate(
                [self.flux[k] * by[:, used], [self.shape[k][used]], [np.ones(used.sum())]]
            )
            mask = self.n_modes + 2 + 2 * (k if self.own_masks else 0)
            index = np.r_[
                0 : self.n_modes + 2, mask : mask + 2, linear + 2 * k : linear + 2 * k + 2
            ]
            weighted = by * self.pixels.weight[k][used]
            self.hessian[np.ix_(index, index)] += weighted @ by.T
            gradient[index] += weighted @ self.residual[k][used]
            self._rows.append((index, used, weighted))
        self.hessian[:linear, :linear] += self._precision
        gradient[:linear] -= self._precision @ (self._parameters() - self._expected)
        self._unit = np.sqrt(np.maximum(np.diag(self.hessian), 1e-300))
        self._gradient = gradient / self._unit
        self._scaled = self.hessian / np.outer(self._unit, self._unit)

    def _step(self, damping):
        size = len(self._unit)
        matrix = self._scaled + (damping + 1e-12) * np.eye(size)
        step = np.linalg.solve(matrix, self._gradient) / self._unit
        step *= min(1.0, _LONGEST_PX / max(np.hypot(*step[self._star]), 1e-12))
        return step[: self.n_modes + 2 + 2 * self.n_masks]

    def covariance(self, cell_px: float) -> np.ndarray:
        """Covariance of star, masks and (flux, background) of each image, in this order.

        It is that of unexplained light, cell by cell, and of the priors. A cell is a square of
        `cell_px` in the star's frame; what a model leaves there is taken as common to all images.
        """
        rows = self._inverse()[self.n_modes :]
        grid, keys, shifts = self.pixels.grid, [], []
        for k, (index, used, weighted) in enumerate(self._rows):
            x, y = self._places(k)[0]
            column = np.floor((grid.x - x) / cell_px)
            row = np.floor((grid.y - y) / cell_px)
            keys.append((row[:, None] * 1e5 + column)[used])
            shifts.append(rows[:, index] @ (weighted * self.residual[k][used]))
        _, cell = np.unique(np.concatenate(keys), return_inverse=True)
        by_cell = np.array([np.bincount(cell, row) for row in np.concatenate(shifts, axis=1)])
        priors = rows[:, : len(self._precision)]
        return by_cell @ by_cell.T + priors @ self._precision @ priors.T

    def posterior(self) -> Prior:
        """Return what is known of the wavefront and of the mask (one for all images) now."""
        which = np.r_[0 : self.n_modes, self.n_modes + 2 : self.n_modes + 4]
        return Prior(self.modes, self.masks[0], self._inverse()[np.ix_(which, which)])

    def _inverse(self):
        """Return the inverse of the normal equations, at the last step's start (or here)."""
        if not self._rows:
            self._linearise()
        inverse = np.linalg.inv(self._scaled + 1e-12 * np.eye(len(self._unit)))
        return inverse / np.outer(self._unit, self._unit)

    @property
    def chi2(self) -> float:
        """Reduced chi-square: weighted squares over the number of pixels."""
        used = self.pixels.weight > 0
        return float(np.sum(self.pixels.weight * self.residual**2) / max(used.sum(), 1))

    @property
    def misfit(self) -> float:
        """Rms of what the model leaves beyond the noise, as a part of the light around."""
        used = self.pixels.weight > 0
        light = np.broadcast_to(self.pixels.light, used.shape)[used]
        excess = self.residual[used] ** 2 - self.pixels.variance[used]
        return float(np.sqrt(max(np.mean(excess / light**2), 0.0)))
