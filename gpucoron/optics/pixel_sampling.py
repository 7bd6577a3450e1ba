"""Integrate sampled images over the detector's pixels, at any place within a pixel."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

__all__ = ["SAMPLES_PER_PX", "fwhm_of", "integrate_pixels", "sample_axis"]

SAMPLES_PER_PX = 2  # the response of a pixel vanishes at the highest frequency that these hold
DIFFUSION_PX = 0.25  # charge diffusion and capacitive coupling, as in gpucoron.simulate
_REACH = 4  # px, of the response to these frequencies
_STEPS = 512  # of its table, per px
_FREQUENCIES = 64  # of a Gauss-Legendre sum: exact to rounding for lags of _REACH


def sample_axis(box: int) -> np.ndarray:
    """Return the places (n,), px from the source, at which an image is sampled for a box of px."""
    reach = SAMPLES_PER_PX * (box // 2 + 1 + _REACH)
    return np.arange(-reach, reach + 1) / SAMPLES_PER_PX


def integrate_pixels(samples: np.ndarray, within: np.ndarray, box: int) -> np.ndarray:
    """Integrate images over pixels.

    Parameters
    ----------
    samples : (m, n, n) float32
        Images at `sample_axis` about the source, per px^2.
    within : (m, 2) float, px
        Place (y, x) of each source within the middle pixel, from that pixel's centre.
    box : int
        Side of the result, px.

    Returns
    -------
    (m, box, box) float32

    Notes
    -----
    The response is a square pixel and a Gaussian of 0.25 px for diffusion, for frequencies up to
    one cycle per px. Every wavelength and filter of JWST's coronagraphs is within these.
    """
    axis = sample_axis(box)
    pixels = np.arange(box) - box // 2
    lag = pixels[:, None] - np.asarray(within, np.float64)[..., None, None] - axis
    at, response = _response()
    matrices = np.interp(lag, at, response, left=0, right=0)
    matrices /= matrices.sum(axis=-1, keepdims=True)
    rows, columns = (matrices[:, k].astype(np.float32) for k in (0, 1))
    return rows @ samples @ columns.transpose(0, 2, 1)


def fwhm_of(images: Callable[[np.ndarray], np.ndarray]) -> float:
    """Return the full width at half maximum of an image, px: of a circle of the same area.

    `images` returns it (m, box, box) for m places (y, x) of the source within its pixel.
    """
    fine = 8
    steps = (np.arange(fine) + 0.5) / fine - 0.5
    shifted = images(np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2))
    above = np.count_nonzero(shifted > shifted.max() / 2) / fine**2
    return 2 * math.sqrt(above / math.pi)


@functools.cache
def _response():
    """Return lags, px, and the response of a pixel at these."""
    nodes, weights = np.polynomial.legendre.leggauss(_FREQUENCIES)
    frequency = nodes * SAMPLES_PER_PX / 2
    transfer = np.sinc(frequency) * np.exp(-2 * (np.pi * DIFFUSION_PX * frequency) ** 2)
    lag = np.arange(-_REACH * _STEPS, _REACH * _STEPS + 1) / _STEPS
    response = np.cos(2 * np.pi * np.outer(lag, frequency)) @ (weights * transfer)
    return lag, response
