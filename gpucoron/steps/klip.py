"""klip: PSF subtraction by Karhunen-Loeve image projection."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gpucoron.backend import cuda
from gpucoron.core.stack import IntegrationStack
from gpucoron.errors import InputError
from gpucoron.ops.eigen import KLBasis, klip_many
from gpucoron.ops.fourier_shift import fourier_shift
from gpucoron.ops.klip_zones import klip_zones
from gpucoron.ops.missing_pixels import rolled
from gpucoron.ops.subtracted import subtract_moved
from gpucoron.ops.zones import Zones
from gpucoron.steps.psf_noise import ReferenceErrors, with_errors

__all__ = ["basis", "klip", "to_references"]


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
    zones: Zones | None = None,
    allowed: np.ndarray | None = None,
    maxnumbasis: int | None = None,
    bases: list | None = None,
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
    zones : Zones, optional
        KL modes for each zone (annuli, sections) of the references' frame, from
        `gpucoron.ops.zones.make_zones`. Default: one, the whole image.
    allowed : (n, nref) or (nzones, n, nref) bool, optional
        Which references serve which integration (in which zone). Default: all.
    maxnumbasis : int, optional
        At most so many of them, those most correlated with the integration in the zone.
    bases : list, optional
        Takes the KLBasis of shared references; nothing where each integration has its own.

    Returns
    -------
    IntegrationStack, or a list of them where several truncations are asked for
        float32: `data` without mean and PSF; dq and the variances given as they were. With
        `errors`: `var_ref`, `var_speckle` (`gpucoron.steps.psf_noise`), `reference_noise`, and
        `err`, the root of the sum of all variances. Without, `err` is jwst's: the scatter of the
        references about their own models, 0 with as many KL vectors as there are references. With
        `zones` coefficients are (nzones, n, nref). With these, `allowed` or `maxnumbasis` `spectra`
        stays as it is, and without `errors` so does `err`; data are NaN outside of the zones and
        where an integration has no references.

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
    a target counts as its mean then. In zones the shifted target is what is modelled (no inner
    product over a part of the image stays as it is when images are moved), and the model is
    shifted back.
    """
    images, references = cuda.as_device_arrays(stack.data, references)
    if references.shape[-2:] != stack.shape[1:] or references.ndim not in (3, 4):
        raise InputError(
            f"klip: references have shape {references.shape}, expected "
            f"(nref, {stack.shape[1]}, {stack.shape[2]}) or with {len(stack)} in front"
        )
    truncations = [int(k) for k in np.atleast_1d(truncate)]
    factors: list = []
    stds: list = [None] * len(truncations)
    zoned = not (zones is None and allowed is None and maxnumbasis is None)
    if zoned:
        subtract_zones = _Zoned(references, zones, allowed, maxnumbasis, weight)
        residuals = subtract_zones(images, truncations, factors, missing, offsets)
        factors = factors if zones is not None else [rows[0] for rows in factors]
    elif references.ndim == 3:
        shared = basis(references, overwrite_references, weight)
        if spectra is not None:
            spectra.append(shared.eigenvalues)
        if bases is not None:
            bases.append(shared)
        subtract = shared.subtract if offsets is None else _Moved(shared.subtract, offsets)
        residuals = subtract(images, truncations, factors, missing)
        stds = stds if errors else _scatter(images, shared, truncations)
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
            data=data.astype(np.float32, copy=False),
            err=stack.err if std is None else std.astype(np.float32),
        )
        for data, std in zip(residuals, stds, strict=True)
    ]
    if errors is not None:
        stacks = with_errors(stacks, factors, references, errors, truncations, weight, zones)
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


