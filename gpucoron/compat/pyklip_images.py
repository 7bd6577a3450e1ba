"""Images as pyKLIP moves, rotates, filters and combines them: splines, and its rules for NaN."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from gpucoron.backend.parallel import over_items

__all__ = ["aligned", "collapsed", "derotated", "high_pass_filtered", "noise_maps"]

_NOISE_STEP = 2  # px between the annuli in which pyKLIP measures noise


def aligned(images: np.ndarray, centers: np.ndarray, new_center: np.ndarray) -> np.ndarray:
    """Move images so that their centers fall on one pixel position.

    Parameters
    ----------
    images : (n, ny, nx) float64
        Not changed.
    centers : (n, 2) float64
        (x, y) of each, pixels from 0.
    new_center : (2,) float64
        (x, y), pixels from 0.

    Returns
    -------
    (n, ny, nx) float64

    Notes
    -----
    Cubic splines, as `pyklip.klip.align_and_scale`. An image that is in place is copied as it is.
    """
    y, x = np.indices(images.shape[1:], dtype=np.float64)

    def move(k):
        if np.array_equal(centers[k], new_center):
            return images[k].copy()
        dx, dy = new_center - centers[k]
        return _interpolated(images[k : k + 1], y - dy, x - dx)[0]

    return np.array(over_items(move, range(len(images))))


def derotated(
    images: Sequence[np.ndarray],
    angles: np.ndarray,
    centers: np.ndarray,
    new_center: np.ndarray,
    flipx: bool = False,
) -> np.ndarray:
    """Rotate images counter-clockwise about their centers, and move these to one pixel position.

    Parameters
    ----------
    images : b arrays (n, ny, nx) of one floating dtype
        Images for each of b numbers of KL modes. Not changed.
    angles : (n,) float64, degrees
    centers : (n, 2) float64
        (x, y) of each, pixels from 0.
    new_center : (2,)
        (x, y), pixels from 0.
    flipx : bool
        Mirror x after the rotation.

    Returns
    -------
    (b, n, ny, nx) of the images' dtype

    Notes
    -----
    Cubic splines, as `pyklip.klip.rotate`. An image without a finite pixel is copied as it is.
    """
    rows, columns = np.indices(images[0].shape[1:], dtype=np.float64)

    def rotate(k):
        center_x, center_y = centers[k]
        x = columns - (new_center[0] - center_x)
        y = rows - (new_center[1] - center_y)
        if flipx:
            x = center_x - (x - center_x)
        dx, dy = x - center_x, y - center_y
        cos, sin = np.cos(np.radians(angles[k])), np.sin(np.radians(angles[k]))
        source_x = dx * cos + dy * sin + center_x
        source_y = -dx * sin + dy * cos + center_y
        of_k = np.array([planes[k] for planes in images])
        turned[:, k] = _interpolated(of_k, source_y, source_x)

    turned = np.empty((len(images), *images[0].shape), images[0].dtype)
    over_items(rotate, range(len(images[0])))
    return turned


def _interpolated(images: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Interpolate images (b, ny, nx) by cubic splines; NaN where one of four pixels around is NaN.

    NaN count as the image's median for the spline, and outside the image there is NaN. This is
    `pyklip.klip.nan_map_coordinates_2d`. Images without a finite pixel are copied.
    """
    from gpucoron.ops.cpu.spline import cubic_spline

    missing, filled = np.isnan(images), images.astype(np.float64)
    empty = missing.all(axis=(1, 2))
    for image, lost in zip(filled, missing, strict=True):
        if lost.any():
            image[lost] = np.median(image[~lost]) if not lost.all() else 0.0
    result = cubic_spline(filled, missing, y, x)
    result[empty] = images[empty]
    return result


