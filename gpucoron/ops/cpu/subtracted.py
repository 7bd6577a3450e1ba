"""One pass over the pixels of PSF-subtracted images, compiled by numba."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["add_errors", "add_means", "model_of", "without"]


@njit(cache=True, nogil=True)
def model_of(moved, left):
    """Return what was subtracted from an image (ny, nx); all of it where nothing is known."""
    model = np.empty_like(moved)
    for y in range(moved.shape[0]):
        for x in range(moved.shape[1]):
            value = left[y, x]
            model[y, x] = moved[y, x] - (0.0 if np.isnan(value) else value)
    return model


@njit(cache=True, nogil=True)
def without(image, target, left, model, out):
    """Subtract a model from a target (ny, nx); NaN where `image` is not finite or `left` is NaN."""
    for y in range(target.shape[0]):
        for x in range(target.shape[1]):
            known = np.isfinite(image[y, x]) and not np.isnan(left[y, x])
            out[y, x] = target[y, x] - model[y, x] if known else np.nan


@njit(cache=True, nogil=True)
def add_errors(data, own, reference, speckle, out):
    """Put the root of the sum of variances (ny, nx) to `out`; return whether `own` lacks some."""
    lacking = False
    for y in range(data.shape[0]):
        for x in range(data.shape[1]):
            known = np.isfinite(data[y, x])
            total = own[y, x] + reference[y, x] + speckle[y, x]
            out[y, x] = np.sqrt(total) if known else np.float32(np.nan)
            if known and not own[y, x] > 0:
                lacking = True
    return lacking


@njit(cache=True, nogil=True)
def add_means(first, stop, data, own, mean, noise):
    """Put mean and noise of the mean over images (n, ny, nx) to some rows of two planes."""
    n, nx = len(data), data.shape[2]
    count = np.empty(nx)
    for y in range(first, stop):
        for x in range(nx):
            count[x], mean[y, x], noise[y, x] = 0.0, 0.0, 0.0
        for i in range(n):
            for x in range(nx):
                if np.isfinite(data[i, y, x]):
                    count[x] += 1.0
                    mean[y, x] += data[i, y, x]
                    noise[y, x] += own[i, y, x]
        for x in range(nx):
            number = count[x] if count[x] > 0.0 else np.nan
            mean[y, x] /= number
            noise[y, x] /= number * number
