"""Levenberg-Marquardt fit of a model of the star to dithered images: the engine of `fit_star`."""

from __future__ import annotations

import copy
from dataclasses import dataclass

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


class StarFitter:
    """State of the fit: position of star and mask, modes, flux and background.

    Parameters
    ----------
    model : StarModel
    pixels : Pixels
    steps : (n, 2) float, px
        Position of the star in each image from the common origin.
    star, mask : (float, float), px
        First guess of the origin, nominal centre of the mask.
    mask_error_px : float
        Prior of the mask's centre.
    own_masks : bool
        Each image has its own mask centre.
    """

    def __init__(self, model: StarModel, pixels, steps, star, mask, mask_error_px, own_masks):
        self.pixels, self.steps = pixels, np.asarray(steps, float)
        self.nominal, self.own_masks = np.asarray(mask, float), own_masks
        self.n_masks, self.mask_error_px = len(steps) if own_masks else 1, mask_error_px
        self.star, self.masks = np.asarray(star, float), np.tile(self.nominal, (self.n_masks, 1))
        self._prepare(model)
        self.modes = np.zeros(self.n_modes)
        self._evaluate()

    def _prepare(self, model):
        self.model, self.n_modes, self.converged = model, len(model.sigma_nm), False
        masks = np.full(2 * self.n_masks, self.mask_error_px**-2.0)
        self._precision = np.concatenate([model.sigma_nm**-2.0, np.zeros(2), masks])

    def with_model(self, model: StarModel) -> StarFitter:
        """Return a fit of a model with more modes that starts from here."""
        other = copy.copy(self)
        other._prepare(model)
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

    def clip(self, limit: float) -> int:
        """Leave out pixels beyond `limit` robust sigma; return how many there are."""
        deviation = np.abs(self.residual) * np.sqrt(self.pixels.weight)
        typical = 1.4826 * np.median(deviation[self.pixels.weight > 0])
        bad = deviation > limit * max(typical, 1.0)
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
        self._shape = np.array([model.image(f) for f in self._fields], np.float64)
        self.flux, self.background = np.zeros((2, n))
        for k, (image, w) in enumerate(zip(self._shape, weight, strict=True)):
            columns = np.stack([image.ravel(), np.ones(image.size)]) * np.sqrt(w.ravel())
            target = self.pixels.data[k].ravel() * np.sqrt(w.ravel())
            unit = np.maximum(np.linalg.norm(columns, axis=1), 1e-300)
            normal = (columns / unit[:, None]) @ (columns / unit[:, None]).T
            solution = np.linalg.lstsq(normal, (columns / unit[:, None]) @ target, rcond=1e-10)[0]
            self.flux[k], self.background[k] = solution / unit
        fitted = self.flux[:, None, None] * self._shape + self.background[:, None, None]
        self.residual = np.where(weight > 0, self.pixels.data - fitted, 0.0)
        masks = (self.masks - self.nominal).ravel()
        prior = np.concatenate([self.modes, [0, 0], masks])
        self.cost = np.sum(weight * self.residual**2) + np.sum(self._precision * prior**2)

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
                [self.flux[k] * by[:, used], [self._shape[k][used]], [np.ones(used.sum())]]
            )
            mask = self.n_modes + 2 + 2 * (k if self.own_masks else 0)
            index = np.r_[
                0 : self.n_modes + 2, mask : mask + 2, linear + 2 * k : linear + 2 * k + 2
            ]
            weighted = by * self.pixels.weight[k][used]
            self.hessian[np.ix_(index, index)] += weighted @ by.T
            gradient[index] += weighted @ self.residual[k][used]
            self._rows.append((index, weighted))
        here = self._parameters()
        here[: self.n_modes + 2][self._star] = 0
        here[self.n_modes + 2 :] -= np.tile(self.nominal, self.n_masks)
        self.hessian[np.arange(linear), np.arange(linear)] += self._precision
        gradient[:linear] -= self._precision * here
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
        self._linearise()
        inverse = np.linalg.inv(self._scaled + 1e-12 * np.eye(len(self._unit)))
        rows = (inverse / np.outer(self._unit, self._unit))[self.n_modes :]
        grid, keys, shifts = self.pixels.grid, [], []
        for k, (index, weighted) in enumerate(self._rows):
            used = self.pixels.weight[k] > 0
            x, y = self._places(k)[0]
            column = np.floor((grid.x - x) / cell_px)
            row = np.floor((grid.y - y) / cell_px)
            keys.append((row[:, None] * 1e5 + column)[used])
            shifts.append(rows[:, index] @ (weighted * self.residual[k][used]))
        _, cell = np.unique(np.concatenate(keys), return_inverse=True)
        by_cell = np.array([np.bincount(cell, row) for row in np.concatenate(shifts, axis=1)])
        priors = rows[:, : len(self._precision)]
        return by_cell @ by_cell.T + (priors * self._precision) @ priors.T

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
