"""Errors of PSF-subtracted images: noise of the science pixels, of the references, and speckles."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.backend import cuda
from gpucoron.core.stack import VARIANCES, IntegrationStack
from gpucoron.ops.subtracted import total_error
from gpucoron.steps.boxes import scatter_variance
from gpucoron.steps.reference_noise import ReferenceErrors, reference_noise, reference_variances
from gpucoron.steps.speckle_noise import speckle_variance

if TYPE_CHECKING:
    from gpucoron.ops.zones import Zones

__all__ = [
    "ReferenceErrors",
    "own_variance",
    "reference_noise",
    "with_errors",
    "with_scatter",
]

log = logging.getLogger("gpucoron")


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
        `err` is NaN where a pixel is; where nothing is known of its own noise, it is no less than
        the scatter of what is left around it (`gpucoron.steps.boxes.scatter_variance`), with a
        warning.
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
    of_references = reference_variances(coefficients, errors, zones)
    results = []
    for stack, (variance, noise), speckle in zip(stacks, of_references, speckles, strict=True):
        result = stack.replace(var_ref=variance, var_speckle=speckle, reference_noise=noise)
        results.append(_with_total(result, own, variance, speckle))
    return results


def with_scatter(stack: IntegrationStack, own: Any) -> IntegrationStack:
    """Set ERR where nothing is known of the references' noise: by what is left, and the own noise.

    Parameters
    ----------
    stack : IntegrationStack
        PSF-subtracted integrations.
    own : (n, ny, nx) floating, (MJy/sr)^2
        From `own_variance`.

    Returns
    -------
    IntegrationStack
        `err` is the larger of the integration's own noise and the scatter around each pixel
        (`gpucoron.steps.boxes.scatter_variance`), with a warning; NaN where a pixel is.
    """
    nothing = cuda.array_namespace(own).zeros_like(own)
    return _with_total(stack, nothing, own, nothing)


def _with_total(
    stack: IntegrationStack, own: Any, reference: Any, speckle: Any
) -> IntegrationStack:
    """Set ERR to the root of all variances; with a warning at least the scatter where own is 0."""
    xp = cuda.array_namespace(stack.data)
    err, lacking = total_error(stack.data, own, reference, speckle)
    if lacking:
        finite = xp.isfinite(stack.data)
        unknown = finite & ~(own > 0)
        scatter = xp.sqrt(scatter_variance(stack.data))
        err = xp.where(unknown, xp.maximum(scatter, err), err)
        names = {source.exposure for source in stack.sources} or {"an exposure"}
        log.warning(
            "klip: %s: the noise of %.3g %% of the pixels, or of all references, is not known (no "
            "ERR or VAR_* above 0); their ERR in psfsub is at least the scatter of what is left "
            "around",
            ", ".join(sorted(names)),
            100.0 * float(unknown.sum()) / max(float(finite.sum()), 1.0),
        )
    return stack.replace(err=err)


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
