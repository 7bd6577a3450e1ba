"""klip: PSF subtraction by Karhunen-Loeve image projection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gpucoron.backend import cuda
from gpucoron.core.stack import IntegrationStack
from gpucoron.errors import InputError
from gpucoron.ops.eigen import KLBasis, klip_many

__all__ = ["basis", "klip"]


def klip(
    stack: IntegrationStack,
    references: np.ndarray,
    truncate: int | Sequence[int] = 50,
    *,
    overwrite_references: bool = False,
    spectra: list | None = None,
) -> IntegrationStack | list[IntegrationStack]:
    """Subtract from every integration its projection on the references' first KL modes.

    Parameters
    ----------
    stack : IntegrationStack
        The science integrations; pixels that are not finite take no part and stay NaN.
    references : (nref, ny, nx) or (n, nref, ny, nx) floating
        Aligned references, for all integrations or for each its own. An image that is not finite
        throughout is left out.
    truncate : int or sequence of int
        Number of KL vectors kept. Several are served from one decomposition. With as many as there
        are references, all of each reference is modelled, and err is 0.
    overwrite_references : bool
        The references may be changed (float64 ones lose their means): saves a copy.
    spectra : list, optional
        Takes the eigenvalues of each KL basis, descending, (MJy/sr)^2.

    Returns
    -------
    IntegrationStack, or a list of them where several truncations are asked for
        float32: `data` without mean and PSF, `err` the scatter of the references about their own
        models; dq and variances as they were.

    Raises
    ------
    InputError
        No usable reference, or shapes that do not fit.
    ParameterError
        A negative truncation.

    Notes
    -----
    out = t - mean(t) - sum_k <t, z_k> z_k with the KL vectors z_k of Soummer, Pueyo & Larkin
    (2012); err is the same plane for every integration that shares its references. The basis is
    computed once where the references are shared.
    """
    images, references = cuda.as_device_arrays(stack.data, references)
    if references.shape[-2:] != stack.shape[1:] or references.ndim not in (3, 4):
        raise InputError(
            f"klip: references have shape {references.shape}, expected "
            f"(nref, {stack.shape[1]}, {stack.shape[2]}) or with {len(stack)} in front"
        )
    truncations = [int(k) for k in np.atleast_1d(truncate)]
    if references.ndim == 3:
        pairs = _shared(images, references, truncations, overwrite_references, spectra)
    elif len(references) != len(stack):
        raise InputError(
            f"klip: references for {len(references)} integrations, but there are {len(stack)}"
        )
    else:
        residuals, residual_stds = klip_many(
            references, images, truncations, overwrite_references, spectra
        )
        pairs = zip(residuals, residual_stds, strict=True)
    stacks = [
        stack.replace(data=data.astype(np.float32), err=err.astype(np.float32))
        for data, err in pairs
    ]
    return stacks if np.ndim(truncate) else stacks[0]


def _shared(
    images: np.ndarray,
    references: np.ndarray,
    truncations: Sequence[int],
    overwrite: bool,
    spectra: list | None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield residuals and scatters, each truncation's, where all images share the references."""
    xp = cuda.array_namespace(images, references)
    shared = basis(references, overwrite)
    if spectra is not None:
        spectra.append(shared.eigenvalues)
    seen = xp.isfinite(images).any(axis=(1, 2))[:, None, None]
    residuals, residual_stds = (
        shared.subtract(images, truncations),
        shared.residual_std(truncations),
    )
    for residual, plane in zip(residuals, residual_stds, strict=True):
        yield residual, xp.where(seen, plane.astype(np.float32), np.float32(np.nan))


def basis(references: np.ndarray, overwrite: bool = False) -> KLBasis:
    """Build the KL basis of the references that are finite.

    Parameters
    ----------
    references : (nref, ny, nx) floating
        Aligned references.
    overwrite : bool
        They may be changed.

    Returns
    -------
    KLBasis

    Raises
    ------
    InputError
        None of them is usable.
    """
    (references,) = cuda.as_device_arrays(references)
    usable = cuda.array_namespace(references).isfinite(references).all(axis=(1, 2))
    if not usable.any():
        raise InputError(f"klip: none of {len(usable)} reference images is usable")
    if usable.all():
        return KLBasis(references, overwrite)
    return KLBasis(references[usable], overwrite=True)
