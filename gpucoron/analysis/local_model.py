"""The image of a point source as a function of its position, around one pixel; its best fit."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.polynomial import chebyshev

from gpucoron.analysis.matched_filter import PatchModel

__all__ = ["LocalModel", "Projected", "SourceFit", "fit_source", "without_background"]

REACH_PX = 0.75  # from the pixel in the middle
NODES, ORDER = 8, 6  # positions along an axis, and order of the polynomial through them
MOST_STEPS = 12  # of whole pixels that a fit may move
MOST_FLUXES, SAME_FLUX = 6, 2e-3  # times that a model follows the flux, until it changes by less


class LocalModel:
    """Images of a source of flux 1 near a pixel: a polynomial of its position for every pixel.

    Parameters
    ----------
    model : PatchModel
    centre : (x, y) int
        The pixel in the middle, from 0.
    half : int
        The patch reaches so many pixels from it.
    reach : float
        How far from the middle, along x and y, a source may be; px.

    Notes
    -----
    The images at 8 x 8 Chebyshev nodes within the reach determine 28 Chebyshev coefficients (order
    6) of each pixel, so that an image costs a product of 28 numbers with a matrix. Images are
    limited in spatial frequency by the telescope: what is left out is below 1e-3 of the peak where
    the reach is 0.375 of the FWHM.
    """

    def __init__(
        self, model: PatchModel, centre: tuple[int, int], half: int, reach: float = REACH_PX
    ):
        self.centre, self.half, self.reach = (int(centre[0]), int(centre[1])), half, reach
        nodes = np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES)
        u, v = (axis.ravel() for axis in np.meshgrid(nodes, nodes))
        places = np.stack([u, v], axis=1) * reach + self.centre
        more = math.ceil(reach)
        patches = model.patches(places, half + more)
        moved = np.rint(places).astype(int) - self.centre  # a patch is about the nearest pixel
        side = 2 * half + 1
        cut = [
            patch[more - y : more - y + side, more - x : more - x + side]
            for patch, (x, y) in zip(patches, moved, strict=True)
        ]
        flat = np.reshape(cut, (len(places), -1))
        self.coefficients = np.linalg.lstsq(_terms(u, v), flat, rcond=None)[0]  # (28, npix)

    def terms(self, offsets: np.ndarray) -> np.ndarray:
        """Return the polynomial's terms at offsets (m, 2), px from the centre: (m, 28)."""
        return _terms(*(np.asarray(offsets, dtype=np.float64).T / self.reach))

    def slopes(self, offset: np.ndarray) -> np.ndarray:
        """Return the derivatives of the terms by x and y at an offset: (2, 28), per px."""
        step = 1e-4
        ends = np.array([offset + sign * step * axis for axis in np.eye(2) for sign in (1, -1)])
        terms = self.terms(ends)
        return (terms[::2] - terms[1::2]) / (2 * step)

    def image(self, offset: np.ndarray) -> np.ndarray:
        """Return the image (side, side) of a source of flux 1 at an offset (x, y)."""
        side = 2 * self.half + 1
        return (self.terms(np.atleast_2d(offset)) @ self.coefficients).reshape(side, side)

    def jacobian(self, offset: np.ndarray, flux: float) -> np.ndarray:
        """Return the derivatives of the image by x, y and flux: (npix, 3)."""
        rows = np.vstack([flux * self.slopes(offset), self.terms(np.atleast_2d(offset))])
        return (rows @ self.coefficients).T


def _terms(u, v):
    x, y = (chebyshev.chebvander(axis, ORDER) for axis in (u, v))
    pairs = [(i, j) for i in range(ORDER + 1) for j in range(ORDER + 1 - i)]
    return np.stack([x[:, i] * y[:, j] for i, j in pairs], axis=1)


