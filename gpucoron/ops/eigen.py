"""KLIP: Karhunen-Loeve bases of reference images, and projections on them."""

from __future__ import annotations

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.backend.device import on_gpu
from gpucoron.errors import InputError, ParameterError

__all__ = ["KLBasis", "klip_many", "symmetric_eigen"]

RANK_TOLERANCE = 16 * np.finfo(np.float64).eps  # per reference, of the largest eigenvalue


class KLBasis:
    """Karhunen-Loeve decomposition of a set of references, ready for any truncation.

    Parameters
    ----------
    references : (nref, ny, nx) floating
        Aligned, finite reference images; each loses its mean.
    overwrite : bool
        On the CPU, do so in the array given, where it is float64 and contiguous, and save a copy.
        A GPU never copies such an array nor changes it, but reads it at every call: leave it as
        it is while the basis is in use.
    weight : (ny, nx) floating, optional
        Multiplies the pixels, m, in means and inner products: 1 = used, 0 = ignored. The model of a
        target, and what vectors leave of the references, is made of whole references all the same.
        Default: ones.

    Attributes
    ----------
    eigenvalues : (rank,) float64
        Of the covariance of the references over pixels, descending. Those at rounding level
        (below 16 eps nref times the largest) are dropped: their vectors are noise.
    eigenvectors : (nref, rank) float64
        The KL vectors are ``eigenvectors.T @ references / sqrt(eigenvalues (npix - 1))``.

    Raises
    ------
    InputError
        References that are not 3-D or not finite, or none, or none with any structure.
    DeviceError
        A decomposition on the GPU that fails its check.

    Notes
    -----
    The decomposition is that of the (nref, nref) matrix of inner products, never of the pixels. The
    KL vectors themselves are never formed: with R the references, E_K the first K eigenvectors and
    L_K their eigenvalues, the model of a target t is ``R^T E_K L_K^-1 E_K^T R t``, one weighted
    sum of references; and what K vectors leave of the references is ``E_rest E_rest^T R``.
    With weights the inner products are ``sum m^2 r_i r_j`` and ``sum m^2 r_j t``; with all vectors
    the model is the weighted least-squares fit of the references to the target.

    On a GPU the constructor waits for the device once. Results differ from the CPU's by rounding.

    References
    ----------
    .. [1] Soummer, Pueyo & Larkin 2012, ApJ 755, L28, eqs. 5-9.
    """

    def __init__(self, references, overwrite=False, weight=None):
        (references,) = cuda.as_device_arrays(references)
        if references.ndim != 3 or references.shape[0] < 1:
            raise InputError(
                f"KLIP needs at least one reference image (nref, ny, nx); got {references.shape}"
            )
        self.shape = references.shape[1:]
        self._on_gpu = on_gpu(references)
        if self._on_gpu:
            from gpucoron.ops.cuda.eigen import Basis
        else:
            from gpucoron.ops.cpu.eigen import Basis  # type: ignore[assignment]

        weight, total = _as_weight(weight, references)
        basis = Basis(references.reshape(len(references), -1), RANK_TOLERANCE, overwrite, weight)
        if basis.bad is not None:
            raise InputError(f"reference {basis.bad + 1} of {len(references)} is not finite")
        _check_rank(basis.rank)
        self._basis = basis
        self.eigenvectors = basis.vectors[: basis.rank].T.copy()
        self.eigenvalues = basis.sums[: basis.rank] / (total - 1)

    @property
    def rank(self) -> int:
        """Number of vectors above rounding level."""
        return self._basis.rank

    def subtract(self, targets, truncate, coefficients=None, missing=None):
        """Subtract from each target its mean and its projection on the first KL vectors.

        Parameters
        ----------
        targets : (n, ny, nx) floating
            Images; pixels that are not finite take no part and come out NaN.
        truncate : int or sequence of int
            Number of vectors to keep; more than there are means all. 0 subtracts the mean alone.
        coefficients : list, optional
            Takes for each truncation the coefficients (n, nref) of the references in the models:
            the residual is ``t - mean(t) - coefficients @ (references - their means)``.
        missing : (n, ny, nx) bool, optional
            Pixels of the targets that take no part in means and coefficients, which are those of
            the weighted least-squares fit to the others; the model is subtracted there all the
            same. Default: none; a pixel that is not finite then counts as the mean.

        Returns
        -------
        (n, ny, nx) float64, or a list of such arrays where several truncations are asked for
            The residuals.

        Raises
        ------
        InputError
            Targets of another shape.
        ParameterError
            A negative truncation.
        TypeError
            Targets on the host and references on a GPU, or the other way round.
        """
        kept = [min(k, self.rank) for k in _as_truncations(truncate)]
        (targets,) = cuda.as_device_arrays(targets)
        if targets.ndim != 3 or targets.shape[1:] != self.shape:
            raise InputError(f"targets have shape {targets.shape}, references {self.shape}")
        on_gpu(targets, self.eigenvalues)
        lacking = _as_missing(missing, targets)
        results, factors = self._basis.subtract(targets.reshape(len(targets), -1), kept, lacking)
        if coefficients is not None:
            coefficients += factors
        results = [residual.reshape(targets.shape) for residual in results]
        return results if np.ndim(truncate) else results[0]

    def kl_vectors(self, truncate):
        """Return the first KL vectors as images.

        Parameters
        ----------
        truncate : int
            Number of vectors; more than there are means all.

        Returns
        -------
        (k, ny, nx) float64
            Orthonormal with the product ``sum m^2 a b``, and to a constant.
        """
        kept = min(_as_truncations(truncate)[0], self.rank)
        return self._basis.kl_vectors(kept).reshape(kept, *self.shape)

    def residual_std(self, truncate):
        """Return the standard deviation of references about their models: KLIP's noise map.

        Parameters
        ----------
        truncate : int or sequence of int
            As in `subtract`.

        Returns
        -------
        (ny, nx) float64, or a list of such arrays
            Population standard deviation, over the references, of what is left of each after its
            own projection. Exactly 0 where no vector is discarded.
        """
        kept = [min(k, self.rank) for k in _as_truncations(truncate)]
        results = [plane.reshape(self.shape) for plane in self._basis.residual_std(kept)]
        return results if np.ndim(truncate) else results[0]


