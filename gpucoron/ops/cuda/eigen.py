"""Karhunen-Loeve bases on a GPU: launches of kernels/klip.cu, and cuSOLVER's eigenvectors."""

from __future__ import annotations

import numpy as np

from gpucoron.backend.cuda import cupy, kernel
from gpucoron.errors import DeviceError
from gpucoron.ops.cuda.cusolver import eigh_batch

TILE, SEGMENT, THREADS = 64, 4096, 128  # as in klip.cu

BOUND = 8 * np.finfo(np.float64).eps  # on residuals and on vectors' products, times n


def symmetric_eigen(matrices):
    """Decompose (batch, n, n) symmetric matrices; values descending, a vector in a row.

    Raises
    ------
    DeviceError
        A decomposition that fails its check: residual or orthogonality.
    """
    values, vectors, good = decompose(matrices)
    repair(matrices, values, vectors, good.get())
    return values, vectors


def decompose(matrices):
    """Decompose without waiting: values, vectors, and which of them pass the check."""
    cp = cupy()
    finite = cp.isfinite(matrices).all(axis=(1, 2))
    decomposed = eigh_batch(cp.where(finite[:, None, None], matrices, 0.0))
    values, vectors = (cp.ascontiguousarray(ascending[:, ::-1]) for ascending in decomposed)
    return values, vectors, finite & passes(matrices, values, vectors)


def passes(matrices, values, vectors):
    """Return which decompositions are right to rounding: ``E A = L E`` and ``E E^T = 1``."""
    cp, n = cupy(), matrices.shape[-1]
    size = abs(values).max(axis=1)
    residual = abs(cp.matmul(vectors, matrices) - values[:, :, None] * vectors).max(axis=(1, 2))
    product = cp.matmul(vectors, vectors.transpose(0, 2, 1)) - cp.eye(n)
    return (residual <= BOUND * n * size) & (abs(product).max(axis=(1, 2)) <= BOUND * n)


def repair(matrices, values, vectors, good):
    """Decompose those anew that failed, one by one by syevd; True where there were any."""
    for k in np.flatnonzero(~good):
        values[k], vectors[k] = _syevd(matrices[k])
        one = slice(k, k + 1)
        if not bool(passes(matrices[one], values[one], vectors[one])[0]):
            raise DeviceError(f"KLIP: the eigen-decomposition of matrix {k + 1} fails its check")
    return not good.all()


def _syevd(matrix):
    values, columns = cupy().linalg.eigh(matrix)
    return values[::-1], columns.T[::-1]


