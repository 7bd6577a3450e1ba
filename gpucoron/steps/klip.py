"""klip: PSF subtraction by Karhunen-Loeve image projection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpucoron.backend import cuda
from gpucoron.core.stack import IntegrationStack
from gpucoron.errors import InputError
from gpucoron.ops.eigen import KLBasis, klip_many
from gpucoron.ops.fourier_shift import fourier_shift
from gpucoron.ops.missing_pixels import rolled
from gpucoron.steps.psf_noise import ReferenceErrors, with_errors

__all__ = ["basis", "klip"]


def klip(
    stack: IntegrationStack,
    references: np.ndarray,
    truncate: int | Sequence[int] = 50,
    *,
    offsets: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    errors: ReferenceErrors | None = None,
    overwrite_references: bool = False,
    spectra: list | None = None,
    coefficients: list | None = None,
    missing: np.ndarray | None = None,
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
        Number of KL vectors kept. Several are served from one decomposition.
    offsets : (n, 2) floating, optional
        How far (y, x), px, each integration is from where shared references are. Default: 0.
    weight : (ny, nx) floating, optional
        Multiplies the pixels in means and inner products, from 0 (ignored: a known source is there)
        to 1; where the references are. The model is subtracted everywhere. Default: ones.
    errors : ReferenceErrors, optional
        The noise of the references, which gives the result its errors. Default: not known.
    overwrite_references : bool
        The references may be changed (float64 ones lose their means): saves a copy.
    spectra : list, optional
        Takes the eigenvalues of each KL basis, descending, (MJy/sr)^2.
    coefficients : list, optional
        Takes for each truncation the coefficients (n, nref) of the references in the models.
    missing : (n, ny, nx) bool, optional
        Pixels of the integrations, such as filled ones, that take no part in their means and
        coefficients. The model is subtracted there all the same. Default: none.

    Returns
    -------
    IntegrationStack, or a list of them where several truncations are asked for
        float32: `data` without mean and PSF; dq and the variances given as they were. With
        `errors`: `var_ref`, `var_speckle` (`gpucoron.steps.psf_noise`), `reference_noise`, and
        `err`, the root of the sum of all variances. Without, `err` is jwst's: the scatter of the
        references about their own models, 0 with as many KL vectors as there are references.

    Raises
    ------
    InputError
        No usable reference, or shapes that do not fit.
    ParameterError
        A negative truncation.

    Notes
    -----
    out = t - mean(t) - sum_k <t, z_k> z_k with the KL vectors z_k of Soummer, Pueyo & Larkin
    (2012). The basis is computed once where the references are shared.

    With `weight` m, mean and <,> are weighted with m^2, and the KL vectors are combinations of
    whole references that are orthonormal with that product.

    With `missing` pixels mean and coefficients are those of the weighted least-squares fit of a
    constant and the z_k to the other pixels of an integration, from ``(1 - sum m^2 z_i z_j) x =
    <t, z_i>`` with sums over the missing and the other pixels. With `offsets` the pixel counts that
    is nearest in the references' frame.

    With `offsets` S_s is a shift by s (`gpucoron.ops.fourier_shift`) and
    ``out = t - mean(t) - sum_k <S_-s t, z_k> S_s z_k``: a shift of all images changes no inner
    product, so that one decomposition serves integrations wherever they are. What is not finite in
    a target counts as its mean then.
    """
    images, references = cuda.as_device_arrays(stack.data, references)
    if references.shape[-2:] != stack.shape[1:] or references.ndim not in (3, 4):
        raise InputError(
            f"klip: references have shape {references.shape}, expected "
            f"(nref, {stack.shape[1]}, {stack.shape[2]}) or with {len(stack)} in front"
        )
    truncations = [int(k) for k in np.atleast_1d(truncate)]
    factors: list = []
    if references.ndim == 3:
        shared = basis(references, overwrite_references, weight)
        if spectra is not None:
            spectra.append(shared.eigenvalues)
        subtract = shared.subtract if offsets is None else _Moved(shared, offsets)
        residuals = subtract(images, truncations, factors, missing)
        stds = [None] * len(residuals) if errors else _scatter(images, shared, truncations)
        _insert_left_out(factors, references)
    elif offsets is not None:
        raise InputError(
            "klip: offsets need references that all integrations share, (nref, ny, nx)"
        )
    elif len(references) != len(stack):
        raise InputError(
            f"klip: references for {len(references)} integrations, but there are {len(stack)}"
        )
    else:
        residuals, stds = klip_many(
            references,
            images,
            truncations,
            overwrite_references,
            spectra,
            weight,
            coefficients=factors,
            scatter=errors is None,
            missing=missing,
        )
    if coefficients is not None:
        coefficients += factors
    stacks = [
        stack.replace(
            data=data.astype(np.float32), err=stack.err if std is None else std.astype(np.float32)
        )
        for data, std in zip(residuals, stds, strict=True)
    ]
    if errors is not None:
        stacks = with_errors(stacks, factors, references, errors, truncations, weight)
    return stacks if np.ndim(truncate) else stacks[0]


