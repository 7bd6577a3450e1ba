"""Replacing bad pixels, so that nothing rings when an image is shifted in Fourier space."""

from __future__ import annotations

import numpy as np

from gpucoron.errors import InputError, ParameterError
from gpucoron.ops._host import require_host

__all__ = ["fill_bad_pixels", "fill_bad_pixels_raster"]


def fill_bad_pixels(images, bad, box=3, groups=None, zero=None):
    """Fill bad pixels from the same pixel in other integrations, else from its neighbourhood.

    Parameters
    ----------
    images : (n, ny, nx) float32 or float64
        The integrations; never changed.
    bad : (n, ny, nx) bool
        True where a pixel is to be replaced. Non-finite pixels count as bad whatever this says.
    box : int, pixels
        Odd side of the box whose good pixels give the median; even values act as the next odd.
    groups : (n,) int, optional
        Integrations with the same number were taken with the star in the same place (one
        exposure) and may lend each other pixels. Default: each integration stands alone.
    zero : (n, ny, nx) bool, optional
        Pixels to set to 0 and not to fill (outside the field of a MIRI coronagraph).

    Returns
    -------
    (n, ny, nx), dtype of `images`
        Finite everywhere, except that an integration with no good pixel at all stays NaN.

    Raises
    ------
    InputError
        Arrays that do not fit each other.
    ParameterError
        A `box` smaller than 1.

    Notes
    -----
    In this order: the median of the pixel over the good integrations of its group; the median of
    the good pixels in the box, cut at the array's edges; the same with a box that doubles until it
    holds a good pixel. Only pixels that were good to begin with are ever used, so the result does
    not depend on the order in which pixels are visited. jwst uses a 3x3 box alone, in place and in
    raster order, and writes 0 into row 0 and column 0: see `fill_bad_pixels_raster`.
    """
    _check(images, bad, box, zero)
    require_host("fill_bad_pixels", images, bad, zero)
    from gpucoron.ops._bad_pixels_cpu import box_medians

    bad = bad | ~np.isfinite(images)
    out = np.array(images, copy=True)
    if zero is not None:
        out[zero] = 0
        bad = bad & ~zero
    usable = ~bad if zero is None else ~(bad | zero)
    todo = bad & usable.any(axis=(1, 2))[:, None, None]
    out[bad & ~todo] = np.nan
    if groups is not None:
        todo = _from_other_integrations(out, images, usable, todo, np.asarray(groups))
    if todo.any():
        n, y, x = np.nonzero(todo)
        out[n, y, x] = box_medians(np.ascontiguousarray(images), usable, n, y, x, int(box) // 2)
    return out


def _from_other_integrations(out, images, usable, todo, groups):
    """Fill what the group's median knows; return what is left."""
    from gpucoron.ops.median import median

    left = todo.copy()
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        if len(members) < 2 or not todo[members].any():
            continue
        value = median(images[members], usable[members])
        for k in members:
            fill = todo[k] & np.isfinite(value)
            out[k][fill] = value[fill]
            left[k] &= ~fill
    return left


def fill_bad_pixels_raster(images, bad, flagged, box=3, zero=None):
    """Fill bad pixels as jwst's align_refs does, oddities included (``preset="jwst"``).

    Parameters
    ----------
    images : (n, ny, nx) float32 or float64
        The integrations; never changed.
    bad : (n, ny, nx) bool
        Pixels to replace: flagged ones and NaNs.
    flagged : (n, ny, nx) bool
        Pixels whose DQ forbids their use as a neighbour. A NaN that no flag marks becomes usable
        once it is filled, because the array changes while it is scanned.
    box : int, pixels
        Side of the box.
    zero : (n, ny, nx) bool, optional
        Pixels set to 0 beforehand (MIRI, outside the field).

    Returns
    -------
    (n, ny, nx), dtype of `images`
        Row 0 and column 0 get 0 where bad, for the negative start of their box makes it empty; so
        does a pixel with no good neighbour.

    Raises
    ------
    InputError
        Arrays that do not fit each other.
    ParameterError
        A negative `box`.
    """
    _check(images, bad, box, zero, smallest=0)
    from gpucoron.ops._bad_pixels_cpu import raster_fill

    out = np.array(images, copy=True)
    if zero is not None:
        out[zero] = 0
        bad = bad & ~zero
    raster_fill(out, np.ascontiguousarray(bad), np.ascontiguousarray(flagged), int(box) // 2)
    return out


def _check(images, bad, box, zero, smallest=1):
    if images.ndim != 3:
        raise InputError(f"images have shape {images.shape}, expected (n, ny, nx)")
    for name, array in (("bad", bad), ("zero", zero)):
        if array is not None and array.shape != images.shape:
            raise InputError(f"{name} has shape {array.shape}, but images have {images.shape}")
    if box < smallest:
        raise ParameterError(f"box is {box}, expected a number of pixels of at least {smallest}")
