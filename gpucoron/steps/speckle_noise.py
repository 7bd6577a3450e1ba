"""Variance of the speckles that KLIP leaves: VAR_SPECKLE."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.ops.klip_zones import zone_products
from gpucoron.ops.leave_one_out import combine, exposure_means, predictions
from gpucoron.ops.subtracted import mean_and_noise
from gpucoron.ops.zone_sums import combine_in_zones, cut, squares_in_zones
from gpucoron.steps.boxes import (
    MEDIAN_SQUARE,
    average,
    boxes_of,
    median_of,
    smooth,
    to_pixels,
)
from gpucoron.steps.reference_noise import ReferenceErrors, mean_of_seen, reference_variance

if TYPE_CHECKING:
    from gpucoron.ops.zones import Zones

__all__ = ["speckle_variance"]

MOST_SPECKLES = 8.0  # times what exposures left out show; 4 to 8 measured where K = 1
# of the noise: two errors of the smoothed medians of squares, from which speckles are counted
DOUBT = 0.4
TINY = np.finfo(np.float64).tiny
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

    E: the square of the mean residual of all integrations, about its median, less the variance N of
    its noise. Where nothing but noise is left E is as often positive as negative, by 0.2 N; so that
    these errors are not taken for speckles, E is lowered by ``(0.4 N)^2 / E``, to 0 below 0.4 N.

    The result is E, at most 8 S. S alone is an upper limit of the right order: dithers at the rim
    of the pattern are harder to predict than a science star in its middle. E alone would take a
    disk for speckles. With a single reference exposure there is no S. Neighbouring boxes are
    averaged (`gpucoron.steps.boxes.smooth`), and interpolated to pixels.
    """
    xp = cuda.array_namespace(references)
    usable = to_host(xp.isfinite(references).all(axis=(1, 2)))
    numbers, exposures = np.unique(_joined(errors.exposures)[usable], return_inverse=True)
    limits: list[Any] = [None] * len(truncations)
    if len(numbers) > 1:
        whole = references if usable.all() else references[xp.asarray(usable)]
        images = exposure_means(whole, exposures)
        variances = _of_means(errors, usable, exposures)
        limits = _left_out(images, variances, truncations, weight, zones)
    means = [mean_of_seen(factors) for factors in coefficients]
    of_means = reference_variance(np.stack(means, axis=-2), errors, zones)
    results = []
    for residual, mean, of_mean, limit, truncate in zip(
        residuals, means, of_means, limits, truncations, strict=True
    ):
        excess = _excess(residual, own, of_mean)
        if limit is not None and truncate > 0:
            rows = np.atleast_2d(mean)
            bright = rows.sum(axis=1) ** 2
            squares = [(np.bincount(exposures, row[usable]) ** 2).sum() for row in rows]
            excess = xp.minimum(excess, MOST_SPECKLES * limit(bright, squares))
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


def _left_out(
    images: Any,
    variances: Any,
    truncations: list[int],
    weight: np.ndarray | None,
    zones: Zones | None,
) -> list[Callable[[np.ndarray, list[float]], Any]]:
    """Return for each truncation what makes S of every box for the science images' coefficients.

    It takes the squares of the coefficients' sums, and the sums over exposures of the squares of
    theirs, of all zones. How bright the star is, the sum of coefficients, is the same for all
    zones: their mean, weighted with the power of the references there, for zones without starlight
    do not tell.
    """
    xp, shape = cuda.array_namespace(images), images.shape[1:]
    sums = zone_products(images, zones, weight=weight)
    means, products = to_host(sums.means), to_host(sums.products)
    power = np.trace(products, axis1=1, axis2=2)
    labels = np.zeros(shape, dtype=int) if zones is None else zones.labels
    labels = labels.ravel()
    labels = np.where((labels >= 0) & (to_host(sums.totals)[labels, 0] > 0), labels, -1)
    noise = variances.reshape(len(variances), -1)
    typical = _typical(noise, labels, len(products))
    rows, medians = _weighted(predictions(products, truncations), typical)
    rows = rows.transpose(1, 0, 2, 3)
    left = squares_in_zones(
        labels, rows, (rows @ means[:, None, :, None])[..., 0], images.reshape(len(images), -1)
    )
    by_noise = combine_in_zones(labels, (rows**2).sum(axis=2), noise)
    zone_of = xp.asarray(labels)

    def limit(k: int, bright: np.ndarray, squares: list[float]) -> Any:
        ratio = left[k] / xp.maximum(by_noise[k], TINY) / xp.asarray(medians[k])[zone_of]
        of_star = power @ bright / max(power.sum(), TINY)
        scaled = by_noise[k] * xp.asarray(of_star + np.array(squares))[zone_of]
        scaled[zone_of < 0] = np.nan
        excess = median_of(boxes_of(ratio.reshape(shape))) - 1.0
        noise_of_boxes = median_of(boxes_of(scaled.reshape(shape)))
        return smooth(excess * noise_of_boxes, noise_of_boxes)

    return [partial(limit, k) for k in range(len(truncations))]


def _typical(noise: Any, labels: np.ndarray, n_zones: int) -> np.ndarray:
    """Return the median noise of each exposure in each zone, (nzones, n_exposures)."""
    xp = cuda.array_namespace(noise)
    typical = np.zeros((n_zones, len(noise)))
    pieces, of = cut(labels, n_zones, labels.size)
    for zone, pixels in zip(of.tolist(), pieces, strict=True):
        typical[zone] = to_host(xp.median(noise[:, xp.asarray(pixels)], axis=1))
    return typical


def _weighted(rows: np.ndarray, typical: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight the predictions of exposures by their noise, in each zone.

    Returns the rows (ntruncations, nzones, n, n), and the median over mean of the sum of squares
    that noise leaves (ntruncations, nzones) [Wilson & Hilferty 1931].
    """
    amplification = (rows**2).sum(axis=3)
    noise = (rows**2 @ typical[:, :, None])[..., 0]
    weights = np.where(noise > 0, amplification / np.where(noise > 0, noise, 1.0), 1.0) ** 2
    weights /= weights.sum(axis=2, keepdims=True)
    rows = rows * np.sqrt(weights / amplification)[..., None]
    covariance = (rows * typical[:, None]) @ rows.swapaxes(2, 3)
    total = np.trace(covariance, axis1=2, axis2=3)
    squares = (covariance**2).sum(axis=(2, 3))
    ratio = squares / np.where(total > 0, total, np.inf) ** 2
    return rows, (1.0 - 2.0 / 9.0 * ratio) ** 3


def _excess(residual: Any, own: Any, of_references: Any) -> Any:
    """Return E of every box: squares of the mean residual, less the variance of its noise."""
    xp = cuda.array_namespace(residual)
    mean, noise = mean_and_noise(residual, own)
    noise += of_references
    mean -= xp.nanmedian(mean)
    square = median_of(boxes_of(mean * mean)) / MEDIAN_SQUARE
    noise_of_boxes = median_of(boxes_of(noise))
    excess = smooth(square - noise_of_boxes, noise_of_boxes)
    doubt = DOUBT * average(noise_of_boxes)
    return excess - doubt * doubt / xp.maximum(abs(excess), doubt + TINY)