def _insert_left_out(coefficients: list, references: np.ndarray) -> None:
    """Insert coefficients of 0 for references that are not finite."""
    xp = cuda.array_namespace(references)
    usable = xp.isfinite(references).all(axis=(1, 2))
    if usable.all():
        return
    for k, rows in enumerate(coefficients):
        coefficients[k] = xp.zeros((len(rows), len(references)))
        coefficients[k][:, usable] = rows


def _scatter(images: np.ndarray, shared: KLBasis, truncations: Sequence[int]) -> list[np.ndarray]:
    """Return the scatter of the references about their models, a plane for every image."""
    xp = cuda.array_namespace(images)
    seen = xp.isfinite(images).any(axis=(1, 2))[:, None, None]
    return [
        xp.where(seen, plane.astype(np.float32), np.float32(np.nan))
        for plane in shared.residual_std(truncations)
    ]


class _Moved:
    """Subtracts with one basis from targets that are elsewhere than its references."""

    def __init__(self, shared: KLBasis, offsets: np.ndarray):
        self._shared, self._offsets = shared, np.asarray(offsets, dtype=np.float64)

    def __call__(
        self,
        images: np.ndarray,
        truncations: Sequence[int],
        coefficients: list,
        missing: np.ndarray | None,
    ) -> list[np.ndarray]:
        xp, offsets = cuda.array_namespace(images), np.nan_to_num(self._offsets)
        if offsets.shape != (len(images), 2):
            raise InputError(
                f"klip: offsets have shape {offsets.shape}, expected {(len(images), 2)}"
            )
        finite = xp.isfinite(images)
        targets = xp.where(finite, images, 0.0).astype(np.float64)
        count = xp.maximum(finite.sum(axis=(1, 2), keepdims=True), 1)
        targets -= targets.sum(axis=(1, 2), keepdims=True) / count
        targets *= finite
        moved = fourier_shift(targets, -offsets)
        if missing is not None:
            missing = rolled(missing, np.rint(-offsets).astype(int))
        residuals = []
        for left in self._shared.subtract(moved, truncations, coefficients, missing):
            residual = targets - fourier_shift(moved - left, offsets)
            residual[~finite] = np.nan
            residuals.append(residual)
        return residuals


def basis(
    references: np.ndarray, overwrite: bool = False, weight: np.ndarray | None = None
) -> KLBasis:
    """Build the KL basis of the references that are finite.

    Parameters
    ----------
    references : (nref, ny, nx) floating
        Aligned references.
    overwrite : bool
        They may be changed.
    weight : (ny, nx) floating, optional
        As for `klip`.

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
        return KLBasis(references, overwrite, weight)
    return KLBasis(references[usable], True, weight)
