"""What is done to every pixel of PSF-subtracted images, on the CPU in one pass over them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.device import on_gpu
from gpucoron.backend.parallel import map_items, over_rows
from gpucoron.ops.fourier_shift import shift_spectra, spectra

__all__ = ["mean_and_noise", "subtract_moved", "total_error"]


def subtract_moved(
    images: Any, targets: Any, moved: Any, left: list[Any], offsets: np.ndarray
) -> list[Any]:
    """Shift models from where the references are to where the images are, and subtract them.

    Parameters
    ----------
    images : (n, ny, nx) floating
        The result is NaN where they are not finite. On the host or a GPU, as all others.
    targets : (n, ny, nx) float64
        The images without their means; finite.
    moved : (n, ny, nx) float64
        These, shifted to the references.
    left : list of (n, ny, nx) float64
        What each of some models leaves of `moved`; NaN where there is none, as outside of zones:
        the result is NaN there. Nothing is left for the shift, so that no edge rings.
    offsets : (n, 2) float64
        How far (y, x), px, each image is from the references. On the host.

    Returns
    -------
    list of (n, ny, nx) float32
        ``targets - S(moved - left)`` for each model, with S the shift by `offsets`.
    """
    xp, shape = cuda.array_namespace(images), images.shape[1:]
    results = [xp.empty(images.shape, dtype=np.float32) for _ in left]
    if on_gpu(images):
        for planes, result in zip(left, results, strict=True):
            unknown = xp.isnan(planes)
            model = spectra(moved - xp.where(unknown, 0.0, planes))
            residual = targets - shift_spectra(model, offsets, shape)
            residual[~xp.isfinite(images) | unknown] = np.nan
            result[:] = residual
        return results
    from gpucoron.ops.cpu.subtracted import model_of, without

    def move(item: tuple[int, int]) -> None:  # one at a time stays in the cache
        k, i = item
        model = spectra(model_of(moved[i], left[k][i])[None])
        (model,) = shift_spectra(model, offsets[i : i + 1], shape)
        without(images[i], targets[i], left[k][i], model, results[k][i])

    map_items(move, [(k, i) for k in range(len(left)) for i in range(len(images))], xp)
    return results


def total_error(data: Any, own: Any, reference: Any, speckle: Any) -> tuple[Any, bool]:
    """Return the root of the sum of variances where images are finite, NaN elsewhere.

    Parameters
    ----------
    data : (n, ny, nx) float32
        On the host or a GPU, as all others.
    own : (n, ny, nx) float32
        Variance of the pixels themselves.
    reference, speckle : (n, ny, nx) float32
        Variance of what was subtracted, and of what it leaves.

    Returns
    -------
    (n, ny, nx) float32
    bool
        Whether `own` is not above 0 for some finite pixel.
    """
    xp = cuda.array_namespace(data)
    if on_gpu(data):
        finite = xp.isfinite(data)
        err = xp.where(finite, xp.sqrt(own + reference + speckle), np.float32(np.nan))
        return err, bool((finite & ~(own > 0)).any())
    from gpucoron.ops.cpu.subtracted import add_errors

    err = np.empty(data.shape, dtype=np.float32)

    def add(i: int) -> bool:
        return add_errors(data[i], own[i], reference[i], speckle[i], err[i])

    return err, any(map_items(add, range(len(data)), xp))


def mean_and_noise(data: Any, own: Any) -> tuple[Any, Any]:
    """Average images where they are finite, and their variances for the mean.

    Parameters
    ----------
    data : (n, ny, nx) floating
        On the host or a GPU, as `own`.
    own : (n, ny, nx) floating
        Variances.

    Returns
    -------
    (ny, nx) float64, (ny, nx) float64
        The mean, and the sum of the variances over the square of their number; NaN where no image
        is finite.
    """
    xp, shape = cuda.array_namespace(data), data.shape[1:]
    if on_gpu(data):
        finite = xp.isfinite(data)
        count = finite.sum(axis=0)
        number = xp.where(count > 0, count, np.nan)
        total = xp.where(finite, data, 0.0).sum(axis=0, dtype=np.float64)
        return total / number, xp.where(finite, own, 0.0).sum(axis=0, dtype=np.float64) / number**2
    from gpucoron.ops.cpu.subtracted import add_means

    mean, noise = np.empty(shape), np.empty(shape)
    over_rows(add_means, shape[0], data, own, mean, noise)
    return mean, noise
