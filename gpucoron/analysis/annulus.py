"""Noise about a source, as measured at other places of the same annulus about the star."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpucoron.analysis.local_model import cut_patch
from gpucoron.analysis.matched_filter import APART, RING

__all__ = ["AnnulusNoise"]

WHOLE = 0.9  # of the annulus has data, or else exposures cover it unevenly: errors are compared
LAGS_PX = 4  # up to which correlations are fitted


@dataclass(frozen=True, eq=False)
class AnnulusNoise:
    """Patches of noise at the separation of a source, as they are in the image.

    They are not scaled to the errors where the source is: these are from few references, and a
    source raises them, so that stated errors were 1.7 times too large beside other sources. Only
    where the annulus reaches beyond the image, which exposures then cover unevenly, they are.

    Attributes
    ----------
    patches : (m, npix) float64, MJy/sr
        At every pixel of the annulus further than 1.5 FWHM from all sources; 0 for pixels without
        data.
    err : (npix,) float64, MJy/sr
        Mean error of the pixels about the source; infinite where there are no data.
    n : float
        Independent places among them.
    """

    patches: np.ndarray
    err: np.ndarray
    n: float

    @classmethod
    def measure(
        cls,
        image: np.ndarray,
        err: np.ndarray,
        place: tuple[float, float],
        star: tuple[float, float],
        fwhm_px: float,
        half: int,
        sources: Sequence[tuple[float, float]] = (),
    ) -> AnnulusNoise:
        """Collect the noise from an image that all known sources have been subtracted from.

        Parameters
        ----------
        image, err : (ny, nx) floating, MJy/sr
            NaN where there are no data.
        place, star : (x, y), px from 0
            Of the source, and of the star.
        fwhm_px : float
        half : int
            Patches reach this many pixels from their middle.
        sources : sequence of (x, y), px from 0
            All sources, that at `place` included.
        """
        rows, columns = np.indices(image.shape)
        radius = np.hypot(columns - star[0], rows - star[1])
        usable = np.isfinite(image) & (err > 0)
        near = usable & (np.abs(radius - np.hypot(*np.subtract(place, star))) <= RING * fwhm_px)
        for source in (place, *sources):
            near &= np.hypot(columns - source[0], rows - source[1]) >= APART * fwhm_px
        side = 2 * half + 1
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(np.where(usable, image, np.nan), half, constant_values=np.nan), (side, side)
        )
        patches = windows[near].reshape(-1, side**2)
        whole = 4 * np.pi * RING * fwhm_px * np.hypot(*np.subtract(place, star))
        there = usable & (np.abs(radius - np.hypot(*np.subtract(place, star))) <= RING * fwhm_px)
        if there.sum() < WHOLE * whole:
            patches = patches / err[near][:, None] * np.sqrt(np.mean(err[near] ** 2))
        patches = np.nan_to_num(patches[np.isfinite(patches).mean(axis=1) > 0.5])
        middle = (int(round(place[0])), int(round(place[1])))
        own = cut_patch(np.where(usable, err, np.nan), middle, half).ravel()
        known = np.isfinite(own)
        level = math.sqrt(np.mean(own[known] ** 2)) if known.any() else math.inf
        if there.sum() < WHOLE * whole and near.any() and known.any():
            patches = patches * (level / np.sqrt(np.mean(err[near] ** 2)))
        n = len(patches) / (2 * RING * fwhm_px**2)
        return cls(patches, np.where(known, level, np.inf), n)

    def covariance_of(self, estimator: np.ndarray) -> np.ndarray:
        """Return the covariance that linear estimates scatter with over the annulus.

        Parameters
        ----------
        estimator : (k, npix) float64
            Contributions of the pixels to each estimate.

        Returns
        -------
        (k, k) float64
            With the factor ``1 + 1/n``; where fewer than two independent places are left, that of
            independent pixels with the errors `err`.
        """
        if self.n < 2:
            return (estimator * np.where(np.isfinite(self.err), self.err, 0.0) ** 2) @ estimator.T
        estimates = self.patches @ estimator.T
        deviations = estimates - estimates.mean(axis=0)
        scatter = deviations.T @ deviations / len(deviations)
        return scatter * self.n / (self.n - 1) * (1 + 1 / self.n)

    def scale(self) -> float:
        """Return the scatter of the pixels in units of their errors; 1 where there are none."""
        used = self.patches[:, np.isfinite(self.err)] / self.err[np.isfinite(self.err)]
        return float(used.std()) if used.size else 1.0

    def correlation_length(self) -> float:
        """Fit the length of the Matern 3/2 covariance to the correlation of neighbours, px."""
        from scipy.optimize import minimize_scalar

        side = int(round(np.sqrt(self.err.size)))
        pulls = np.where(np.isfinite(self.err), self.patches / self.err, 0.0)
        cube = pulls.reshape(-1, side, side)
        cube = cube - cube.mean()
        variance = max(float((cube**2).mean()), 1e-300)
        offsets, products = [], []
        for dy in range(LAGS_PX + 1):
            for dx in range(LAGS_PX + 1):
                if dx + dy and np.hypot(dx, dy) <= min(LAGS_PX, side - 1):
                    one, other = cube[:, dy:, dx:], cube[:, : side - dy, : side - dx]
                    offsets.append(np.hypot(dx, dy))
                    products.append(float((one * other).mean()) / variance)
        lags, found = np.array(offsets), np.array(products)
        fit = minimize_scalar(
            lambda length: ((matern(lags, length) - found) ** 2).sum(), bounds=(0.05, 20.0)
        )
        return float(fit.x)

    def covariance(self, kind: str = "matern") -> np.ndarray:
        """Return the covariance of the pixels about the source, (npix, npix), (MJy/sr)^2.

        Parameters
        ----------
        kind : {"matern", "diagonal"}
            The Matern 3/2 covariance with the length that the annulus has, or independent pixels;
            the errors are those of the pixels times `scale`.

        References
        ----------
        Wang et al. 2016, AJ 152, 97, equation 5.
        """
        side = int(round(np.sqrt(self.err.size)))
        err = np.where(np.isfinite(self.err), self.err, 0.0) * self.scale()
        if kind == "diagonal":
            return np.diag(err**2)
        y, x = (axis.ravel() for axis in np.indices((side, side)))
        distance = np.hypot(x[:, None] - x, y[:, None] - y)
        return matern(distance, self.correlation_length()) * np.outer(err, err)


def matern(distance: np.ndarray, length: float) -> np.ndarray:
    """Return the Matern 3/2 correlation at a distance."""
    scaled = np.sqrt(3.0) * distance / length
    return (1.0 + scaled) * np.exp(-scaled)
