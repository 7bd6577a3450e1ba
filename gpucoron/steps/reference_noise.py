"""Noise that references bring into PSF-subtracted images: VAR_REF."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.core.stack import ReferenceNoise
from gpucoron.ops.leave_one_out import combine

if TYPE_CHECKING:
    from gpucoron.ops.zones import Zones

__all__ = ["ReferenceErrors", "mean_of_seen", "reference_noise", "reference_variance"]


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
    mean = mean_of_seen(coefficients)
    deviations = np.sqrt(to_host(errors.variances.mean(axis=(1, 2))))
    variance = reference_variance(mean[..., None, :], errors, zones)[0].astype(np.float32)
    of_zones = mean[0] if len(mean) == 1 and mean.ndim == 2 else mean.T
    return ReferenceNoise(to_host(variance), of_zones, deviations[errors.exposures])


def mean_of_seen(coefficients: Any) -> np.ndarray:
    """Mean over the integrations that have pixels, (nref,) or (nzones, nref)."""
    rows = to_host(coefficients)
    if rows.ndim == 3:
        return np.array([mean_of_seen(of_zone) for of_zone in rows])
    seen = rows.any(axis=1)
    return rows[seen].mean(axis=0) if seen.any() else np.zeros(rows.shape[1])


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
