"""Errors of PSF-subtracted images: noise of the science pixels, of the references, and speckles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.core.stack import VARIANCES, IntegrationStack, ReferenceNoise
from gpucoron.ops.leave_one_out import combine, exposure_means, prediction_errors

if TYPE_CHECKING:
    from gpucoron.ops.zones import Zones

__all__ = [
    "ReferenceErrors",
    "own_variance",
    "reference_noise",
    "reference_variance",
    "speckle_variance",
    "with_errors",
]

BLOCK = 5  # pixels: side of the boxes in which the scatter is measured
MOST_SPECKLES = 6.0  # times what exposures left out show; 4 to 6 measured where K = 1
MOST_EXPOSURES = 64  # left out one by one; more of them are joined
_MEDIAN_SQUARE = 0.4549364  # of a number drawn from a normal distribution


class ReferenceErrors(NamedTuple):
    """What is known of the noise of science pixels and aligned references."""

    variances: Any  # (n_exposures, ny, nx) float64 of a reference's pixels, moved as its images
    exposures: np.ndarray  # (nref,) int, the reference exposure of each image, numbered from 0
    pixel: Any  # (ny, nx) standard deviation of a science pixel where its variances do not tell


def with_errors(
    stacks: list[IntegrationStack],
    coefficients: list[Any],
    references: Any,
    errors: ReferenceErrors,
    truncations: list[int],
    weight: np.ndarray | None = None,
    zones: Zones | None = None,
) -> list[IntegrationStack]:
    """Add VAR_REF, VAR_SPECKLE and ERR to PSF-subtracted integrations.

    Parameters
    ----------
    stacks : list of IntegrationStack
        For each truncation; on the host or a GPU, as all arrays.
    coefficients : list of (n, nref) float64
        Of the references in the models that were subtracted; (nzones, n, nref) with zones.
    references : (nref, ny, nx) or (n, nref, ny, nx) floating
        The aligned references, for all integrations or for each its own.
    errors : ReferenceErrors
    truncations : list of int
    weight : (ny, nx) floating, optional
        Of the pixels in KLIP.
    zones : Zones, optional
        In which KLIP was done.

    Returns
    -------
    list of IntegrationStack
        `err` is NaN where a pixel is; where nothing is known of its noise, it is what it was.
    """
    xp = cuda.array_namespace(stacks[0].data)
    own = own_variance(stacks[0], errors.pixel)
    n = len(own)
    groups = [slice(0, n)] if references.ndim == 3 else [slice(k, k + 1) for k in range(n)]
    speckles = [xp.zeros(own.shape, dtype=np.float32) for _ in stacks]
    for k, part in enumerate(groups):
        planes = speckle_variance(
            [stack.data[part] for stack in stacks],
            [rows[..., part, :] for rows in coefficients],
            references if references.ndim == 3 else references[k],
            errors,
            own[part],
            truncations=truncations,
            weight=weight,
            zones=zones,
        )
        for out, plane in zip(speckles, planes, strict=True):
            out[part] = plane
    results = []
    for stack, rows, speckle in zip(stacks, coefficients, speckles, strict=True):
        of_references = reference_variance(rows, errors, zones).astype(np.float32)
        total = own + of_references + speckle
        err = xp.where(total > 0, xp.sqrt(total), stack.err)
        results.append(
            stack.replace(
                err=xp.where(xp.isfinite(stack.data), err, np.float32(np.nan)),
                var_ref=of_references,
                var_speckle=speckle,
                reference_noise=reference_noise(rows, errors, zones),
            )
        )
    return results


def reference_noise(
    coefficients: Any, errors: ReferenceErrors, zones: Zones | None = None
) -> ReferenceNoise:
    """Return what the mean of all integrations has of the references' noise.

    Parameters
    ----------
    coefficients : (n, nref) float64, or (nzones, n, nref)
        Rows of zeros (integrations without any pixel) do not count.
    errors : ReferenceErrors
    zones : Zones, optional
    """
    mean = _mean_of_seen(coefficients)
    deviations = np.sqrt(to_host(errors.variances.mean(axis=(1, 2))))
    variance = reference_variance(mean[..., None, :], errors, zones)[0].astype(np.float32)
    of_zones = mean[0] if len(mean) == 1 and mean.ndim == 2 else mean.T
    return ReferenceNoise(to_host(variance), of_zones, deviations[errors.exposures])


def _mean_of_seen(coefficients: Any) -> np.ndarray:
    """Mean over the integrations that have pixels, (nref,) or (nzones, nref)."""
    rows = to_host(coefficients)
    if rows.ndim == 3:
        return np.array([_mean_of_seen(of_zone) for of_zone in rows])
    seen = rows.any(axis=1)
    return rows[seen].mean(axis=0) if seen.any() else np.zeros(rows.shape[1])


def own_variance(stack: IntegrationStack, pixel: Any) -> Any:
    """Return the noise of science pixels: the sum of VAR_*, or ERR squared.

    Parameters
    ----------
    stack : IntegrationStack
        The science integrations.
    pixel : (ny, nx) floating, MJy/sr
        Standard deviation where neither is above 0, as in pixels that were filled.

    Returns
    -------
    (n, ny, nx) float32, (MJy/sr)^2
        0 where nothing is known.
    """
    xp = cuda.array_namespace(stack.data)
    known = [v for v in (getattr(stack, name) for name in VARIANCES) if v is not None]
    total = known[0].astype(np.float32) if known else stack.err.astype(np.float32) ** 2
    for variance in known[1:]:
        total = total + variance
    pixel = xp.nan_to_num(pixel.astype(np.float32)) ** 2
    return xp.where(xp.isfinite(total) & (total > 0), total, pixel)


def reference_variance(
    coefficients: Any, errors: ReferenceErrors, zones: Zones | None = None
) -> Any:
    """Return the noise that references bring into residuals: VAR_REF.

    Parameters
    ----------
    coefficients : (n, nref) float64, or (nzones, n, nref)
        Of the references in the models that were subtracted.
    errors : ReferenceErrors
    zones : Zones, optional

    Returns
    -------
    (n, ny, nx) float64, (MJy/sr)^2
        ``sum_j c_j^2 variance_j``, exact for given coefficients. 0 outside of the zones.
    """
    squares = to_host(coefficients) ** 2
    if zones is None:
        return combine(_by_exposure(squares, errors), errors.variances)
    return _in_zones(zones, [_by_exposure(rows, errors) for rows in squares], errors.variances)


def _in_zones(zones: Zones, rows: list[np.ndarray], planes: Any) -> Any:
    """Return `combine` with the rows of each zone at its pixels, 0 elsewhere."""
    xp, flat = cuda.array_namespace(planes), planes.reshape(len(planes), -1)
    if xp is np:
        from gpucoron.ops.cpu.zone_sums import combine_in_zones

        out = combine_in_zones(zones.labels.ravel(), np.array(rows), flat)
        return out.reshape(-1, *planes.shape[1:])
    out = xp.zeros((len(rows[0]), flat.shape[1]))
    for weights, own in zip(rows, zones.pixels, strict=True):
        if own.size:
            pixels = xp.asarray(own)
            out[:, pixels] = combine(weights, flat[:, pixels])
    return out.reshape(-1, *planes.shape[1:])


def _by_exposure(values: np.ndarray, errors: ReferenceErrors) -> np.ndarray:
    """Sum values (n, nref) over the references of each exposure: (n, n_exposures)."""
    members = np.equal.outer(errors.exposures, np.arange(len(errors.variances)))
    return values @ members.astype(np.float64)


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
    disk for speckles. With a single reference exposure there is no S. Square roots of neighbouring
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
        mean = _mean_of_seen(factors)
        of_mean = reference_variance(mean[..., None, :], errors, zones)[0]
        excess = _excess(residual, own, of_mean)
        if limit is not None and truncate > 0:
            rows = np.atleast_2d(mean)
            limit = limit(
                [row.sum() ** 2 for row in rows],
                [(np.bincount(exposures, row[usable]) ** 2).sum() for row in rows],
            )
            excess = xp.minimum(excess, MOST_SPECKLES * limit)
        plane = _to_pixels(xp.maximum(excess, 0.0), references.shape[1:])
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
    ratio = xp.median(_boxes(left / expected), axis=2) / median - 1.0
    return _smooth(ratio * xp.median(_boxes(expected), axis=2))


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
        excess = _median(_boxes(ratio.reshape(shape))) - 1.0
        return _smooth(excess * _median(_boxes(scaled.reshape(shape))))

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
    square = _median(_boxes(mean * mean)) / _MEDIAN_SQUARE
    return _smooth(square - _median(_boxes(noise)))


def _median(boxes: Any) -> Any:
    """Median of the finite values of each box; 0 where there are none."""
    xp = cuda.array_namespace(boxes)
    empty = xp.isnan(boxes).all(axis=2)
    return xp.nanmedian(xp.where(empty[:, :, None], 0.0, boxes), axis=2)


def _boxes(plane: Any) -> Any:
    """Cut a plane (ny, nx) into boxes: (ny // side, nx // side, side^2); rims are left out."""
    ny, nx = plane.shape
    height, width = min(BLOCK, ny), min(BLOCK, nx)
    rows, columns = ny // height, nx // width
    cut = plane[: rows * height, : columns * width].reshape(rows, height, columns, width)
    return cut.transpose(0, 2, 1, 3).reshape(rows, columns, -1)


def _smooth(boxes: Any) -> Any:
    """Average square roots (signed) over 3 x 3 boxes, and square them again."""
    xp = cuda.array_namespace(boxes)
    root = xp.pad(xp.sign(boxes) * xp.sqrt(abs(boxes)), 1, mode="edge")
    ny, nx = boxes.shape
    mean = sum(root[y : y + ny, x : x + nx] for y in range(3) for x in range(3)) / 9.0
    return xp.sign(mean) * mean**2


def _to_pixels(boxes: Any, shape: tuple[int, int]) -> Any:
    """Interpolate boxes linearly to pixels."""
    xp = cuda.array_namespace(boxes)
    for axis, size in enumerate(shape):
        n = boxes.shape[axis]
        place = np.clip((np.arange(size) + 0.5) / min(BLOCK, size) - 0.5, 0, n - 1)
        low = np.floor(place).astype(int)
        part = xp.asarray((place - low).reshape((-1, 1) if axis == 0 else (1, -1)))
        below = xp.take(boxes, xp.asarray(low), axis=axis)
        above = xp.take(boxes, xp.asarray(np.minimum(low + 1, n - 1)), axis=axis)
        boxes = below + part * (above - below)
    return boxes
