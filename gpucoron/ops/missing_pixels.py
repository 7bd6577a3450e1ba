"""Coefficients of KL vectors without the pixels that a target lacks."""

from __future__ import annotations

import numpy as np

from gpucoron.backend import cuda

__all__ = ["rolled", "solve_without"]

LEAST = 1e-6  # share of a combination of vectors in the pixels that are there, below which it is 0


def solve_without(amplitudes, moments, kept):
    """Solve the normal equations of a target that lacks some pixels.

    Parameters
    ----------
    amplitudes : (K,) float64
        ``sum m^2 t z_k`` over the pixels that the target has, where its mean over these is 0. The
        vectors z_k are orthonormal over all pixels with that product, and to a constant.
    moments : (K + 1, K + 1) float64
        ``sum m^2 z_i z_j`` over the pixels that it lacks, with the normalised constant as z_0.
    kept : int
        Number of vectors in the model.

    Returns
    -------
    (kept + 1,) float64
        Coefficients of the constant and the vectors: the weighted least-squares fit to the pixels
        that the target has, ``(1 - moments) x = (0, amplitudes)``. Combinations of vectors that
        these pixels do not tell have 0.
    """
    size = kept + 1
    values, vectors = np.linalg.eigh(np.eye(size) - moments[:size, :size])
    inner = vectors.T @ np.concatenate([[0.0], amplitudes[:kept]])
    return vectors @ np.where(values > LEAST, inner / np.maximum(values, LEAST), 0.0)


def rolled(images, shifts_yx):
    """Move images by whole pixels; edges wrap around.

    Parameters
    ----------
    images : (n, ny, nx)
        On the host or on a GPU, where all are moved together.
    shifts_yx : (n, 2) int
        On the host.

    Returns
    -------
    (n, ny, nx), where the images are
    """
    xp, (n, *shape) = cuda.array_namespace(images), images.shape
    y, x = (
        xp.asarray((np.arange(size) - shift[:, None]) % size)
        for size, shift in zip(shape, shifts_yx.T, strict=True)
    )
    return images[xp.arange(n)[:, None, None], y[:, :, None], x[:, None, :]]
