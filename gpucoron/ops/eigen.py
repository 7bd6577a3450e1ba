"""Karhunen-Loeve bases of reference images, and projections on them."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from gpucoron.errors import InputError, ParameterError
from gpucoron.ops._host import require_host
from gpucoron.ops._threads import over_blocks

__all__ = ["KLBasis"]

RANK_TOLERANCE = 16 * np.finfo(np.float64).eps  # per reference, of the largest eigenvalue


class KLBasis:
    """Karhunen-Loeve decomposition of a set of references, ready for any truncation.

    Parameters
    ----------
    references : (nref, ny, nx) floating
        Aligned, finite reference images; each loses its mean.
    overwrite : bool
        Do so in the array given, where it is float64 and contiguous, and save a copy.

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

    def __init__(self, references, overwrite=False):
        require_host("KLIP", references)
        if references.ndim != 3 or references.shape[0] < 1:
            raise InputError(
                f"KLIP needs at least one reference image (nref, ny, nx); got {references.shape}")
        self.shape = references.shape[1:]
        flat = np.array(references, dtype=np.float64, copy=None if overwrite else True)
        flat = flat.reshape(references.shape[0], -1)
        means = flat.mean(axis=1, keepdims=True)
        if not np.isfinite(means).all():
            bad = int(np.flatnonzero(~np.isfinite(means))[0])
            raise InputError(f"reference {bad + 1} of {len(flat)} is not finite")

        def multiply(block):
            flat[:, block] -= means
            return flat[:, block] @ flat[:, block].T

        products = sum(over_blocks(multiply, flat.shape[1]))
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
        truncate : int or sequence of int
            Number of vectors to keep; more than there are means all. 0 subtracts the mean alone.

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
        references, vectors = self._references, self.eigenvectors
        inner = sum(over_blocks(lambda b: flat[:, b] @ references[:, b].T, flat.shape[1]))
        amplitudes = inner @ vectors / self._sums
        factors = [amplitudes[:, :k] @ vectors[:, :k].T for k in kept]
        results = [np.empty_like(flat) for _ in kept]

        def subtract(block):
            for factor, left in zip(factors, results, strict=True):
                left[:, block] = flat[:, block] - factor @ references[:, block]

        over_blocks(subtract, flat.shape[1])
        for left in results:
            left[~finite] = np.nan
        results = [left.reshape(targets.shape) for left in results]
        return results if np.ndim(truncate) else results[0]

    def scatter(self, truncate):
        """Scatter of the references about their own models: KLIP's noise map.

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
        planes = {k: self._left(k) for k in set(self._kept(truncate))}
        results = [planes[k] for k in self._kept(truncate)]
        return results if np.ndim(truncate) else results[0]

    def _left(self, kept):
        """Scatter that the first `kept` vectors leave, from whichever set of vectors is smaller."""
        n, flat = len(self._references), self._references
        out = np.zeros(flat.shape[1])
        few = kept < self.rank - kept
        vectors = self.eigenvectors[:, :kept] if few else self.eigenvectors[:, kept:]
        weights = vectors.sum(axis=0)

        def spread(block):
            modes = vectors.T @ flat[:, block]
            power, mean = np.einsum("kp,kp->p", modes, modes), weights @ modes
            if few:
                power = np.einsum("rp,rp->p", flat[:, block], flat[:, block]) - power
                mean = flat[:, block].sum(axis=0) - mean
            out[block] = np.sqrt(np.maximum(power / n - (mean / n) ** 2, 0.0))

        if kept < self.rank:
            over_blocks(spread, flat.shape[1])
        return out.reshape(self.shape)

    def _kept(self, truncate):
        wanted = np.atleast_1d(truncate)
        if (wanted < 0).any():
            raise ParameterError(f"truncate is {wanted.min()}, expected 0 or more")
        return [min(int(k), self.rank) for k in wanted]
