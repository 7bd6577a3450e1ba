"""Variance of the speckles that KLIP leaves: VAR_SPECKLE."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.ops.leave_one_out import combine, exposure_means, prediction_errors
from gpucoron.steps.boxes import MEDIAN_SQUARE, boxes_of, median_of, smooth, to_pixels
from gpucoron.steps.reference_noise import ReferenceErrors, mean_of_seen, reference_variance

if TYPE_CHECKING:
    from gpucoron.ops.zones import Zones

__all__ = ["speckle_variance"]

MOST_SPECKLES = 6.0  # times what exposures left out show; 4 to 6 measured where K = 1
MOST_EXPOSURES = 64  # left out one by one; more of them are joined


def speckle_variance(
    residuals: list[Any],
    coefficients: list[Any],
    references: Any,
    errors: ReferenceErrors,
    own: Any,
    *,
    truncations: list[int],
    weight: np.ndarray | None = None,
    zones: Zones | None = None,
) -> list[Any]:
    """Return the variance of the speckles that KLIP leaves, one for all integrations: VAR_SPECKLE.

    Parameters
    ----------
    residuals : list of (n, ny, nx)
        PSF-subtracted integrations, for each truncation.
    coefficients : list of (n, nref) float64
        As `reference_variance`, for each truncation.
    references : (nref, ny, nx) floating
        The aligned references; those that are not finite are ignored.
    errors : ReferenceErrors
    own : (n, ny, nx) floating
        From `own_variance`.
    truncations : list of int
    weight : (ny, nx) floating, optional
        Of the pixels in KLIP.
    zones : Zones, optional
        Each with coefficients, and with predictions of the exposures left out, of its own.

    Returns
    -------
    list of (ny, nx) float32, (MJy/sr)^2

    Notes
    -----
    Speckles are what a star's image has and the references have not, beyond noise. Two estimates
    are made in boxes of 5 x 5 pixels, from medians, so that planets and cosmic rays do not count:

    S: each reference exposure is left out in turn, and predicted by KLIP from the means of the
    others (a jackknife over exposures). With a_eg the coefficients of exposure g in what this
    leaves of e, and v_g the variance of its mean, ``S_e = (left_e^2 - sum_g a_eg^2 v_g) /
    sum_g a_eg^2``: the noise, known exactly from the same coefficients, is taken out, and so is the
    amplification of an extrapolation. S is the mean of the S_e, weighted with the inverse square of
    their noise, times ``(sum_j c_j)^2 + sum_g C_g^2`` for the science images' coefficients c_j and
    their sums C_g over the exposures.

    E: the square of the mean residual of all integrations, about its median, less the variance of
    its noise.

    The result is E, at most 6 S. S alone is an upper limit of the right order: dithers at the rim
    of the pattern are harder to predict than a science star in its middle. E alone would take a
    disk for speckles. With a single reference exposure there is no S. Powers of 0.4 of neighbouring
    boxes are averaged (3 x 3), and interpolated to pixels.
    """
    xp = cuda.array_namespace(references)
    usable = to_host(xp.isfinite(references).all(axis=(1, 2)))
    numbers, exposures = np.unique(_joined(errors.exposures)[usable], return_inverse=True)
    limits: list[Any] = [None] * len(truncations)
    if len(numbers) > 1:
        images = exposure_means(references[xp.asarray(usable)], exposures)
        variances = _of_means(errors, usable, exposures)
        if zones is None:
            rows = prediction_errors(images, truncations, weight)
            limits = [partial(_amplified, _left_out(r, images, variances)) for r in rows]
        else:
            limits = _left_out_in_zones(images, variances, truncations, weight, zones)
    results = []
    for residual, factors, limit, truncate in zip(
        residuals, coefficients, limits, truncations, strict=True
    ):
        mean = mean_of_seen(factors)
        of_mean = reference_variance(mean[..., None, :], errors, zones)[0]
        excess = _excess(residual, own, of_mean)
        if limit is not None and truncate > 0:
            rows = np.atleast_2d(mean)
            limit = limit(
                [row.sum() ** 2 for row in rows],
                [(np.bincount(exposures, row[usable]) ** 2).sum() for row in rows],
            )
            excess = xp.minimum(excess, MOST_SPECKLES * limit)
        plane = to_pixels(xp.maximum(excess, 0.0), references.shape[1:])
        results.append(plane.astype(np.float32))
    return results


def _joined(exposures: np.ndarray) -> np.ndarray:
    """Number exposures so that there are not too many; neighbours are joined."""
    n = int(exposures.max()) + 1
    return exposures if n <= MOST_EXPOSURES else exposures * MOST_EXPOSURES // n


def _of_means(errors: ReferenceErrors, usable: np.ndarray, exposures: np.ndarray) -> Any:
    """Return the variances of the exposures' mean images."""
    rows = np.zeros((int(exposures.max()) + 1, len(errors.variances)))
    np.add.at(rows, (exposures, errors.exposures[usable]), 1.0)
    return combine(rows / np.bincount(exposures)[:, None] ** 2, errors.variances)


