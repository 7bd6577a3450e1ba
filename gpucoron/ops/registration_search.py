"""The whole-pixel offsets from which a registration starts."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host

FAR_GAIN = 0.8  # of the squared residual that an offset beyond the search range may leave
POOR = 0.7  # share of the reference's rms left by a fit for which the whole frame is searched
PROBES = 3  # of a frame's poor pairs are searched first


def whole_pixel_offsets(explained: Any, power: np.ndarray, search: float) -> np.ndarray:
    """Find the whole-pixel shifts that explain most of the references.

    Parameters
    ----------
    explained : (n, ny, nx) float64
        What every shift explains of a reference's squares, shift 0 first and negative shifts at
        the end of each axis; -inf where the brightness would not be positive.
    power : (n,) float64
        The squares that there are to explain, on the host.
    search : float, pixels
        Offsets up to this along either axis are expected. Another one is taken where it leaves
        less than `FAR_GAIN` of what the best of these leaves: chance, which has more to choose from
        in a whole frame, does not do that, and a star does.

    Returns
    -------
    (n, 2) int
        Along y and x, on the host; no shift where the brightness is positive nowhere near.
    """
    xp, shape = cuda.array_namespace(explained), np.array(explained.shape[1:])
    reach = np.minimum(int(np.ceil(search)), (shape - 1) // 2)
    rows, cols = (np.r_[-n : n + 1] for n in reach)
    window = xp.take(xp.take(explained, xp.asarray(rows), axis=1), xp.asarray(cols), axis=2)
    near, (iy, ix) = _largest(window)
    bright = near > -np.inf
    near_offsets = np.stack([rows[iy], cols[ix]], axis=1) * bright[:, None]
    far, places = _largest(explained)
    far_offsets = np.stack(places, axis=1)
    far_offsets = np.where(far_offsets > (shape - 1) // 2, far_offsets - shape, far_offsets)
    is_far = power - far < FAR_GAIN * (power - near)
    return np.where(is_far[:, None], far_offsets, near_offsets)


def _largest(images: Any) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return the largest value of each image and where it is (y, x), on the host."""
    flat = images.reshape(len(images), -1)
    places = np.unravel_index(to_host(flat.argmax(axis=1)), images.shape[1:])
    return to_host(flat.max(axis=1)), places


def probes(frames: np.ndarray) -> np.ndarray:
    """Choose a few of the pairs of each frame; (n,) bool from the frame of each pair, (n,) int."""
    chosen = np.zeros(len(frames), dtype=bool)
    for frame in np.unique(frames):
        own = np.flatnonzero(frames == frame)
        chosen[own[np.linspace(0, len(own) - 1, PROBES).astype(int)]] = True
    return chosen
