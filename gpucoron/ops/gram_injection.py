"""Injected sources where they are in the references, too (ADI): KLIP again, by inner products."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg

from gpucoron.backend.parallel import over_blocks, over_items
from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.eigen import RANK_TOLERANCE

__all__ = ["GramInjection"]


class GramInjection:
    """Subtracts by KLIP again with a source in targets and references, from inner products alone.

    Parameters
    ----------
    images : (n, ny, nx) floating
        Targets and references, finite, in one frame.
    allowed : (t, n) bool
        Which images are references of each of the first t images, the targets; a target is none of
        its own.
    groups : (n,) int
        Which of the stamps of a source an image has, such as the number of its roll; -1 for
        references of other stars.
    truncate : int
        Number of KL vectors; more than there are means all.
    weight : (ny, nx) floating, optional
        m, as for `gpucoron.ops.eigen.KLBasis`; a zone is m = 0 outside of it.

    Raises
    ------
    InputError
        Shapes that do not fit, images that are not finite, or a target without references.
    ParameterError
        A negative truncation.

    Notes
    -----
    With images R and the source's stamps P without their means, the inner products become
    ``G' = G + R P^T + P R^T + P P^T``, which costs n products of stamps. The first eigenvectors of
    the part of each set of references follow, and the residual is made on a patch alone. The
    result is that of a new subtraction to rounding, self-subtraction included.

    References
    ----------
    Soummer, Pueyo & Larkin 2012, ApJ 755, L28; Pueyo 2016, ApJ 824, 117, does to first order what
    is exact here.
    """

    def __init__(self, images: Any, allowed: Any, groups: Any, truncate: int, weight: Any = None):
        images = np.array(images, dtype=np.float64)
        allowed, self._groups = np.asarray(allowed, bool), np.asarray(groups, dtype=np.int64)
        if images.ndim != 3 or allowed.shape[1:] != (len(images),) or len(allowed) > len(images):
            raise InputError(
                f"images have shape {images.shape}, allowed {allowed.shape}; expected (n, ny, nx) "
                "and (targets, n)"
            )
        if self._groups.shape != (len(images),):
            raise InputError(f"groups has shape {self._groups.shape}, expected ({len(images)},)")
        if not np.isfinite(images).all():
            raise InputError("images have values that are not finite, expected numbers only")
        if not allowed.any(axis=1).all():
            raise InputError("a target has no references, expected one or more for each")
        if truncate < 0:
            raise ParameterError(f"truncate is {truncate}, expected 0 or more")
        self.shape, self._truncate = images.shape[1:], int(truncate)
        square = np.ones(self.shape) if weight is None else np.asarray(weight, np.float64) ** 2
        if square.shape != self.shape:
            raise InputError(f"weight has shape {square.shape}, images {self.shape}")
        self._square, self._total = square.ravel(), float(square.sum())
        flat = images.reshape(len(images), -1)
        flat -= (flat @ self._square)[:, None] / self._total
        self._flat = flat
        self._products = sum(
            over_blocks(lambda b: (flat[:, b] * self._square[b]) @ flat[:, b].T, flat.shape[1])
        )
        self._sets, which = np.unique(allowed, axis=0, return_inverse=True)
        self._targets = [np.flatnonzero(which.ravel() == k) for k in range(len(self._sets))]
        self._n_targets = len(allowed)

    def residuals(self, stamps: Any, corners: Any, places: Any, size: int) -> np.ndarray:
        """Return patches of the targets' residuals with sources, each by itself, in the images.

        Parameters
        ----------
        stamps : (m, g, h, w) floating
            Images of m sources in each group; zeros give the residuals without a source.
        corners : (m, g, 2) int
            Row and column of the first pixel of each stamp; it may reach over the edge.
        places : (m, g, 2) int
            Row and column of the first pixel of the patch in the targets of each group.
        size : int
            Side of a patch.

        Returns
        -------
        (m, t, size, size) float64
            NaN outside of the images.
        """
        stamps = np.asarray(stamps, dtype=np.float64)
        corners, places = np.asarray(corners, np.int64), np.asarray(places, np.int64)
        n_groups = int(self._groups.max(initial=-1)) + 1
        if stamps.ndim != 4 or stamps.shape[1] < n_groups:
            raise InputError(f"stamps have shape {stamps.shape}, expected (m, {n_groups}, h, w)")
        if corners.shape != (*stamps.shape[:2], 2) or places.shape != corners.shape:
            raise InputError(
                f"corners have shape {corners.shape}, places {places.shape}, expected "
                f"{(*stamps.shape[:2], 2)}"
            )
        work = zip(stamps, corners, places, strict=True)
        return np.array(over_items(lambda item: self._one(*item, size), list(work)))

    def _one(self, stamps, corners, places, size):
        found = [self._inside(*pair) for pair in zip(stamps, corners, strict=True)]
        products, means = self._with_source(found)
        out = np.full((self._n_targets, size, size), np.nan)
        for members, targets in zip(self._sets, self._targets, strict=True):
            references = np.flatnonzero(members)
            factors = self._factors(products, references, targets)
            for target, row in zip(targets, factors, strict=True):
                place = places[max(self._groups[target], 0)]
                out[target] = self._patch(target, references, row, found, means, place, size)
        return out

    def _with_source(self, found):
        """Return the inner products (n, n) with a source, and the means of its stamps."""
        square, groups, n = self._square, self._groups, len(self._flat)
        means = np.array([(square[p] * v).sum() for p, v in found]) / self._total
        cross = np.array([self._flat[:, p] @ (square[p] * v) for p, v in found]).T
        sheet, own = np.zeros(square.size), np.zeros((len(found), len(found)))
        for g, (pixels, values) in enumerate(found):
            sheet[pixels] = square[pixels] * values
            own[g] = [values_ @ sheet[pixels_] for pixels_, values_ in found]
            sheet[pixels] = 0.0
        own -= self._total * np.outer(means, means)
        has = groups >= 0
        added = np.zeros((n, n))
        added[:, has] = cross[:, groups[has]]
        products = self._products + added + added.T
        products[np.ix_(has, has)] += own[np.ix_(groups[has], groups[has])]
        return products, means

    def _factors(self, products, references, targets):
        """Return the weights (targets, references) of the references in the models."""
        kept = min(self._truncate, len(references))
        if not kept:
            return np.zeros((len(targets), len(references)))
        part = products[np.ix_(references, references)]
        n = len(references)
        values, vectors = scipy.linalg.eigh(part, subset_by_index=(n - kept, n - 1))
        floor = RANK_TOLERANCE * n * max(values[-1], 0.0)
        values, vectors = values[values > floor], vectors[:, values > floor]
        return (products[np.ix_(targets, references)] @ vectors / values) @ vectors.T

    def _patch(self, target, references, factors, found, means, place, size):
        """Return the residual of a target on a patch."""
        ny, nx = self.shape
        steps = np.arange(size)
        y, x = np.meshgrid(place[0] + steps, place[1] + steps, indexing="ij")
        inside = (y >= 0) & (y < ny) & (x >= 0) & (x < nx)
        pixels = (y * nx + x)[inside]
        left = self._flat[target, pixels] - factors @ self._flat[np.ix_(references, pixels)]
        share = np.zeros(len(found))  # of each stamp in the residual
        if self._groups[target] >= 0:
            share[self._groups[target]] += 1.0
        has = self._groups[references] >= 0
        np.subtract.at(share, self._groups[references][has], factors[has])
        sheet = np.zeros(ny * nx)
        for (where, values), mean, part in zip(found, means, share, strict=True):
            sheet[where] += part * values
            left -= part * mean
        out = np.full((size, size), np.nan)
        out[inside] = left + sheet[pixels]
        return out

    def _inside(self, stamp, corner):
        """Return the pixels of a stamp that are in the images, and its values there."""
        ny, nx = self.shape
        y, x = corner[0] + np.arange(stamp.shape[0]), corner[1] + np.arange(stamp.shape[1])
        rows, columns = (y >= 0) & (y < ny), (x >= 0) & (x < nx)
        pixels = (y[rows, None] * nx + x[columns]).ravel()
        return pixels, stamp[np.ix_(rows, columns)].ravel()
