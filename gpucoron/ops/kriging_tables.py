"""Tables for kriging: neighbours, their distances, and correlations of the finest structure."""

from __future__ import annotations

import functools

import numpy as np
from scipy.special import j0

__all__ = ["FAR", "NEAR", "finest_correlation", "hankel_kernel", "neighbours"]

NEAR, FAR = 4, 6  # px; how far away neighbours may be
LARGEST = 4 * FAR**2  # squared distance of two neighbours, px^2
CUTOFF = 0.5  # cycles per pixel; no image has finer structure


@functools.cache
def hankel_kernel():
    """Frequencies, cycles per pixel, and the kernel of the Hankel transform to all distances."""
    k = np.linspace(0.0, np.sqrt(0.5), 2001)
    return k, j0(2 * np.pi * np.sqrt(np.arange(LARGEST + 1))[:, None] * k)


@functools.cache
def finest_correlation(cutoff=CUTOFF):
    """Correlation whose spectrum is the squared transfer function of a circular pupil.

    It ends at `cutoff`, cycles per pixel.
    """
    k, waves = hankel_kernel()
    u = np.minimum(k / cutoff, 1.0)
    mtf = 2 / np.pi * (np.arccos(u) - u * np.sqrt(1 - u * u))
    table = waves @ (mtf**2 * k)
    return table / table[0]


@functools.cache
def neighbours(reach):
    """Offsets (y, x) of the neighbours, and their squared distances from each other."""
    span = range(-reach, reach + 1)
    offsets = np.array([(y, x) for y in span for x in span if 0 < y * y + x * x <= reach * reach])
    return offsets, np.sum((offsets[:, None] - offsets[None]) ** 2, axis=-1)
