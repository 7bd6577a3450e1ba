"""Predict pixels from their neighbours by simple kriging."""

from __future__ import annotations

import numpy as np
import scipy.fft

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.backend.device import on_gpu
from gpucoron.errors import InputError
from gpucoron.ops.kriging_tables import (
    FAR,
    NEAR,
    finest_correlation,
    hankel_kernel,
    neighbours,
)

__all__ = ["FAR", "NEAR", "correlation_of", "joint_spread", "krige"]

CORNER = 0.55  # cycles per pixel; what an image has beyond is noise
COARSE = 1 / (4 * FAR)  # cycles per pixel; what is coarser is in the neighbours' mean
NOISE_FLOOR = 1e-4  # least noise variance, as a share of the signal's: keeps the systems well posed
FEWEST = 3  # neighbours


def krige(image, usable, err, y, x, correlation=None, reach=NEAR):
    """Predict pixels of an image from their neighbours by simple kriging.

    Parameters
    ----------
    image : (ny, nx) floating
        Finite where `usable`.
    usable : (ny, nx) bool
        Which pixels may predict others. A pixel never predicts itself.
    err : (ny, nx) floating
        Standard deviations.
    y, x : (n,) int
        The pixels to predict.
    correlation : (145,) float64, optional
        Correlation of two pixels by their squared distance (px^2), from `correlation_of`. Default:
        that of an image with the finest structure that pixels can show.
    reach : int, pixels
        Neighbours within this predict a pixel; at most 6. 4 has 48 of them, 6 has 112 and takes
        ten times as long.

    Returns
    -------
    (n,) float64, (n,) float64
        Predictions and their variances, without the pixels' own noise; NaN where fewer than three
        neighbours are usable.

    Notes
    -----
    The weights are ``(K + N / S)^-1 k`` with K and k the correlations of the neighbours with each
    other and with the pixel, N the variance of the noise and S that of the signal, found from the
    neighbours' scatter about their mean [1]_. Where they hold nothing but noise their mean is
    taken.

    References
    ----------
    .. [1] Cressie 1993, Statistics for Spatial Data, sect. 3.4.5.
    """
    image, usable, err, y, x = cuda.as_device_arrays(image, usable, err, y, x)
    if on_gpu(image, usable, err, y, x):
        from gpucoron.ops.cuda import kriging as _kriging_cuda

        return _kriging_cuda.interpolate(image, usable, err, y, x, correlation, reach)
    from gpucoron.ops.cpu.kriging import interpolate

    noise = np.where(usable & np.isfinite(err), err, 0.0).astype(np.float64) ** 2
    values = np.where(usable, image, 0.0).astype(np.float64)
    offsets, squares = neighbours(reach)
    table = finest_correlation() if correlation is None else correlation
    to_centre = table[np.sum(offsets**2, axis=1)]
    return interpolate(
        values, noise, usable, y, x, offsets, table[squares], to_centre, NOISE_FLOOR, FEWEST
    )


def correlation_of(image):
    """Measure how pixels of an image are correlated with their neighbours.

    Parameters
    ----------
    image : (ny, nx) floating
        A finite image.

    Returns
    -------
    (145,) float64
        Correlation by squared distance, 0 to 144 px^2; that of the finest structure possible where
        the image is nothing but noise.

    Raises
    ------
    InputError
        Not one finite image.

    Notes
    -----
    The azimuthal mean of the power spectrum, under a Hann window, less the noise (the median power
    beyond 0.55 cycles per pixel, where no optics leave anything); its Hankel transform is the
    correlation. Since no power is negative, any matrix of these correlations is positive definite.
    Power below 1/24 cycle per pixel is replaced by that at 1/24: coarser structure is in the mean
    of the neighbours, which kriging takes out. The brightest part of the image decides, and that
    is where it matters.

    This runs on the host: an image on a GPU is copied there, and the result back.
    """
    (image,) = cuda.as_device_arrays(image)
    if image.ndim != 2 or not cuda.array_namespace(image).isfinite(image).all():
        raise InputError(f"image has shape {image.shape}, expected (ny, nx) and finite values")
    if on_gpu(image):
        return cuda.cupy().asarray(correlation_of(to_host(image)))
    window = np.multiply.outer(*(np.hanning(n + 2)[1:-1] for n in image.shape))
    power = np.abs(scipy.fft.fft2((image - np.median(image)).astype(np.float64) * window)) ** 2
    ky, kx = (np.fft.fftfreq(n) for n in image.shape)
    k = np.hypot(ky[:, None], kx)
    power = np.maximum(power - np.median(power[k >= min(CORNER, k.max())]) / np.log(2), 0.0)
    size = max(image.shape)
    rings = np.rint(k * size).astype(np.int64).ravel()
    count = np.bincount(rings)
    profile = np.bincount(rings, power.ravel())[count > 0] / count[count > 0]
    fine, waves = hankel_kernel()
    profile = np.interp(np.maximum(fine, COARSE), np.flatnonzero(count) / size, profile)
    table = waves @ (profile * fine)
    return table / table[0] if table[0] > 0 else finest_correlation()


def joint_spread(spread, correlation):
    """Standard deviations that, taken as independent, tell what neighbours do together.

    Parameters
    ----------
    spread : (ny, nx) float64
        Standard deviations of interpolated pixels; 0 or NaN at others.
    correlation : (145,) float64
        From `correlation_of`.

    Returns
    -------
    (ny, nx) float64
        0 at the others.

    Notes
    -----
    Errors of neighbours in the same hole are alike. The variance of a sum of pixels, with weights
    that hardly differ within a hole, is that of independent pixels with the variances
    ``s(i) sum_j K(i, j) s(j)``.
    """
    xp = cuda.array_namespace(spread, correlation)
    offsets, _ = neighbours(NEAR)
    spread = xp.nan_to_num(spread)
    padded = xp.pad(spread, NEAR)
    y, x = xp.nonzero(spread)
    near = xp.maximum(correlation[xp.asarray(np.sum(offsets**2, axis=1))], 0.0)
    dy, dx = xp.asarray(offsets.T + NEAR)
    total = spread[y, x] + padded[y[:, None] + dy, x[:, None] + dx] @ near
    out = xp.zeros_like(spread)
    out[y, x] = xp.sqrt(spread[y, x] * total)
    return out