def _amplified(unit: Any, bright: list[float], squares: list[float]) -> Any:
    """Return S of a science image from that of one reference.

    `bright` is the square of the coefficients' sum, `squares` the sum over exposures of the squares
    of theirs.
    """
    return unit * (bright[0] + squares[0])


def _left_out(rows: np.ndarray, images: Any, variances: Any) -> Any:
    """Return S of every box for one reference of unit brightness."""
    xp = cuda.array_namespace(images)
    left, expected, median = _predicted(rows, images, variances)
    ratio = xp.median(boxes_of(left / expected), axis=2) / median - 1.0
    return smooth(ratio * xp.median(boxes_of(expected), axis=2))


def _predicted(rows: np.ndarray, images: Any, variances: Any) -> tuple[Any, Any, float]:
    """Return what predictions leave, squared; what noise leaves; and the median of their ratio."""
    xp = cuda.array_namespace(images)
    typical = to_host(xp.median(variances.reshape(len(variances), -1), axis=1))
    amplification, noise = (rows**2).sum(axis=1), rows**2 @ typical
    weights = np.where(noise > 0, amplification / np.where(noise > 0, noise, 1.0), 1.0) ** 2
    rows = rows * np.sqrt(weights / weights.sum() / amplification)[:, None]
    left = combine(rows, images, square=True)
    expected = combine((rows**2).sum(axis=0)[None], variances)[0]
    median = _median_of_mean((rows * typical) @ rows.T)
    return left, xp.maximum(expected, np.finfo(np.float64).tiny), median


def _left_out_in_zones(
    images: Any,
    variances: Any,
    truncations: list[int],
    weight: np.ndarray | None,
    zones: Zones,
) -> list[Callable[[list[float], list[float]], Any]]:
    """Return for each truncation what makes S, as `_amplified`, from the sums of all zones.

    How bright the star is, the sum of coefficients, is the same for all zones: their mean, weighted
    with the power of the references there, for zones without starlight do not tell.
    """
    xp, shape = cuda.array_namespace(images), images.shape[1:]
    flat, noise = (planes.reshape(len(planes), -1) for planes in (images, variances))
    ratios, expected = ([xp.full(flat.shape[1], np.nan) for _ in truncations] for _ in range(2))
    power = np.zeros(len(zones))
    for zone, (pixels, area) in enumerate(zip(zones.pixels, zones.areas, strict=True)):
        if not (pixels.size and area.size):  # in a corner of the image
            continue
        square = np.ones(len(area)) if weight is None else weight.ravel()[area] ** 2
        here = flat[:, xp.asarray(area)]
        means = (here * xp.asarray(square)).sum(axis=1) / max(square.sum(), 1e-300)
        here = here - means[:, None]
        every = prediction_errors(here, truncations, np.sqrt(square))
        power[zone] = float((here**2 @ xp.asarray(square)).mean())
        at = xp.asarray(pixels)
        for k, rows in enumerate(every):
            left, by_noise, median = _predicted(rows, flat[:, at] - means[:, None], noise[:, at])
            ratios[k][at], expected[k][at] = left / by_noise / median, by_noise

    def limit(ratio: Any, by_noise: Any, bright: list[float], squares: list[float]) -> Any:
        scaled = by_noise.copy()
        of_star = power @ bright / max(power.sum(), 1e-300)
        for pixels, square in zip(zones.pixels, squares, strict=True):
            scaled[xp.asarray(pixels)] *= of_star + square
        excess = median_of(boxes_of(ratio.reshape(shape))) - 1.0
        return smooth(excess * median_of(boxes_of(scaled.reshape(shape))))

    return [partial(limit, *planes) for planes in zip(ratios, expected, strict=True)]


def _median_of_mean(covariance: np.ndarray) -> float:
    """Return median over mean of a sum of squares of normal numbers (Wilson & Hilferty 1931)."""
    total, squares = np.trace(covariance), (covariance**2).sum()
    return (1.0 - 2.0 / 9.0 * squares / total**2) ** 3 if total > 0 else 1.0


def _excess(residual: Any, own: Any, of_references: Any) -> Any:
    """Return E of every box: squares of the mean residual, less the variance of its noise."""
    xp = cuda.array_namespace(residual)
    finite = xp.isfinite(residual)
    count = finite.sum(axis=0)
    mean = xp.where(finite, residual, 0.0).sum(axis=0) / xp.maximum(count, 1)
    noise = xp.where(finite, own, 0.0).sum(axis=0) / xp.maximum(count, 1) ** 2 + of_references
    mean = xp.where(count > 0, mean, np.nan)
    mean = mean - xp.nanmedian(mean)
    noise = xp.where(count > 0, noise, np.nan)
    square = median_of(boxes_of(mean * mean)) / MEDIAN_SQUARE
    return smooth(square - median_of(boxes_of(noise)))
