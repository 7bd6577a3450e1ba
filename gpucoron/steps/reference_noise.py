"""Noise that references bring into PSF-subtracted images: VAR_REF."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpucoron.backend.arrays import to_host
from gpucoron.core.stack import ReferenceNoise
from gpucoron.ops.leave_one_out import combine
from gpucoron.ops.zone_sums import combine_in_zones

if TYPE_CHECKING:
    from gpucoron.ops.zones import Zones

__all__ = [
    "ReferenceErrors",
    "mean_of_seen",
    "reference_noise",
    "reference_variance",
    "reference_variances",
]


class ReferenceErrors(NamedTuple):
    """What is known of the noise of science pixels and aligned references."""

    variances: Any  # (n_exposures, ny, nx) float64 of a reference's pixels, moved as its images
    exposures: np.ndarray  # (nref,) int, the reference exposure of each image, numbered from 0
    pixel: Any  # (ny, nx) standard deviation of a science pixel where its variances do not tell


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
    return reference_variances([coefficients], errors, zones)[0][1]


def reference_variances(
    coefficients: list[Any], errors: ReferenceErrors, zones: Zones | None = None
) -> list[tuple[Any, ReferenceNoise]]:
    """Return VAR_REF of each integration and the noise of their mean, for each truncation.

    Parameters
    ----------
    coefficients : list of (n, nref) float64, or of (nzones, n, nref)
        As for `reference_noise`.
    errors : ReferenceErrors
    zones : Zones, optional

    Returns
    -------
    list of ((n, ny, nx) float32, ReferenceNoise)
        The planes of variances are read once for all of them.
    """
    deviations = np.sqrt(to_host(errors.variances.mean(axis=(1, 2))))[errors.exposures]
    means = [mean_of_seen(rows) for rows in coefficients]
    every = [
        np.concatenate([to_host(rows), mean[..., None, :]], axis=-2)
        for rows, mean in zip(coefficients, means, strict=True)
    ]
    planes = reference_variance(np.concatenate(every, axis=-2), errors, zones, np.float32)
    results, size = [], every[0].shape[-2]
    for k, mean in enumerate(means):
        own = planes[k * size : (k + 1) * size]
        of_zones = mean[0] if len(mean) == 1 and mean.ndim == 2 else mean.T
        results.append((own[:-1], ReferenceNoise(to_host(own[-1]), of_zones, deviations)))
    return results


def mean_of_seen(coefficients: Any) -> np.ndarray:
    """Mean over the integrations that have pixels, (nref,) or (nzones, nref)."""
    rows = to_host(coefficients)
    if rows.ndim == 3:
        return np.array([mean_of_seen(of_zone) for of_zone in rows])
    seen = rows.any(axis=1)
    return rows[seen].mean(axis=0) if seen.any() else np.zeros(rows.shape[1])


def reference_variance(
    coefficients: Any, errors: ReferenceErrors, zones: Zones | None = None, dtype: Any = np.float64
) -> Any:
    """Return the noise that references bring into residuals: VAR_REF.

    Parameters
    ----------
    coefficients : (n, nref) float64, or (nzones, n, nref)
        Of the references in the models that were subtracted.
    errors : ReferenceErrors
    zones : Zones, optional
    dtype : dtype

    Returns
    -------
    (n, ny, nx) of `dtype`, (MJy/sr)^2
        ``sum_j c_j^2 variance_j``, exact for given coefficients. 0 outside of the zones.
    """
    by_exposure = _by_exposure(to_host(coefficients) ** 2, errors)
    if zones is None:
        return combine(by_exposure, errors.variances, dtype=dtype)
    shape, planes = errors.variances.shape[1:], errors.variances.reshape(len(errors.variances), -1)
    labels = zones.labels.ravel()
    return combine_in_zones(labels, by_exposure, planes, dtype).reshape(-1, *shape)


def _by_exposure(values: np.ndarray, errors: ReferenceErrors) -> np.ndarray:
    """Sum values (..., nref) over the references of each exposure: (..., n_exposures)."""
    members = np.equal.outer(errors.exposures, np.arange(len(errors.variances)))
    return values @ members.astype(np.float64)
