"""Replacing bad pixels, so that nothing rings when an image is shifted in Fourier space."""

from __future__ import annotations

import functools

import numpy as np
from scipy.special import j0

from gpucoron.errors import InputError, ParameterError
from gpucoron.ops._host import require_host
from gpucoron.ops._threads import over_items
from gpucoron.ops.fourier_shift import gradient
from gpucoron.ops.median import median

__all__ = ["fill_bad_pixels", "fill_bad_pixels_raster", "krige"]


CUTOFF = 0.5  # cycles per pixel; no image has finer structure
REACH = 4  # px; neighbours within this predict a pixel
NOISE_FLOOR = 1e-4  # least noise variance, as a share of the signal's: keeps the systems well posed
FEWEST = 3  # neighbours


def fill_bad_pixels(images, bad, box=3, groups=None, zero=None, err=None):
    """Fill bad pixels from the same pixel in other integrations, and from its neighbourhood.

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
    err : (n, ny, nx) floating, optional
        Standard deviations. With them, pixels are interpolated by kriging; without, box medians
        are all there is.

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
    Only pixels that were good to begin with are ever used, so the result does not depend on the
    order in which pixels are visited.

    The prediction is the median of the pixel over the good integrations of its group, each brought
    to where this one is by a least-squares fit of the median's derivatives, itself and a constant
    to what differs. What is left (the wavefront has drifted) is interpolated at the bad pixel from
    the good pixels within 4 px by simple kriging [1]_: weights ``(K + N / S)^-1 k`` with K and k
    the correlations that a diffraction-limited image has (the transform of the squared modulation
    transfer function of a circular pupil, cut off at half a cycle per pixel), N the noise variance
    and S the signal variance found round the pixel. A pixel that is bad throughout its group is
    interpolated in the same way from the image itself. Where the surroundings hold nothing but
    noise their mean is taken.

    Without `err`, and where fewer than three neighbours are good: the group's median, else the
    median of the good pixels in the box, cut at the array's edges, the box doubling until it holds
    one. jwst uses a 3x3 box alone, in place and in raster order, and writes 0 into row 0 and column
    0: see `fill_bad_pixels_raster`.

    References
    ----------
    .. [1] Cressie 1993, Statistics for Spatial Data, sect. 3.4.5 (simple kriging).
    """
    _check(images, bad, box, zero)
    require_host("fill_bad_pixels", images, bad, zero, err)
    bad = bad | ~np.isfinite(images)
    out = np.array(images, copy=True)
    if zero is not None:
        out[zero] = 0
        bad = bad & ~zero
    usable = ~bad if zero is None else ~(bad | zero)
    todo = bad & usable.any(axis=(1, 2))[:, None, None]
    out[bad & ~todo] = np.nan
    numbers = np.arange(len(images)) if groups is None else np.asarray(groups)
    groups_of = [members for members in (np.flatnonzero(numbers == g) for g in np.unique(numbers))
                 if todo[members].any()]
    bases = over_items(lambda members: _predictions(images, usable, members, err), groups_of)
    jobs = [(k, base) for members, own in zip(groups_of, bases, strict=True)
            for k, base in zip(members, own, strict=True)]

    def fill(job):
        k, base = job
        _fill_one(out[k], images[k], usable[k], todo[k], base, None if err is None else err[k],
                  int(box) // 2)

    over_items(fill, jobs)
    return out


def _predictions(images, usable, members, err):
    """Predict each integration of a group from the others; NaN where none of them is good."""
    if len(members) == 1:
        return np.full((1, *images.shape[1:]), np.nan)
    middle = median(images[members], usable[members])
    if err is None:
        return np.broadcast_to(middle, (len(members), *middle.shape))
    known = np.isfinite(middle)
    if not known.any():
        return np.broadcast_to(middle, (len(members), *middle.shape))
    smooth = np.where(known, middle, 0)
    if not known.all():
        smooth = fill_bad_pixels(smooth[None], ~known[None])[0]
    smooth = smooth.astype(np.float64)
    terms = np.stack([*gradient(smooth), smooth, np.ones_like(smooth)])
    changes = np.array([_change(terms, images[k] - middle, usable[k] & known, err[k])
                        for k in members])
    still = (images[members] - changes).astype(images.dtype)
    return median(still, usable[members]) + changes


def _change(terms, difference, usable, err):
    """Fit what an integration's star did since the median: moved a little, or dimmed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where(usable & (err > 0), 1.0 / err.astype(np.float64), 0.0).ravel()
    columns = terms.reshape(len(terms), -1) * weight
    right = np.where(weight > 0, difference.ravel(), 0.0) * weight
    factors = np.linalg.lstsq(columns @ columns.T, columns @ right, rcond=None)[0]
    return np.tensordot(factors, terms, axes=1)


def _fill_one(out, image, usable, todo, base, err, half):
    """Fill one image in place: from its prediction and its own neighbourhood."""
    from gpucoron.ops._bad_pixels_cpu import box_medians

    known = np.isfinite(base)
    out[todo & known] = base[todo & known]
    if err is not None:
        residual = np.where(usable & known, image, 0.0) - np.where(usable & known, base, 0.0)
        _krige(out, residual, usable & known, todo & known, err, base)
        _krige(out, np.where(usable, image, 0.0), usable, todo & ~known, err, None)
        todo = todo & ~known & np.isnan(out)
    else:
        todo = todo & ~known
    if todo.any():
        y, x = np.nonzero(todo)
        out[y, x] = box_medians(np.ascontiguousarray(image[None]), usable[None],
                                np.zeros(len(y), dtype=np.int64), y, x, half)


def krige(image, usable, err, y, x):
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

    Returns
    -------
    (n,) float64, (n,) float64
        Predictions and their variances, without the pixels' own noise; NaN where fewer than three
        neighbours are usable. See `fill_bad_pixels` for the method.
    """
    from gpucoron.ops._kriging_cpu import interpolate

    noise = np.where(usable & np.isfinite(err), err, 0.0).astype(np.float64) ** 2
    values = np.where(usable, image, 0.0).astype(np.float64)
    return interpolate(values, noise, usable, y, x, *_correlations(), NOISE_FLOOR, FEWEST)


def _krige(out, image, usable, todo, err, base):
    """Interpolate the pixels `todo` of an image, add `base`, and put them into `out`."""
    y, x = np.nonzero(todo)
    if not len(y):
        return
    values, _ = krige(image, usable, err, y, x)
    if base is None:
        out[y, x] = values
        return
    found = np.isfinite(values)
    out[y[found], x[found]] = base[y[found], x[found]] + values[found]


@functools.cache
def _correlations():
    """Offsets of the neighbours, their correlations with each other and with the centre."""
    span = range(-REACH, REACH + 1)
    offsets = np.array([(y, x) for y in span for x in span
                        if 0 < y * y + x * x <= REACH * REACH])
    k = np.linspace(0.0, CUTOFF, 4001)
    u = k / CUTOFF
    mtf = 2 / np.pi * (np.arccos(u) - u * np.sqrt(1 - u * u))
    squares = np.arange(4 * REACH * REACH + 1)
    # the integrand is 0 at both ends, so the trapezoidal rule is a sum
    table = np.array([np.sum(mtf**2 * k * j0(2 * np.pi * k * np.sqrt(d))) for d in squares])
    table /= table[0]
    between = np.sum((offsets[:, None] - offsets[None]) ** 2, axis=-1)
    return offsets, table[between], table[np.sum(offsets**2, axis=1)]


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
