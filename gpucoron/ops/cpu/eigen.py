"""Karhunen-Loeve bases on the CPU: products by the BLAS in blocks of pixels, then LAPACK."""

import numpy as np
import scipy.linalg

from gpucoron.backend.parallel import over_blocks


def symmetric_eigen(matrices):
    """Decompose (batch, n, n) symmetric matrices; values descending, a vector in a row."""

    def decompose(_):
        return [scipy.linalg.eigh(matrix, driver="evd") for matrix in matrices]

    # within one thread of the BLAS: what more of them compute depends on their number
    values, columns = zip(*over_blocks(decompose, 1)[0], strict=True)
    return np.stack(values)[:, ::-1], np.stack(columns).transpose(0, 2, 1)[:, ::-1]


class Basis:
    """All eigenvectors of one set of references (n, pixels).

    Values above `tolerance` times n times the largest count for the rank. With `overwrite` the
    means are taken off in place, where the references are float64.

    Attributes
    ----------
    bad : int or None
        The first reference that is not finite throughout; the rest is not there then.
    sums, vectors : (n,), (n, n) float64
        Eigenvalues of the inner products, descending, and a vector in each row.
    rank : int
    """

    def __init__(self, references, tolerance, overwrite):
        flat = np.array(references, dtype=np.float64, copy=None if overwrite else True)
        means = flat.mean(axis=1, keepdims=True)
        bad = np.flatnonzero(~np.isfinite(means))
        self.bad = int(bad[0]) if len(bad) else None
        if self.bad is not None:
            return

        def multiply(block):
            flat[:, block] -= means
            return flat[:, block] @ flat[:, block].T

        values, vectors = symmetric_eigen(sum(over_blocks(multiply, flat.shape[1]))[None])
        self.sums, self.vectors, self._references = values[0], vectors[0], flat
        self.rank = int((self.sums > tolerance * len(flat) * max(self.sums[0], 0.0)).sum())

    def subtract(self, targets, kept):
        """Return what each number of vectors leaves of the targets, as (n, pixels) arrays."""
        flat = np.array(targets, dtype=np.float64)
        finite = np.isfinite(flat)
        flat[~finite] = 0.0
        count = np.maximum(finite.sum(axis=1, keepdims=True), 1)
        flat -= flat.sum(axis=1, keepdims=True) / count
        flat[~finite] = 0.0
        references, vectors, most = self._references, self.vectors, max(kept, default=0)
        inner = sum(over_blocks(lambda b: flat[:, b] @ references[:, b].T, flat.shape[1]))
        amplitudes = inner @ vectors[:most].T / self.sums[:most]
        factors = [amplitudes[:, :k] @ vectors[:k] for k in kept]
        results = [np.empty_like(flat) for _ in kept]

        def subtract(block):
            for factor, residual in zip(factors, results, strict=True):
                residual[:, block] = flat[:, block] - factor @ references[:, block]

        over_blocks(subtract, flat.shape[1])
        for residual in results:
            residual[~finite] = np.nan
        return results

    def residual_std(self, kept):
        """Return the residual standard deviation for each number of vectors: (pixels,) arrays."""
        planes = {k: self._left(k) for k in set(kept)}
        return [planes[k] for k in kept]

    def _left(self, kept):
        """Scatter that the first `kept` vectors leave, from whichever set of vectors is smaller."""
        n, flat = len(self._references), self._references
        out = np.zeros(flat.shape[1])
        few = kept < self.rank - kept
        vectors = self.vectors[:kept] if few else self.vectors[kept : self.rank]
        weights = vectors.sum(axis=1)

        def spread(block):
            modes = vectors @ flat[:, block]
            power, mean = np.einsum("kp,kp->p", modes, modes), weights @ modes
            if few:
                power = np.einsum("rp,rp->p", flat[:, block], flat[:, block]) - power
                mean = flat[:, block].sum(axis=0) - mean
            out[block] = np.sqrt(np.maximum(power / n - (mean / n) ** 2, 0.0))

        if kept < self.rank:
            over_blocks(spread, flat.shape[1])
        return out