def klip_many(
    references,
    targets,
    truncate,
    overwrite=False,
    spectra=None,
    weight=None,
    *,
    coefficients=None,
    scatter=True,
    missing=None,
):
    """Subtract from each of several targets its projection on the KL basis of its own references.

    Parameters
    ----------
    references : (n, nref, ny, nx) floating
        Aligned references of each target. An image that is not finite throughout is left out.
    targets : (n, ny, nx) floating
        Images; pixels that are not finite take no part and come out NaN.
    truncate : int or sequence of int
        Number of vectors to keep; more than there are means all.
    overwrite : bool
        As for `KLBasis`.
    spectra : list, optional
        Takes the eigenvalues of each basis, as `KLBasis` has them.
    weight : (ny, nx) floating, optional
        Of the pixels of all targets, as for `KLBasis`.
    coefficients : list, optional
        Takes for each truncation the coefficients (n, nref) of the references, as
        `KLBasis.subtract`; 0 for one that is left out.
    scatter : bool
        Whether residual standard deviations are wanted; without, they are None.
    missing : (n, ny, nx) bool, optional
        As for `KLBasis.subtract`.

    Returns
    -------
    residuals : (n, ny, nx) float64, or a list of such arrays for several truncations
        As `KLBasis.subtract` gives them.
    residual_stds : (n, ny, nx) float64, or a list of such arrays
        As `KLBasis.residual_std`; NaN for a target without any finite pixel.

    Raises
    ------
    InputError
        Shapes that do not fit, or a target without any usable reference.
    ParameterError
        A negative truncation.
    DeviceError
        A decomposition on the GPU that fails its check.

    Notes
    -----
    A GPU reads the references three times and writes nothing of their size (see
    ``kernels/klip.cu``), but for a float64 copy of float32 ones, and with weights a copy of one
    target's references after another; it takes all targets at once, and the host waits for it once.
    The CPU takes one after another.
    """
    truncations = _as_truncations(truncate)
    references, targets = cuda.as_device_arrays(references, targets)
    if references.ndim != 4 or targets.shape != (len(references), *references.shape[2:]):
        raise InputError(
            f"klip: references have shape {references.shape}, targets {targets.shape}; expected "
            "(n, nref, ny, nx) and (n, ny, nx)"
        )
    klip = _klip_many_cuda if on_gpu(references, targets) else _klip_many_cpu
    spectra = [] if spectra is None else spectra
    residuals, residual_stds, factors = klip(
        references, targets, truncations, overwrite, spectra, weight, scatter, missing
    )
    if coefficients is not None:
        coefficients += factors
    return (residuals, residual_stds) if np.ndim(truncate) else (residuals[0], residual_stds[0])


def _klip_many_cpu(references, targets, truncations, overwrite, spectra, weight, scatter, missing):
    residuals, residual_stds = (
        [np.full(targets.shape, np.nan) for _ in truncations] for _ in range(2)
    )
    coefficients = [np.zeros(references.shape[:2]) for _ in truncations]
    for k, (refs, target) in enumerate(zip(references, targets, strict=True)):
        if not np.isfinite(target).any():
            continue
        usable = np.isfinite(refs).all(axis=(1, 2))
        _check_usable(usable.sum(), len(refs), f" for target {k + 1}")
        every = usable.all()
        basis = KLBasis(refs if every else refs[usable], overwrite or not every, weight)
        spectra.append(basis.eigenvalues)
        own: list = []
        lacking = None if missing is None else missing[k : k + 1]
        left = basis.subtract(target[None], truncations, own, lacking)
        for plane, values in zip(residuals, left, strict=True):
            plane[k] = values[0]
        for rows, values in zip(coefficients, own, strict=True):
            rows[k, usable] = values[0]
        if scatter:
            for plane, values in zip(residual_stds, basis.residual_std(truncations), strict=True):
                plane[k] = values
    return residuals, residual_stds if scatter else [None] * len(residuals), coefficients


