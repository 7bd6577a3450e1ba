"""The whole-pixel offsets from which a registration starts."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import fft_module, to_host

FAR_GAIN = 0.8  # of the squared residual that an offset beyond the search range may leave
POOR = 0.7  # share of the reference's rms left by a fit for which the whole frame is searched
LEAST_OVERLAP = 0.3  # of the weights of two images that are compared
DOUBTFUL = 0.5  # the same of a whole-pixel offset for which others are tried
PROBES = 3  # of a frame's poor pairs are searched first


def whole_pixel_offsets(
    explained: Any, power: np.ndarray, search: float
) -> tuple[np.ndarray, np.ndarray]:
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
    (n, 2) int, (n,) float64
        The shifts along y and x, and what they leave of the squares; on the host. No shift where
        the brightness is positive nowhere near.
    """
    xp, shape = cuda.array_namespace(explained), explained.shape[1:]
    within = [np.minimum(np.arange(n), n - np.arange(n)) <= np.ceil(search) for n in shape]
    within_both = xp.asarray(np.logical_and.outer(*within))
    near, near_offsets = largest(xp.where(within_both, explained, -np.inf))
    far, far_offsets = largest(explained)
    is_far = power - far < FAR_GAIN * (power - near)
    offsets = np.where(is_far[:, None], far_offsets, near_offsets)
    return offsets, power - np.where(is_far, far, np.maximum(near, 0.0))


def masked_correlation(weight: Any, references: Any, frame: Any) -> Any:
    """Squared correlation of references and a frame for every whole-pixel shift of the frame.

    Parameters
    ----------
    weight : (ny, nx) float64
        Of the pixels. It moves with the frame, too: what it hides in either image does not count.
    references : (n, ny, nx) float64
    frame : (ny, nx) float64

    Returns
    -------
    (n, ny, nx) float64
        -inf where the correlation is not positive, or the weights overlap by less than
        `LEAST_OVERLAP`.

    References
    ----------
    .. [1] Padfield 2012, IEEE Transactions on Image Processing 21, 2706: masked normalized
       correlation by Fourier transforms.
    """
    xp, fft, shape = cuda.array_namespace(references), fft_module(references), weight.shape
    fixed = [fft.rfft2(weight * images) for images in (1.0, references, references**2)]
    moving = [fft.rfft2(weight * image).conj() for image in (1.0, frame, frame**2)]

    def summed(i, j):
        return fft.irfft2(fixed[i] * moving[j], s=shape)

    overlap = summed(0, 0)
    enough = overlap > LEAST_OVERLAP * weight.sum()
    overlap = xp.where(enough, overlap, 1.0)
    p, f = summed(1, 0), summed(0, 1)
    covariance = summed(1, 1) - p * f / overlap
    squares = (summed(2, 0) - p * p / overlap) * (summed(0, 2) - f * f / overlap)
    positive = enough & (covariance > 0) & (squares > 0)
    return xp.where(positive, covariance**2 / xp.where(positive, squares, 1.0), -np.inf)


def largest(images: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest value of each image, and its shift (y, x); on the host."""
    flat, shape = images.reshape(len(images), -1), np.array(images.shape[1:])
    places = np.stack(np.unravel_index(to_host(flat.argmax(axis=1)), shape), axis=1)
    return to_host(flat.max(axis=1)), np.where(places > (shape - 1) // 2, places - shape, places)


def probes(frames: np.ndarray) -> np.ndarray:
    """Choose a few of the pairs of each frame; (n,) bool from the frame of each pair, (n,) int."""
    chosen = np.zeros(len(frames), dtype=bool)
    for frame in np.unique(frames):
        own = np.flatnonzero(frames == frame)
        chosen[own[np.linspace(0, len(own) - 1, PROBES).astype(int)]] = True
    return chosen
