"""Karhunen-Loeve bases on a GPU: launches of kernels/klip.cu, and cuSOLVER's eigenvectors."""

from __future__ import annotations

import numpy as np

from gpucoron.backend.cuda import cupy, kernel
from gpucoron.errors import DeviceError
from gpucoron.ops.cuda.cusolver import eigh_batch
from gpucoron.ops.missing_pixels import LEAST

TILE, SEGMENT, THREADS = 64, 4096, 128  # as in klip.cu

GATHERED = 2**25  # values of references in missing pixels that are gathered at a time
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
    `weight` (pixels,) multiplies the pixels in means and inner products. Pixels `missing`, of the
    targets, take no part in means and coefficients; with them the host waits twice more, and once
    for each truncation.

    Attributes
    ----------
    used, ranks, seen : (frames,) int, on the host
        References that are finite throughout, vectors above rounding level, finite target pixels.
    means : (frames, n)
        NaN for a reference that is left out.
    sums, vectors : (frames, n), (frames, n, n)
        Eigenvalues of the inner products, descending, and a vector in each row.
    """

    def __init__(self, references, tolerance, targets=None, weight=None, missing=None):
        self._references, self._tolerance, self._weight = references, tolerance, weight
        self._targets = self._counted = None
        if targets is not None:
            self._targets, self._counted = without_means(targets, weight, missing)
        self._missing = missing
        if weight is None:
            self.means, self._inner = reference_sums(references, self._counted)
            products = covariance(references, self.means)
        else:
            self.means, self._inner = weighted_sums(references, weight, self._counted)
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
        factors, constants = self._factors(self._inner, kept, self._counted, self._missing)
        residuals, stds = self._run_kernel(self._targets, factors, kept)
        self._take_off(residuals, constants)
        return residuals, stds, self._by_truncation(factors, kept)

    def subtract(self, targets, truncations, missing=None):
        """Return residuals (frames, n_targets, pixels) of other targets, and coefficients.

        One array each for every truncation; coefficients are (frames, n_targets, n).
        """
        targets, counted = without_means(targets, self._weight, missing)
        kept = np.minimum(truncations, self.ranks[:, None])
        weighted = counted if self._weight is None else counted * self._weight**2
        _, inner = reference_sums(self._references, weighted)
        factors, constants = self._factors(inner, kept, counted, missing)
        residuals = self._run_kernel(targets, factors, kept[:, :0])[0]
        self._take_off(residuals, constants)
        return residuals, self._by_truncation(factors, kept)

    @staticmethod
    def _take_off(residuals, constants):
        """Subtract constants (frames, truncations, n_targets) from residuals in place."""
        if constants is not None:
            for k, residual in enumerate(residuals):
                residual -= constants[:, k, :, None]

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

    def _factors(self, inner, kept, counted, missing):
        """Return the weights of the references in the models: (frames, models, n).

        And the constants (frames, truncations, n_targets) in these; None where no pixel is missing.
        """
        cp, (frames, n) = cupy(), self.means.shape
        amplitudes = cp.matmul(inner, self.vectors.transpose(0, 2, 1))
        if missing is not None:
            scaled, constants = self._without(amplitudes, kept, ~cp.isfinite(counted))
            return cp.matmul(scaled.reshape(frames, -1, n), self.vectors), constants
        counts = cp.asarray(kept)[:, :, None, None] > cp.arange(n)
        sums = cp.where(self.sums > 0, self.sums, 1.0)[:, None, None, :]
        scaled = cp.where(counts, amplitudes[:, None] / sums, 0.0)
        return cp.matmul(scaled.reshape(frames, -1, n), self.vectors), None

    def _without(self, amplitudes, kept, missing):
        """Return amplitudes (frames, truncations, n_targets, n) and constants without pixels."""
        cp, (frames, n_targets, n) = cupy(), amplitudes.shape
        square = cp.ones(missing.shape[2]) if self._weight is None else self._weight**2
        norm, most = cp.sqrt(square.sum()), int(kept.max(initial=0))
        scale = cp.sqrt(cp.where(self.sums > 0, self.sums, 1.0))
        moments = self._moments(missing, square, norm, scale, most)
        right = cp.zeros((frames, n_targets, most + 1))
        right[:, :, 1:] = amplitudes[:, :, :most] / scale[:, None, :most]
        rows = cp.zeros((frames, kept.shape[1], n_targets, n))
        constants = cp.empty(rows.shape[:3])
        for j, of_frames in enumerate(kept.T):
            x = solve_all_without(right, moments, of_frames)
            rows[:, j, :, :most] = x[:, :, 1:] / scale[:, None, :most]
            constants[:, j] = x[:, :, 0] / norm
        return rows, constants

    def _moments(self, missing, square, norm, scale, most):
        """Return the sums over missing pixels that `solve_without` takes, of `most` vectors.

        Targets are worked on together, each with as many pixels as the worst of them lacks, those
        beyond its own with the weight 0.
        """
        cp, (frames, n_targets, _), n = cupy(), missing.shape, self.means.shape[1]
        pixels, weights = _listed(missing & (square > 0), cp.sqrt(square))
        moments = cp.empty((frames, n_targets, most + 1, most + 1))
        together = max(1, GATHERED // max(1, n * pixels.shape[2]))
        for f in range(frames):
            vectors = self.vectors[f, :most] / scale[f, :most, None]
            for k in range(0, n_targets, together):
                own = slice(k, k + together)
                images = self._references[f][:, pixels[f, own]] - self.means[f][:, None, None]
                images = cp.where(cp.isfinite(images), images, 0.0)
                z = cp.empty((most + 1, *images.shape[1:]))
                z[0] = 1.0 / norm
                z[1:] = cp.matmul(vectors, images.reshape(n, -1)).reshape(most, *images.shape[1:])
                z = cp.ascontiguousarray((z * weights[f, own]).transpose(1, 0, 2))
                moments[f, own] = cp.matmul(z, z.transpose(0, 2, 1))
        return moments

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


def solve_all_without(right, moments, kept):
    """Solve `gpucoron.ops.missing_pixels.solve_without` for all targets of all frames.

    `right` (frames, n_targets, K + 1) is 0 and the amplitudes, `moments` has one more K + 1, and
    `kept` (frames,) says how many vectors count, on the host; the others have coefficients of 0.
    """
    cp, size = cupy(), right.shape[2]
    counts = cp.arange(size) <= cp.asarray(kept)[:, None, None]
    matrices = cp.eye(size) - cp.where(counts[..., None] & counts[:, :, None], moments, 0.0)
    values, vectors = symmetric_eigen(matrices.reshape(-1, size, size))
    inner = cp.matmul(vectors, cp.where(counts, right, 0.0).reshape(-1, size, 1))[:, :, 0]
    inner = cp.where(values > LEAST, inner / cp.maximum(values, LEAST), 0.0)
    return cp.matmul(inner[:, None], vectors)[:, 0].reshape(right.shape)


def _listed(missing, weight):
    """List missing pixels (frames, n_targets, pixels) of each target, and their weights.

    Returns two arrays (frames, n_targets, most); beyond those of a target the weight is 0.
    """
    cp = cupy()
    counts = missing.sum(axis=2).get()
    pixels = cp.zeros((*counts.shape, int(counts.max(initial=0))), dtype=np.int64)
    weights = cp.zeros(pixels.shape)
    frame, target, pixel = cp.nonzero(missing)
    starts = np.cumsum(counts) - counts.ravel()
    slot = cp.arange(len(pixel)) - cp.asarray(starts)[frame * counts.shape[1] + target]
    pixels[frame, target, slot], weights[frame, target, slot] = pixel, weight[pixel]
    return pixels, weights


def without_means(targets, weight=None, missing=None):
    """Return float64 targets without their means; pixels that are not finite are NaN.

    And the same with NaN where pixels are `missing` as well, which take no part in the means.
    """
    cp = cupy()
    targets = targets.astype(np.float64)
    known = cp.isfinite(targets)
    finite = known if missing is None else known & ~missing
    if weight is None:
        total = cp.where(finite, targets, 0.0).sum(axis=-1, keepdims=True)
        count = cp.maximum(finite.sum(axis=-1, keepdims=True), 1)
    else:
        total = cp.where(finite, targets * weight**2, 0.0).sum(axis=-1, keepdims=True)
        count = cp.where(finite, weight**2, 0.0).sum(axis=-1, keepdims=True)
        count = cp.where(count > 0, count, 1.0)
    filled = cp.where(known, targets - total / count, np.nan)
    return filled, filled if missing is None else cp.where(finite, filled, np.nan)


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

    def subtract(self, targets, kept, missing=None):
        """Return what each number of vectors leaves of the targets, and the coefficients.

        Lists of (n, pixels) and (n, references) arrays.
        """
        lacking = None if missing is None else missing[None]
        residuals, factors = self._bases.subtract(targets[None], kept, lacking)
        return [residual[0] for residual in residuals], [rows[0] for rows in factors]

    def kl_vectors(self, kept):
        """Return the first KL vectors, (kept, pixels)."""
        bases, cp = self._bases, cupy()
        factors = self.vectors[:kept] / cp.sqrt(self.sums[:kept])[:, None]
        return factors @ bases._references[0] - (factors @ bases.means[0])[:, None]

    def residual_std(self, kept):
        """Return the residual standard deviation for each number of vectors: (pixels,) arrays."""
        return [plane[0] for plane in self._bases.residual_std(kept)]