class Projected:
    """Chi-squared of data against a local model, from 28 x 28 products made once.

    Parameters
    ----------
    local : LocalModel
    data : (npix,) float64
        0 where there are none.
    inverse : (npix,) or (npix, npix) float64
        Inverse of the noise's covariance, or its diagonal; 0 for pixels that do not count.
    """

    def __init__(self, local: LocalModel, data: np.ndarray, inverse: np.ndarray):
        self.local = local
        weighted = (
            local.coefficients * inverse if inverse.ndim == 1 else local.coefficients @ inverse
        )
        self.products = weighted @ local.coefficients.T
        self.data = weighted @ data

    def chi2(self, offsets: np.ndarray, fluxes: np.ndarray) -> np.ndarray:
        """Return chi-squared less that of no source, for offsets (m, 2) and fluxes (m,)."""
        terms = self.local.terms(offsets)
        norm = np.einsum("mi,ij,mj->m", terms, self.products, terms)
        return fluxes * (fluxes * norm - 2 * terms @ self.data)

    def flux(self, offset: np.ndarray) -> float:
        """Return the flux that fits best at an offset."""
        terms = self.local.terms(np.atleast_2d(offset))[0]
        return float(terms @ self.data / max(terms @ self.products @ terms, 1e-300))

    def _profile(self, offset: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the least chi-squared at an offset, and its gradient."""
        terms, slopes = self.local.terms(offset[None])[0], self.local.slopes(offset)
        product, norm = terms @ self.data, max(terms @ self.products @ terms, 1e-300)
        gradient = 2 * product / norm * (slopes @ self.data)
        gradient -= 2 * (product / norm) ** 2 * (slopes @ self.products @ terms)
        return -(product**2) / norm, -gradient

    def best_offset(self, start: np.ndarray) -> np.ndarray:
        """Return the offset of the least chi-squared within the model's reach, (x, y)."""
        from scipy.optimize import minimize

        scale = max(abs(self._profile(np.asarray(start, float))[0]), 1e-300)

        def scaled(offset):
            value, gradient = self._profile(offset)
            return value / scale, gradient / scale

        bounds = [(-self.local.reach, self.local.reach)] * 2
        options = {"gtol": 1e-9, "ftol": 1e-14}
        return minimize(
            scaled, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        ).x


def without_background(inverse: np.ndarray) -> np.ndarray:
    """Return the inverse covariance of pixels that share an unknown constant, (npix, npix).

    Parameters
    ----------
    inverse : (npix,) or (npix, npix) float64
        Inverse of the noise's covariance, or its diagonal; 0 for pixels that do not count.

    Notes
    -----
    ``W - W 1 1^T W / (1^T W 1)``: chi-squared with it is that of the best-fitting constant. A disk,
    or what KLIP leaves of speckles, is smooth over the patch of a point source.
    """
    weights = np.diag(inverse) if inverse.ndim == 1 else inverse
    sums = weights.sum(axis=1)
    return weights - np.outer(sums, sums) / max(sums.sum(), 1e-300)


class SourceFit(NamedTuple):
    """The least-squares fit of a point source to an image."""

    x: float  # px from 0
    y: float
    flux: float  # in the unit of the model
    local: LocalModel
    estimator: np.ndarray  # (3, npix): what pixels contribute to x, y and flux
    chi2: float  # of the patch, per pixel, about the fit
    converged: bool  # False where the position stays at the edge of what was searched

    @property
    def offset(self) -> np.ndarray:
        """Position relative to the middle pixel of `local`."""
        return np.array([self.x - self.local.centre[0], self.y - self.local.centre[1]])


def fit_source(
    model: PatchModel,
    image: np.ndarray,
    weight: np.ndarray,
    start: tuple[float, float],
    half: int,
    reach_px: float = 3.0,
    known: dict[tuple[int, int], LocalModel] | None = None,
) -> SourceFit:
    """Fit position and flux of a point source on a constant by weighted least squares.

    Parameters
    ----------
    model : PatchModel
    image : (ny, nx) floating, MJy/sr
    weight : (ny, nx) floating
        Inverse variance; 0 for pixels that do not count.
    start : (x, y), px from 0
    half : int
        The fit uses pixels up to this far from the middle one.
    reach_px : float
        How far from `start` the source may be.
    known : dict, optional
        Local models by their middle pixel; those that are made are added.

    Notes
    -----
    Where the image of a source is not in proportion to its flux (`PatchModel.of_flux`) the fit is
    repeated with the model of the flux that it found.
    """
    fit = _fit_position(model, image, weight, start, half, reach_px, known)
    for _ in range(MOST_FLUXES):
        own = model.of_flux(fit.flux)
        if own is model or not fit.converged:
            return fit
        again = _fit_position(own, image, weight, (fit.x, fit.y), half, reach_px)
        change, fit = abs(again.flux - fit.flux), again
        if change < SAME_FLUX * abs(fit.flux):
            break
    return fit


def _fit_position(
    model: PatchModel,
    image: np.ndarray,
    weight: np.ndarray,
    start: tuple[float, float],
    half: int,
    reach_px: float,
    known: dict[tuple[int, int], LocalModel] | None = None,
) -> SourceFit:
    """Fit position and flux with one model; see `fit_source`."""
    known = {} if known is None else known
    centre = round(start[0]), round(start[1])
    offset, converged = np.subtract(start, centre), False
    visited: set[tuple[int, int]] = set()
    for _ in range(MOST_STEPS):
        visited.add(centre)
        if centre not in known:
            known[centre] = LocalModel(model, centre, half)
        local = known[centre]
        data, weights = (cut_patch(plane, centre, half).ravel() for plane in (image, weight))
        good = np.isfinite(data) & (weights > 0)
        data, weights = np.where(good, data, 0.0), np.where(good, weights, 0.0)
        inverse = without_background(weights)
        projected = Projected(local, data, inverse)
        offset = projected.best_offset(offset)
        moved = centre[0] + round(float(offset[0])), centre[1] + round(float(offset[1]))
        if moved == centre or moved in visited:
            converged = bool(good.any() and np.abs(offset).max() < REACH_PX)
            break
        if np.hypot(*np.subtract(moved, start)) > reach_px:
            break
        offset, centre = offset + np.subtract(centre, moved), moved
    flux = projected.flux(offset)
    slopes = local.jacobian(offset, flux)
    weighted = slopes.T @ inverse
    estimator = np.linalg.pinv(weighted @ slopes, hermitian=True) @ weighted
    residual = data - flux * local.image(offset).ravel()
    chi2 = float(residual @ inverse @ residual / max(good.sum(), 1))
    x, y = (float(v) for v in offset + centre)
    return SourceFit(x, y, flux, local, estimator, chi2, converged)


def cut_patch(plane: np.ndarray, centre: tuple[int, int], half: int) -> np.ndarray:
    """Cut a square around a pixel (x, y) out of a plane; NaN outside."""
    side = 2 * half + 1
    patch = np.full((side, side), np.nan)
    (x, y), (ny, nx) = centre, plane.shape
    rows = slice(max(y - half, 0), min(y + half + 1, ny))
    columns = slice(max(x - half, 0), min(x + half + 1, nx))
    if rows.start < rows.stop and columns.start < columns.stop:
        patch[
            rows.start - y + half : rows.stop - y + half,
            columns.start - x + half : columns.stop - x + half,
        ] = plane[rows, columns]
    return patch