def _klip_many_cuda(references, targets, truncations, overwrite, spectra, weight, scatter, missing):
    from gpucoron.ops.cuda.eigen import Bases

    cp, (n, nref), shape = cuda.cupy(), references.shape[:2], targets.shape
    flat = cp.ascontiguousarray(references, dtype=np.float64).reshape(n, nref, -1)
    weight, total = _as_weight(weight, references)
    lacking = _as_missing(missing, targets)
    lacking = None if lacking is None else lacking[:, None]
    bases = Bases(flat, RANK_TOLERANCE, targets.reshape(n, 1, -1), weight, lacking)
    for k in np.flatnonzero(bases.seen):
        _check_usable(bases.used[k], nref, f" for target {k + 1}")
        _check_rank(bases.ranks[k])
        spectra.append(bases.sums[k, : bases.ranks[k]] / (total - 1))
    residuals, stds, coefficients = bases.residuals_and_std(truncations)
    unseen = cp.asarray(bases.seen == 0)[:, None]
    return (
        [residual.reshape(shape) for residual in residuals],
        [cp.where(unseen, np.nan, plane).reshape(shape) if scatter else None for plane in stds],
        [cp.where(unseen, 0.0, rows[:, 0]) for rows in coefficients],
    )


def symmetric_eigen(matrices):
    """Decompose symmetric matrices.

    Parameters
    ----------
    matrices : (batch, n, n) float64

    Returns
    -------
    values : (batch, n) float64
        Eigenvalues, descending.
    vectors : (batch, n, n) float64
        ``vectors[b, i]`` belongs to ``values[b, i]``.

    Raises
    ------
    InputError
        Not a batch of square float64 matrices.
    DeviceError
        A decomposition on the GPU that fails its check.

    Notes
    -----
    On a GPU all matrices are decomposed at once (``kernels/eigen.cu``), and every residual
    ``A v - l v`` and every product of two vectors is compared with its bound; what fails is done
    again by cuSOLVER's syevd, and checked again. The host waits once.
    """
    (matrices,) = cuda.as_device_arrays(matrices)
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or not matrices.size:
        raise InputError(f"matrices have shape {matrices.shape}, expected (batch, n, n)")
    if matrices.dtype.char != "d":
        raise InputError(f"matrices have dtype {matrices.dtype}, expected float64")
    if on_gpu(matrices):
        from gpucoron.ops.cuda import eigen as _eigen_cuda

        return _eigen_cuda.symmetric_eigen(cuda.cupy().ascontiguousarray(matrices))
    from gpucoron.ops.cpu import eigen as _eigen_cpu

    return _eigen_cpu.symmetric_eigen(matrices)


def _as_truncations(truncate):
    truncations = [int(k) for k in np.atleast_1d(truncate)]
    if min(truncations, default=0) < 0:
        raise ParameterError(f"truncate is {min(truncations)}, expected 0 or more")
    return truncations


def _as_weight(weight, references):
    """Return weights (pixels,) float64 where the references are, and the sum of their squares."""
    shape = references.shape[-2:]
    if weight is None:
        return None, shape[0] * shape[1]
    weight = to_host(weight)
    if weight.shape != shape:
        raise InputError(f"klip: weight has shape {weight.shape}, references {shape}")
    weight = weight.astype(np.float64).ravel()
    total = float((weight**2).sum())
    if not (np.isfinite(weight).all() and (weight >= 0).all() and total > 1):
        raise InputError(
            "klip: weight is not finite, negative, or 0 nearly everywhere; expected numbers from 0 "
            "to 1"
        )
    return cuda.array_namespace(references).asarray(weight), total


def _as_missing(missing, targets):
    """Return the pixels that targets lack as (n, pixels) bool, or None."""
    if missing is None:
        return None
    (missing,) = cuda.as_device_arrays(missing)
    if missing.shape != targets.shape:
        raise InputError(f"klip: missing has shape {missing.shape}, targets {targets.shape}")
    on_gpu(missing, targets)
    return missing.reshape(len(missing), -1).astype(bool)


def _check_usable(usable, n, where=""):
    if not usable:
        raise InputError(f"klip: none of {n} reference images is usable{where}")


def _check_rank(rank):
    if not rank:
        raise InputError("the reference images are all constant: no PSF to model")