class Bases:
    """All eigenvectors of several sets of references (frames, n, pixels), float64 C-contiguous.

    They are read again whenever something is subtracted, not copied. The tolerance of the rank is
    that of the CPU. The products of `targets` (frames, n_targets, pixels) come from the first pass.
    `weight` (pixels,) multiplies the pixels in means and inner products.

    Attributes
    ----------
    used, ranks, seen : (frames,) int, on the host
        References that are finite throughout, vectors above rounding level, finite target pixels.
    means : (frames, n)
        NaN for a reference that is left out.
    sums, vectors : (frames, n), (frames, n, n)
        Eigenvalues of the inner products, descending, and a vector in each row.
    """

    def __init__(self, references, tolerance, targets=None, weight=None):
        self._references, self._tolerance, self._weight = references, tolerance, weight
        self._targets = None if targets is None else without_means(targets, weight)
        if weight is None:
            self.means, self._inner = reference_sums(references, self._targets)
            products = covariance(references, self.means)
        else:
            self.means, self._inner = weighted_sums(references, weight, self._targets)
            products = weighted_covariance(references, self.means, weight)
        self.sums, self.vectors, good = decompose(products)
        self.used, self.ranks, self.seen, good = self._state(good)
        if repair(products, self.sums, self.vectors, good.astype(bool)):
            self.ranks = self._state(cupy().asarray(good))[1]

    def _state(self, good):
        """Bring over what the host must know; the one time that it waits, but for repairs."""
        cp = cupy()
        used = cp.isfinite(self.means).sum(axis=1)
        least = self._tolerance * used * cp.maximum(self.sums[:, 0], 0.0)
        ranks = (self.sums > least[:, None]).sum(axis=1)
        targets = self.means if self._targets is None else self._targets
        seen = cp.isfinite(targets).reshape(len(used), -1).sum(axis=1)
        return cp.stack([used, ranks, seen, good.astype(used.dtype)]).get()

    def residuals_and_std(self, truncations):
        """Return residuals of the targets given first, their scatter, and coefficients.

        The scatter is the residual standard deviation; coefficients are (frames, n_targets, n).
        """
        kept = np.minimum(truncations, self.ranks[:, None])
        factors = self._factors(self._inner, kept)
        residuals, stds = self._run_kernel(self._targets, factors, kept)
        return residuals, stds, self._by_truncation(factors, kept)

    def subtract(self, targets, truncations):
        """Return residuals (frames, n_targets, pixels) of other targets, and coefficients.

        One array each for every truncation; coefficients are (frames, n_targets, n).
        """
        targets = without_means(targets, self._weight)
        kept = np.minimum(truncations, self.ranks[:, None])
        weighted = targets if self._weight is None else targets * self._weight**2
        _, inner = reference_sums(self._references, weighted)
        factors = self._factors(inner, kept)
        residuals = self._run_kernel(targets, factors, kept[:, :0])[0]
        return residuals, self._by_truncation(factors, kept)

    @staticmethod
    def _by_truncation(factors, kept):
        """Cut coefficients (frames, models, n) into one array for each truncation."""
        frames, n = factors.shape[0], factors.shape[2]
        cut = factors.reshape(frames, kept.shape[1], -1, n)
        return [cut[:, k] for k in range(kept.shape[1])]

    def residual_std(self, truncations):
        """Return residual standard deviations (frames, pixels), one array per truncation."""
        kept = np.minimum(truncations, self.ranks[:, None])
        return self._run_kernel(self._references[:, :0], self.vectors[:, :0], kept)[1]

    def _factors(self, inner, kept):
        """Return the weights of the references in the models: (frames, models, n)."""
        cp, (frames, n) = cupy(), self.means.shape
        amplitudes = cp.matmul(inner, self.vectors.transpose(0, 2, 1))
        counts = cp.asarray(kept)[:, :, None, None] > cp.arange(n)
        sums = cp.where(self.sums > 0, self.sums, 1.0)[:, None, None, :]
        scaled = cp.where(counts, amplitudes[:, None] / sums, 0.0)
        return cp.matmul(scaled.reshape(frames, -1, n), self.vectors)

    def _run_kernel(self, targets, factors, kept):
        """Return residuals for all factors, and residual stds for the vectors `kept`."""
        cp, (frames, n, pixels) = cupy(), self._references.shape
        n_targets, models = targets.shape[1], factors.shape[1]
        rows = cp.concatenate([factors, self.vectors], axis=1) if models else self.vectors
        order = np.argsort(kept[np.argmax(self.ranks)], kind="stable")
        counts = np.column_stack([self.used, self.ranks, kept[:, order]])
        residuals = cp.empty((models // max(1, n_targets), frames, n_targets, pixels))
        residual_stds = cp.empty((len(order), frames, pixels))
        sizes = map(np.int32, (n, pixels, n_targets, models, len(order)))
        kernel("klip", "residuals_and_scatter")(
            (-(-pixels // TILE), frames),
            (THREADS,),
            (
                self._references,
                self.means,
                rows,
                self.vectors.sum(axis=2),
                targets,
                cp.asarray(counts.astype(np.int32, order="C")),
                *sizes,
                residuals,
                residual_stds,
            ),
        )
        return list(residuals), [residual_stds[k] for k in np.argsort(order).tolist()]


def without_means(targets, weight=None):
    """Return float64 targets without their means; pixels that are not finite are NaN."""
    cp = cupy()
    targets = targets.astype(np.float64)
    finite = cp.isfinite(targets)
    if weight is None:
        total = cp.where(finite, targets, 0.0).sum(axis=-1, keepdims=True)
        count = cp.maximum(finite.sum(axis=-1, keepdims=True), 1)
    else:
        total = cp.where(finite, targets * weight**2, 0.0).sum(axis=-1, keepdims=True)
        count = cp.where(finite, weight**2, 0.0).sum(axis=-1, keepdims=True)
        count = cp.where(count > 0, count, 1.0)
    return cp.where(finite, targets - total / count, np.nan)


def reference_sums(references, targets=None):
    """Return means (frames, n), NaN where not finite, and products (frames, n_targets, n)."""
    cp, (frames, n, pixels) = cupy(), references.shape
    n_targets = 0 if targets is None else targets.shape[1]
    at_a_time = min(n_targets, 1) if n_targets < 2 else 4
    means, products = cp.empty((frames, n)), cp.empty((frames, n_targets, n))
    kernel("klip", f"reference_sums<{at_a_time}>")(
        (n, max(1, -(-n_targets // max(1, at_a_time))), frames),
        (256,),
        (
            references,
            references if targets is None else targets,
            np.int32(n),
            np.int32(n_targets),
            np.int32(pixels),
            means,
            products,
        ),
    )
    return means, products


def covariance(references, means):
    """Return the inner products (frames, n, n) of the references without their means."""
    cp, (frames, n, pixels) = cupy(), references.shape
    panels, segments = -(-n // TILE), -(-pixels // SEGMENT)
    parts = cp.empty((frames, segments, panels * (panels + 1) // 2, TILE, TILE))
    kernel("klip", "covariance_parts")(
        (parts.shape[2], segments, frames),
        (THREADS,),
        (references, means, np.int32(n), np.int32(pixels), parts),
    )
    products = cp.empty((frames, n, n))
    kernel("klip", "sum_parts")(
        (-(-n * n // 256), frames), (256,), (parts, np.int32(n), np.int32(segments), products)
    )
    return products


def weighted_sums(references, weight, targets=None):
    """Return weighted means and products of `reference_sums`; targets are without weighted means.

    The difference of weighted and plain means is a product with weights without their mean.
    """
    cp, (frames, _, pixels) = cupy(), references.shape
    square = weight**2
    total = square.sum()
    rows = cp.broadcast_to(square - total / pixels, (frames, 1, pixels))
    if targets is not None:
        rows = cp.concatenate([targets * square, rows], axis=1)
    means, products = reference_sums(references, cp.ascontiguousarray(rows))
    return means + products[:, -1] / total, cp.ascontiguousarray(products[:, :-1])


def weighted_covariance(references, means, weight):
    """Return the weighted inner products of the references without their weighted means.

    Weighted references are made for one frame after another.
    """
    cp = cupy()
    products = []
    for images, own in zip(references, means, strict=True):
        weighted = images - own[:, None]
        weighted *= weight
        products.append(covariance(weighted[None], cp.where(cp.isfinite(own), 0.0, np.nan)[None]))
    return cp.concatenate(products)


class Basis:
    """One set of references; arguments, attributes and methods as on the CPU.

    References of float64 are neither changed nor copied, whatever `overwrite` says.
    """

    def __init__(self, references, tolerance, overwrite, weight=None):
        flat = cupy().ascontiguousarray(references, dtype=np.float64)
        self._bases = Bases(flat[None], tolerance, weight=weight)
        self.sums, self.vectors = self._bases.sums[0], self._bases.vectors[0]
        self.rank, self.bad = int(self._bases.ranks[0]), None
        if self._bases.used[0] < len(flat):
            self.bad = int(np.flatnonzero(np.isnan(self._bases.means[0].get()))[0])

    def subtract(self, targets, kept):
        """Return what each number of vectors leaves of the targets, and the coefficients.

        Lists of (n, pixels) and (n, references) arrays.
        """
        residuals, factors = self._bases.subtract(targets[None], kept)
        return [residual[0] for residual in residuals], [rows[0] for rows in factors]

    def residual_std(self, kept):
        """Return the residual standard deviation for each number of vectors: (pixels,) arrays."""
        return [plane[0] for plane in self._bases.residual_std(kept)]