def high_pass_filtered(images: np.ndarray, size: float) -> np.ndarray:
    """Remove low spatial frequencies by a Gaussian filter in Fourier space.

    Parameters
    ----------
    images : (n, ny, nx) floating
        Not changed.
    size : float
        The filter's width in Fourier space; in pixels it is the side of the image over `size`.

    Returns
    -------
    (n, ny, nx) float64

    Notes
    -----
    As `pyklip.klip.high_pass_filter`: the factor is ``1 - exp(-(rho / size)^2)`` with the frequency
    rho in cycles per image. NaN count as their nearest neighbour, and are NaN again in the result.
    """
    ny, nx = images.shape[1:]
    u, v = np.fft.fftfreq(nx) * nx, np.fft.fftfreq(ny)[:, None] * ny
    passed = 1.0 - np.exp(-(u**2 + v**2) / size**2)

    def work(image):
        missing = np.isnan(image)
        filled = _nearest_filled(image, missing) if missing.any() else image
        result = np.fft.ifft2(np.fft.fft2(filled) * passed).real
        result[missing] = np.nan
        return result

    return np.array(over_items(work, list(images.astype(np.float64))))


def _nearest_filled(image, missing):
    from scipy.interpolate import NearestNDInterpolator

    y, x = np.nonzero(~missing)
    if not len(y):
        return np.zeros_like(image)
    filled = image.copy()
    nearest = NearestNDInterpolator(np.column_stack([x, y]), image[y, x])
    rows, columns = np.nonzero(missing)
    filled[rows, columns] = nearest(columns, rows)
    return filled


def noise_maps(
    images: np.ndarray, center: np.ndarray, inner: float, outer: float, width: float
) -> np.ndarray:
    """Measure the noise at every pixel in annuli about the center.

    Parameters
    ----------
    images : (b, n, ny, nx) floating
    center : (2,)
        (x, y), pixels from 0.
    inner, outer : float, pixels
        Between which radii.
    width : float, pixels
        Of an annulus.

    Returns
    -------
    (b, n, ny, nx) float64
        The standard deviation in annuli 2 px apart, linear between their radii; NaN outside, and
        where the image is.

    Notes
    -----
    As `pyklip.parallelized.generate_noise_maps`.
    """
    ny, nx = images.shape[2:]
    radius = np.hypot(np.arange(nx) - center[0], np.arange(ny)[:, None] - center[1])
    radii = np.arange(inner, outer + width, _NOISE_STEP)
    rings = [(radius > r - width / 2) & (radius < r + width / 2) for r in radii]

    def work(image):
        known = [image[ring & ~np.isnan(image)] for ring in rings]
        deviations = [values.std() if len(values) else np.nan for values in known]
        result = np.interp(radius, radii, deviations, left=np.nan, right=np.nan)
        result[np.isnan(image)] = np.nan
        return result

    flat = images.reshape(-1, ny, nx)
    return np.array(over_items(work, flat)).reshape(images.shape)


def collapsed(
    data: np.ndarray, method: str, axis: int = 1, weights: np.ndarray | None = None
) -> np.ndarray:
    """Combine images along an axis, without the NaN.

    Parameters
    ----------
    data : floating array
    method : {"mean", "median", "weighted-mean", "weighted-median", "trimmed-mean"}
        As in `pyklip.klip.collapse_data`; "trimmed-mean" leaves out the two lowest and the two
        highest.
    axis : int
    weights : array of the shape of `data`, optional
        For the weighted methods: the mean (median) of weight times value, over that of the weights.
        Default: ones.

    Returns
    -------
    array without that axis
        NaN where there is nothing else.
    """
    combine = np.nanmedian if method.endswith("median") else np.nanmean
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        if method == "trimmed-mean":
            ordered = np.sort(data, axis=axis)
            return np.nanmean(
                np.take(ordered, range(2, data.shape[axis] - 2), axis=axis), axis=axis
            )
        if method.startswith("weighted") and weights is not None:
            return combine(weights * data, axis=axis) / combine(weights, axis=axis)
        return combine(data, axis=axis)
