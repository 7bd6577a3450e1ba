"""Karhunen-Loeve bases of reference images, and projections on them."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from gpucoron.errors import InputError, ParameterError
from gpucoron.ops._host import require_host

__all__ = ["KLBasis"]

RANK_TOLERANCE = 16 * np.finfo(np.float64).eps  # per reference, of the largest eigenvalue


class KLBasis:
    """Karhunen-Loeve decomposition of a set of references, ready for any truncation.

    Parameters
    ----------
    references : (nref, ny, nx) floating
        Aligned, finite reference images; each loses its mean.

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

    Notes
    -----
    The decomposition is that of the (nref, nref) matrix of inner products, never of the pixels. The
    KL vectors themselves are never formed: with R the references, E_K the first K eigenvectors and
    L_K their eigenvalues, the model of a target t is ``R^T E_K L_K^-1 E_K^T R t``, one weighted
    sum of references; and what K vectors leave of the references is ``E_rest E_rest^T R``.

    References
    ----------
    .. [1] Soummer, Pueyo & Larkin 2012, ApJ 755, L28, eqs. 5-9.
    """

    def __init__(self, references):
        require_host("KLIP", references)
        if references.ndim != 3 or references.shape[0] < 1:
            raise InputError(
                f"KLIP needs at least one reference image (nref, ny, nx); got {references.shape}")
        self.shape = references.shape[1:]
        flat = np.array(references, dtype=np.float64).reshape(references.shape[0], -1)
        means = flat.mean(axis=1, keepdims=True)
        if not np.isfinite(means).all():
            bad = int(np.flatnonzero(~np.isfinite(means))[0])
            raise InputError(f"reference {bad + 1} of {len(flat)} is not finite")
        flat -= means
        products = flat @ flat.T
        values, vectors = scipy.linalg.eigh(products)
        values, vectors = values[::-1], vectors[:, ::-1]
        keep = values > RANK_TOLERANCE * len(flat) * max(values[0], 0.0)
        if not keep.any():
            raise InputError("the reference images are all constant: no PSF to model")
        self._references = flat
        self._sums = values[keep]
        self.eigenvectors = np.ascontiguousarray(vectors[:, keep])
        self.eigenvalues = self._sums / (flat.shape[1] - 1)

    @property
    def rank(self) -> int:
        """Number of vectors above rounding level."""
        return len(self._sums)

    def subtract(self, targets, truncate):
        """Subtract from each target its mean and its projection on the first KL vectors.

        Parameters
        ----------
        targets : (n, ny, nx) floating
            Images; pixels that are not finite take no part and come out NaN.
        truncate : int
            Number of vectors to keep; more than there are means all. 0 subtracts the mean alone.

        Returns
        -------
        (n, ny, nx) float64
            The residuals.

        Raises
        ------
        InputError
            Targets of another shape.
        ParameterError
            A negative truncation.
        """
        kept = self._kept(truncate)
        if targets.ndim != 3 or targets.shape[1:] != self.shape:
            raise InputError(f"targets have shape {targets.shape}, references {self.shape}")
        flat = np.array(targets, dtype=np.float64).reshape(len(targets), -1)
        finite = np.isfinite(flat)
        flat[~finite] = 0.0
        count = np.maximum(finite.sum(axis=1, keepdims=True), 1)
        flat -= flat.sum(axis=1, keepdims=True) / count
        flat[~finite] = 0.0
        if kept:
            vectors = self.eigenvectors[:, :kept]
            amplitudes = (flat @ self._references.T) @ vectors / self._sums[:kept]
            flat -= (amplitudes @ vectors.T) @ self._references
        flat[~finite] = np.nan
        return flat.reshape(targets.shape)

    def scatter(self, truncate):
        """Scatter of the references about their own models: KLIP's noise map.

        Parameters
        ----------
        truncate : int
            As in `subtract`.

        Returns
        -------
        (ny, nx) float64
            Population standard deviation, over the references, of what is left of each after its
            own projection. Exactly 0 where no vector is discarded.
        """
        rest = self.eigenvectors[:, self._kept(truncate):]
        if not rest.shape[1]:
            return np.zeros(self.shape)
        left = rest.T @ self._references
        mean = (rest.sum(axis=0) @ left) / len(self._references)
        variance = np.einsum("kp,kp->p", left, left) / len(self._references) - mean**2
        return np.sqrt(np.maximum(variance, 0.0)).reshape(self.shape)

    def _kept(self, truncate):
        if truncate < 0:
            raise ParameterError(f"truncate is {truncate}, expected 0 or more")
        return min(int(truncate), self.rank)
