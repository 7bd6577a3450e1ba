"""Prediction of each exposure's mean image from those of all other exposures, by KLIP."""

from __future__ import annotations

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.backend.device import on_gpu
from gpucoron.backend.parallel import map_parts, over_blocks
from gpucoron.ops.eigen import RANK_TOLERANCE, symmetric_eigen

__all__ = ["combine", "exposure_means", "prediction_errors", "predictions"]

AT_ONCE = 2**22  # elements of matrices that are decomposed at once


def exposure_means(images, groups):
    """Average the images of each exposure, and subtract the mean over pixels.

    Parameters
    ----------
    images : (n, ny, nx) floating
        Finite images, on the host or on a GPU.
    groups : (n,) int
        Exposure of each image, numbered from 0; at least one image each. On the host.

    Returns
    -------
    (n_groups, ny, nx) float64
    """
    xp, n_groups = cuda.array_namespace(images), int(groups.max()) + 1
    if on_gpu(images):
        means = combine(np.equal.outer(np.arange(n_groups), groups).astype(np.float64), images)
    else:
        means = np.zeros((n_groups, *images.shape[1:]))

        def add(rows):
            for image, group in zip(images, groups.tolist(), strict=True):
                means[group, rows] += image[rows]

        map_parts(add, images.shape[1:], xp)
    means /= xp.asarray(np.bincount(groups))[:, None, None]
    means -= means.mean(axis=(1, 2), keepdims=True)
    return means


def prediction_errors(images, truncations, weight=None):
    """Leave out each image in turn, and predict it by the first KL vectors of the others.

    Parameters
    ----------
    images : (n, ny, nx) float64
        From `exposure_means`; two or more.
    truncations : sequence of int
        Numbers of KL vectors; more than there are means all.
    weight : (ny, nx) floating, optional
        Of the pixels in inner products, as for `gpucoron.ops.eigen.KLBasis`. On the host.

    Returns
    -------
    list of (n, n) float64
        One array for each truncation, on the host: row e has 1 for image e and minus the
        coefficients of the others in its prediction, so that ``combine(rows, images)`` is what the
        predictions leave.
    """
    return list(predictions(_products(images, weight)[None], truncations)[:, 0])


def predictions(products, truncations):
    """Leave out each of some images in turn, and predict it by the others, in each of some zones.

    Parameters
    ----------
    products : (nzones, n, n) float64
        Inner products of the images in each zone. On the host.
    truncations : sequence of int
        Numbers of KL vectors; more than there are means all.

    Returns
    -------
    (ntruncations, nzones, n, n) float64
        Rows as `prediction_errors` has them, of one decomposition for all numbers of vectors.
    """
    n = products.shape[-1]
    results = np.empty((len(truncations), *products.shape))
    every, size = np.arange(n), max(1, AT_ONCE // n**3)
    for start in range(0, len(products), size):
        own = products[start : start + size]
        left_out = np.repeat(own[:, None], n, axis=1)
        left_out[:, every, every, :] = 0.0
        left_out[:, every, :, every] = 0.0
        values, vectors = symmetric_eigen(left_out.reshape(-1, n, n))
        values, vectors = values.reshape(-1, n, n), vectors.reshape(-1, n, n, n)
        floor = RANK_TOLERANCE * n * np.maximum(values[..., :1], 0.0)
        inverse = np.where(values > floor, 1.0 / np.where(values > floor, values, 1.0), 0.0)
        amplitudes = np.matmul(vectors, own[..., None])[..., 0] * inverse
        for rows, truncate in zip(results, truncations, strict=True):
            models = np.matmul(amplitudes[..., None, :truncate], vectors[..., :truncate, :])
            rows[start : start + size] = -models[..., 0, :]
    results[..., every, every] = 1.0
    return results


def _products(images, weight):
    """Return the inner products (n, n) of images, on the host."""
    flat = images.reshape(len(images), -1)
    square = None if weight is None else np.ravel(weight).astype(np.float64) ** 2
    if on_gpu(images):
        cp = cuda.cupy()
        return to_host(cp.matmul(flat if square is None else flat * cp.asarray(square), flat.T))

    def multiply(block):
        part = flat[:, block]
        return (part if square is None else part * square[block]) @ part.T

    return sum(over_blocks(multiply, flat.shape[1]))


def combine(rows, planes, square=False, dtype=np.float64):
    """Return weighted sums of planes, ``rows @ planes``.

    Parameters
    ----------
    rows : (m, n) float64
        On the host, or where the planes are.
    planes : (n, ny, nx) floating
    square : bool
        Return the sum over rows of the squares of these sums instead.
    dtype : dtype
        Of the result; sums are float64.

    Returns
    -------
    (m, ny, nx) of `dtype`, or (ny, nx) with `square`

    Notes
    -----
    On the CPU in blocks of pixels: the number of threads does not change a bit.
    """
    flat, shape = planes.reshape(len(planes), -1), planes.shape[1:]
    if on_gpu(planes):
        sums = cuda.cupy().matmul(cuda.cupy().asarray(rows), flat)
        sums = ((sums**2).sum(axis=0) if square else sums).astype(dtype, copy=False)
        return sums.reshape(shape) if square else sums.reshape(-1, *shape)
    out = np.empty(flat.shape[1] if square else (len(rows), flat.shape[1]), dtype)

    def multiply(block):
        sums = rows @ flat[:, block]
        out[..., block] = np.einsum("mp,mp->p", sums, sums) if square else sums

    over_blocks(multiply, flat.shape[1])
    return out.reshape(shape) if square else out.reshape(-1, *shape)
