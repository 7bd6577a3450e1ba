"""Karhunen-Loeve bases on the CPU: products by the BLAS in blocks of pixels, then LAPACK."""

from typing import Any

import numpy as np
import scipy.linalg

from gpucoron.backend.parallel import over_blocks, over_products
from gpucoron.ops.missing_pixels import solve_without


def symmetric_eigen(matrices):
    """Decompose (batch, n, n) symmetric matrices; values descending, a vector in a row."""
    # scipy's eigh of driver "evd", whose checks take ten times longer for small matrices
    lapack = scipy.linalg.lapack
    sizes = [int(size) for size in lapack.dsyevd_lwork(matrices.shape[-1], lower=1)[:2]]

    def decompose(_):
        return [_checked(*lapack.dsyevd(m, 1, 1, *sizes)) for m in matrices]

    # within one thread of the BLAS: what more of them compute depends on their number
    values, columns = zip(*over_blocks(decompose, 1)[0], strict=True)
    return np.stack(values)[:, ::-1], np.stack(columns).transpose(0, 2, 1)[:, ::-1]


def _checked(values, vectors, info):
    if info:
        raise scipy.linalg.LinAlgError(f"LAPACK's dsyevd gives {info}, expected 0")
    return values, vectors


class Basis:
    """All eigenvectors of one set of references (n, pixels).

    Values above `tolerance` times n times the largest count for the rank. With `overwrite` the
    means are taken off in place, where the references are float64. `weight` (pixels,) float64
    multiplies the pixels in means and inner products.

    Attributes
    ----------
    bad : int or None
        The first reference that is not finite throughout; the rest is not there then.
    sums, vectors : (n,), (n, n) float64
        Eigenvalues of the inner products, descending, and a vector in each row.
    rank : int
    """

    def __init__(self, references, tolerance, overwrite, weight=None):
        flat = np.array(references, dtype=np.float64, copy=None if overwrite else True)
        square: Any = None if weight is None else weight**2
        self._square = square
        if weight is None:
            means = flat.mean(axis=1, keepdims=True)
        else:
            means = np.einsum("rp,p->r", flat, square)[:, None] / square.sum()
        bad = np.flatnonzero(~np.isfinite(means))
        self.bad = int(bad[0]) if len(bad) else None
        if self.bad is not None:
            return

        def multiply(block):
            flat[:, block] -= means
            images = flat[:, block] if weight is None else flat[:, block] * weight[block]
            return images @ images.T

        values, vectors = symmetric_eigen(sum(over_blocks(multiply, flat.shape[1]))[None])
        self.sums, self.vectors, self._references = values[0], vectors[0], flat
        self.rank = int((self.sums > tolerance * len(flat) * max(self.sums[0], 0.0)).sum())

    def subtract(self, targets, kept, missing=None):
        """Return what each number of vectors leaves of the targets, and the coefficients.

        Lists of (n, pixels) and (n, references) arrays. Pixels `missing` (n, pixels) bool take no
        part in means and coefficients.
        """
        flat = np.array(targets, dtype=np.float64)
        finite = np.isfinite(flat)
        flat[~finite] = 0.0
        counted = finite if missing is None else finite & ~missing
        flat -= self._means(flat if missing is None else np.where(counted, flat, 0.0), counted)
        flat[~finite] = 0.0
        used = flat if missing is None else np.where(counted, flat, 0.0)
        references, vectors, most = self._references, self.vectors, max(kept, default=0)
        inner = sum(over_blocks(lambda b: self._products(used, b), flat.shape[1]))
        amplitudes = inner @ vectors[:most].T / self.sums[:most]
        models = [(amplitudes[:, :k], 0.0) for k in kept]
        if missing is not None:
            models = self._without(~counted, amplitudes, kept)
        factors = [rows @ vectors[:k] for (rows, _), k in zip(models, kept, strict=True)]
        results = [np.empty_like(flat) for _ in kept]
        every = np.concatenate(factors) if factors else np.zeros((0, len(references)))

        def subtract(block):
            of_all = (every @ references[:, block]).reshape(len(kept), len(flat), -1)
            for model, (_, constant), residual in zip(of_all, models, results, strict=True):
                residual[:, block] = flat[:, block] - constant - model

        over_blocks(subtract, flat.shape[1])
        for residual in results:
            residual[~finite] = np.nan
        return results, factors

    def _without(self, missing, amplitudes, kept):
        """Return amplitudes (n, kept) and constants (n, 1) of fits without missing pixels."""
        pixels, most = missing.shape[1], amplitudes.shape[1]
        square = np.ones(pixels) if self._square is None else self._square
        norm, scale = np.sqrt(square.sum()), np.sqrt(self.sums[:most])

        def solve(target):
            where = np.flatnonzero(missing[target] & (square > 0))
            z = np.empty((most + 1, len(where)))
            z[0] = 1.0 / norm
            z[1:] = self.vectors[:most] @ self._references[:, where] / scale[:, None]
            z *= np.sqrt(square[where])
            moments = z @ z.T
            return [solve_without(amplitudes[target] * scale, moments, k) for k in kept]

        solved = over_products(solve, range(len(missing)))
        models = [np.stack(rows) for rows in zip(*solved, strict=True)]
        return [(x[:, 1:] / scale[:k], x[:, :1] / norm) for x, k in zip(models, kept, strict=True)]

    def _means(self, flat, finite):
        """Means of targets over pixels that count, (n, 1); the others are 0."""
        if self._square is None:
            return flat.sum(axis=1, keepdims=True) / np.maximum(
                finite.sum(axis=1, keepdims=True), 1
            )
        total = np.einsum("tp,p->t", finite.astype(float), self._square)
        sums = np.einsum("tp,p->t", flat, self._square)
        return (sums / np.where(total > 0, total, 1.0))[:, None]

    def _products(self, flat, block):
        """Inner products of targets and references in a block of pixels."""
        images = flat[:, block]
        if self._square is not None:
            images = images * self._square[block]
        return images @ self._references[:, block].T

    def kl_vectors(self, kept):
        """Return the first KL vectors, (kept, pixels)."""
        factors = self.vectors[:kept] / np.sqrt(self.sums[:kept])[:, None]
        out = np.empty((kept, self._references.shape[1]))

        def combine(block):
            out[:, block] = factors @ self._references[:, block]

        over_blocks(combine, out.shape[1])
        return out

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