class _Zoned:
    """Subtracts in zones, from integrations that share references or have each their own."""

    def __init__(
        self,
        references: np.ndarray,
        zones: Zones | None,
        allowed: np.ndarray | None,
        maxnumbasis: int | None,
        weight: np.ndarray | None,
    ):
        xp = cuda.array_namespace(references)
        self._references, self._zones, self._allowed = references, zones, allowed
        self._maxnumbasis, self._weight = maxnumbasis, weight
        if not bool(xp.isfinite(references).any()):
            n = references.shape[-3]
            raise InputError(f"klip: none of {n} reference images is usable")

    def __call__(
        self,
        images: np.ndarray,
        truncations: Sequence[int],
        coefficients: list,
        missing: np.ndarray | None,
        offsets: np.ndarray | None,
    ) -> list[np.ndarray]:
        if self._references.ndim == 3:
            if offsets is None:
                return self._subtract(images, truncations, coefficients, missing)
            return _Moved(self._subtract, offsets)(images, truncations, coefficients, missing)
        if offsets is not None or len(self._references) != len(images):
            raise InputError(
                f"klip: references have shape {self._references.shape} for {len(images)} "
                "integrations; expected some for each, and no offsets"
            )
        xp, own = cuda.array_namespace(images), []
        rows: list[list] = []
        for k in range(len(images)):
            one, lacking = slice(k, k + 1), None if missing is None else missing[k : k + 1]
            rows.append([])
            own.append(self._subtract(images[one], truncations, rows[-1], lacking, k))
        coefficients += [xp.concatenate(part, axis=1) for part in zip(*rows, strict=True)]
        return [xp.concatenate(part) for part in zip(*own, strict=True)]

    def _subtract(
        self,
        images: np.ndarray,
        truncations: Sequence[int],
        coefficients: list,
        missing: np.ndarray | None,
        number: int | None = None,
    ) -> list[np.ndarray]:
        """Subtract from integrations, or with `number` from one with its own references."""
        allowed, zones = self._allowed, self._zones
        if number is not None and allowed is not None:
            allowed = allowed[..., number : number + 1, :]
        found = klip_zones(
            images,
            self._references if number is None else self._references[number],
            zones,
            truncations,
            allowed=allowed,
            weight=self._weight,
            missing=missing,
            maxnumbasis=self._maxnumbasis,
        )
        coefficients += found.coefficients
        return found.residuals


class _Moved:
    """Subtracts from targets that are elsewhere than the references of `subtract`."""

    def __init__(self, subtract: Callable[..., list[np.ndarray]], offsets: np.ndarray):
        self._subtract, self._offsets = subtract, np.asarray(offsets, dtype=np.float64)

    def __call__(
        self,
        images: np.ndarray,
        truncations: Sequence[int],
        coefficients: list,
        missing: np.ndarray | None,
    ) -> list[np.ndarray]:
        offsets = np.nan_to_num(self._offsets)
        targets, moved = to_references(images, self._offsets)
        if missing is not None:
            missing = rolled(missing, np.rint(-offsets).astype(int))
        subtracted = self._subtract(moved, truncations, coefficients, missing)
        return subtract_moved(images, targets, moved, subtracted, offsets)


def to_references(images: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move integrations to where the references are.

    Parameters
    ----------
    images : (n, ny, nx) floating
    offsets : (n, 2) floating
        As for `klip`.

    Returns
    -------
    targets, moved : (n, ny, nx) float64
        The integrations without their means, 0 where they are not finite, and these moved.
    """
    xp, offsets = cuda.array_namespace(images), np.nan_to_num(np.asarray(offsets, np.float64))
    if offsets.shape != (len(images), 2):
        raise InputError(f"klip: offsets have shape {offsets.shape}, expected {(len(images), 2)}")
    finite = xp.isfinite(images)
    targets = xp.where(finite, images, 0.0).astype(np.float64)
    count = xp.maximum(finite.sum(axis=(1, 2), keepdims=True), 1)
    targets -= targets.sum(axis=(1, 2), keepdims=True) / count
    targets *= finite
    return targets, fourier_shift(targets, -offsets)


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
