"""Sums and combinations of images in zones on the CPU: pixels gathered by numba, then the BLAS."""

from __future__ import annotations

import numpy as np
from numba import njit

from gpucoron.backend.parallel import BLOCK, over_products
from gpucoron.ops.zone_sums import cut

__all__ = ["combine_in_zones", "gather", "squares_in_zones", "subtract_in_zones"]


def combine_in_zones(labels, weights, planes, dtype=np.float64):
    """Return sums of planes, with weights (nzones, n, m); see `gpucoron.ops.zone_sums`."""
    out = np.zeros((weights.shape[1], len(labels)), dtype)

    def combine(zone, pixels, images):
        _put(weights[zone] @ images, pixels, out)

    _over_pieces(combine, labels, len(weights), planes)
    return out


def squares_in_zones(labels, weights, constants, planes):
    """Return sums of squares, with weights (nzones, n, rows, m); see `gpucoron.ops.zone_sums`."""
    n, m = weights.shape[1], len(planes)
    out = np.full((n, len(labels)), np.nan)

    def combine(zone, pixels, images):
        sums = weights[zone].reshape(-1, m) @ images
        sums -= constants[zone].reshape(-1, 1)
        sums = sums.reshape(n, -1, len(pixels))
        _put(np.einsum("nep,nep->np", sums, sums), pixels, out)

    _over_pieces(combine, labels, len(weights), planes)
    return out


def subtract_in_zones(labels, weights, constants, planes, targets):
    """Subtract combinations of planes and constants from targets (n, pixels).

    Parameters
    ----------
    labels : (pixels,) int
        The zone of each pixel; negative in none.
    weights : (nmodels, nzones, n, m) float64
    constants : (nmodels, nzones, n) float64
    planes : (m, pixels) floating
    targets : (n, pixels) floating

    Returns
    -------
    (nmodels, n, pixels) float64
        NaN outside of the zones, and where a target is not finite. The planes are read once.
    """
    weights, constants = np.array(weights), np.array(constants)
    n_models, n_zones, n, m = weights.shape
    out = np.full((n_models, n, len(labels)), np.nan)

    def subtract(zone, pixels, images):
        models = weights[:, zone].reshape(-1, m) @ images
        _put_difference(targets, pixels, constants[:, zone].ravel(), models, out)

    _over_pieces(subtract, labels, n_zones, planes)
    return out


def _over_pieces(work, labels, n_zones, planes):
    """Call ``work(zone, pixels, images)`` for pieces of all zones, in parallel."""
    pieces, of = cut(labels, n_zones, BLOCK)

    def gathered(item):
        zone, pixels = item
        images = np.empty((len(planes), len(pixels)))
        gather(planes, pixels, images)
        work(zone, pixels, images)

    over_products(gathered, list(zip(of.tolist(), pieces, strict=True)))


@njit(cache=True, nogil=True)
def gather(images, pixels, out):
    """Copy some pixels of images (m, pixels) to `out` (m, k)."""
    for k in range(len(images)):
        image, row = images[k], out[k]
        for p in range(len(pixels)):
            row[p] = image[pixels[p]]


@njit(cache=True, nogil=True)
def _put(values, pixels, out):
    """Copy values (n, k) to some pixels of `out` (n, pixels)."""
    for k in range(len(values)):
        row, image = values[k], out[k]
        for p in range(len(pixels)):
            image[pixels[p]] = row[p]


@njit(cache=True, nogil=True)
def _put_difference(targets, pixels, constants, models, out):
    """Put targets less constants and models (nmodels * n, k) to some pixels of `out`."""
    n = len(targets)
    for k in range(len(models)):
        target, image, row = targets[k % n], out[k // n, k % n], models[k]
        for p in range(len(pixels)):
            value = target[pixels[p]]
            if np.isfinite(value):
                image[pixels[p]] = value - constants[k] - row[p]
