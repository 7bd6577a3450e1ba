"""Roll subtraction: subtract the mean image of the star at other roll angles, without KLIP."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.core.stack import IntegrationStack
from gpucoron.errors import InputError
from gpucoron.ops.fourier_shift import fourier_shift
from gpucoron.steps.psf_noise import ReferenceErrors, with_errors

__all__ = ["subtract_rolls"]


def subtract_rolls(
    stack: IntegrationStack,
    references: Any,
    *,
    offsets: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    errors: ReferenceErrors | None = None,
    coefficients: list | None = None,
    missing: np.ndarray | None = None,
) -> IntegrationStack:
    """Subtract from every integration the mean of the aligned images of other rolls.

    Parameters
    ----------
    stack : IntegrationStack
        The science integrations, on the host or a GPU, as all arrays.
    references : (nref, ny, nx) or (n, nref, ny, nx) floating, MJy/sr
        Aligned integrations of other rolls, for all integrations or for each its own. An image
        that is not finite throughout is left out.
    offsets, weight, errors, coefficients, missing
        As for `gpucoron.steps.klip.klip`; `weight` and `missing` count for the mean that is
        subtracted.

    Returns
    -------
    IntegrationStack
        As `gpucoron.steps.klip.klip` returns it, of mean 0 over the pixels that count. Without
        `errors`, `err` is what it was.

    Raises
    ------
    InputError
        No usable reference, or shapes that do not fit.

    Notes
    -----
    ``out = t - sum_j r_j / nref``, less its mean. The flux of the star is taken to be the same: it
    is the same star. A source shows a negative image of itself, turned by the difference of the
    rolls, in each exposure (e.g. Lowrance et al. 2005, AJ 130, 1845).
    """
    images, references = cuda.as_device_arrays(stack.data, references)
    xp = cuda.array_namespace(images)
    if references.shape[-2:] != stack.shape[1:] or references.ndim not in (3, 4):
        raise InputError(
            f"roll subtraction: references have shape {references.shape}, expected "
            f"(nref, {stack.shape[1]}, {stack.shape[2]}) or with {len(stack)} in front"
        )
    sets = references[None] if references.ndim == 3 else references
    usable = to_host(xp.isfinite(sets).all(axis=(2, 3)))
    if not usable.any():
        raise InputError(f"roll subtraction: none of {sets.shape[1]} images is usable")
    models = xp.stack(
        [own[xp.asarray(use)].mean(axis=0) for own, use in zip(sets, usable, strict=True)]
    )
    models = xp.repeat(models, len(stack), axis=0) if references.ndim == 3 else models
    if offsets is not None:
        models = fourier_shift(models, np.nan_to_num(np.asarray(offsets, dtype=np.float64)))
    residual = images - models
    residual -= _means(residual, weight, missing)
    shares = usable / np.maximum(usable.sum(axis=1, keepdims=True), 1)
    rows = np.array(np.broadcast_to(shares, (len(stack), shares.shape[1])))
    rows[~to_host(xp.isfinite(images).any(axis=(1, 2)))] = 0.0
    if coefficients is not None:
        coefficients.append(xp.asarray(rows))
    result = stack.replace(data=residual.astype(np.float32))
    if errors is None:
        return result
    return with_errors([result], [xp.asarray(rows)], references, errors, [0], weight)[0]


def _means(images: Any, weight: np.ndarray | None, missing: Any) -> Any:
    """Mean of each image over its pixels that count, (n, 1, 1)."""
    xp = cuda.array_namespace(images)
    good = xp.isfinite(images)
    if missing is not None:
        good &= ~missing
    if weight is not None:
        good = good * xp.asarray(weight) ** 2
    total = xp.where(good > 0, images * good, 0.0).sum(axis=(1, 2), keepdims=True)
    count = good.sum(axis=(1, 2), keepdims=True)
    return total / xp.where(count > 0, count, 1)
