"""Replace bad pixels, so that Fourier shifts do not ring."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.backend.device import on_gpu
from gpucoron.backend.parallel import map_items, over_items
from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.fourier_shift import gradient
from gpucoron.ops.kriging import FAR, correlation_of, krige
from gpucoron.ops.median import median

__all__ = [
    "Exposures",
    "exposure_images",
    "fill_bad_pixels",
    "krige",
    "refill",
]


UNSURE = 2.0  # times the noise: holes less certain than this are interpolated from farther away


class Exposures(NamedTuple):
    """Mean images of m exposures with bad pixels filled; see `exposure_images`."""

    images: Any  # (m, ny, nx) float64
    known: Any  # (m, ny, nx) bool: good in at least one integration
    noise: Any  # (m, ny, nx) floating: of the images; in holes, what is usual round them
    spread: Any  # (m, ny, nx) float64: uncertainty of what fills a hole; 0 elsewhere
    changes: list  # how integrations differ: (n, 4) and (4, ny, nx) float64; None where one is all
    correlation: Any  # (145,) float64: of pixels, by squared distance


def exposure_images(images, bad, groups, err, *, zero=None, box=3, correlation=None):
    """Combine the integrations of each exposure, and fill the pixels that are bad in all of them.

    Parameters
    ----------
    images, bad, groups, err, zero, box
        As for `fill_bad_pixels`.
    correlation : (145,) float64, optional
        From `gpucoron.ops.kriging.correlation_of`. Default: measured on the first exposure.

    Returns
    -------
    Exposures
        In the order of the groups' numbers. An exposure without a good pixel is NaN.

    Raises
    ------
    InputError
        Arrays that do not fit each other.
    TypeError
        Host and device arrays are mixed.

    Notes
    -----
    On a GPU the host waits for the number of holes, and measures the correlation itself: once in a
    run, and the exposures after the first are given it.
    """
    images, bad, err, zero = cuda.as_device_arrays(images, bad, err, zero)
    check_images(images, bad, box, zero)
    xp = cuda.array_namespace(images, bad, err, zero)
    usable = xp.isfinite(images) & ~bad
    if zero is not None:
        usable &= ~zero
    half, members_of = int(box) // 2, _members_of(groups, len(images))
    combined = map_items(lambda members: _combine(images, usable, members, err), members_of, xp)
    outside = xp.zeros((len(members_of), *images.shape[1:]), dtype=bool)
    if zero is not None:
        for i, members in enumerate(members_of):
            outside[i] = zero[xp.asarray(members)].all(axis=0)
    if correlation is None:
        correlation = _measure_correlation(combined, outside, half)

    filled = map_items(
        lambda i: _fill_holes(*combined[i][:2], outside[i], correlation, half),  # type: ignore[call-arg]
        range(len(combined)),
        xp,
    )
    return Exposures(  # type: ignore[call-arg]
        *(xp.stack(part) for part in zip(*filled, strict=True)),
        [changes for _, _, changes in combined],
        correlation,
    )


def refill(exposures, models, limit):
    """Fill bad pixels of exposures again, from their expected images.

    Parameters
    ----------
    exposures : Exposures
    models : (m, ny, nx) floating
        What each is expected to look like; the difference to it is interpolated.
    limit : (m, ny, nx) float64
        Where this is above 0, pixels are filled anew, if with a smaller uncertainty than this.

    Returns
    -------
    Exposures
        `spread` of the pixels filled anew is that of the interpolated difference.
    """
    xp = cuda.array_namespace(exposures.images, models, limit)
    images, spread = exposures.images.copy(), exposures.spread.copy()

    def fill(i):
        y, x = xp.nonzero(limit[i])
        known = exposures.known[i]
        values, variances = krige(
            xp.where(known, images[i] - models[i], 0.0),
            known,
            exposures.noise[i],
            y,
            x,
            exposures.correlation,
            FAR,
        )
        better = xp.flatnonzero(variances < limit[i, y, x] ** 2)
        y, x = y[better], x[better]
        images[i, y, x] = models[i, y, x] + values[better]
        spread[i, y, x] = xp.sqrt(variances[better])

    map_items(fill, np.flatnonzero(to_host(limit.any(axis=(1, 2)))), xp)
    return exposures._replace(images=images, spread=spread)


def fill_bad_pixels(images, bad, box=3, groups=None, zero=None, err=None, exposures=None):
    """Fill bad pixels from other integrations and from neighbouring pixels.

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
        are all there is. On a GPU they are rounded to the dtype of `images`.
    exposures : Exposures, optional
        From `exposure_images` of the same integrations. Default: made here, from `err`.

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
    to what differs. A pixel that is bad throughout its group is first filled in the median: by
    kriging (`gpucoron.ops.kriging`) from the good pixels within 4 px, and where that leaves twice
    the median's noise from those within 6 px. What an integration has beyond its
    prediction (the wavefront has drifted) is interpolated at the bad pixel from the good pixels
    within 4 px. With fewer than three good neighbours, the median of the good pixels in the box,
    cut at the array's edges, the box doubling until it holds one.

    Without `err`: the group's median, else the box's. jwst uses a 3x3 box alone, in place and in
    raster order, and writes 0 into row 0 and column 0: see
    `gpucoron.ops.raster_fill`.
    """
    images, bad, zero, err = cuda.as_device_arrays(images, bad, zero, err)
    check_images(images, bad, box, zero)
    xp = cuda.array_namespace(images, bad, zero, err)
    bad = bad | ~xp.isfinite(images)
    out = images.copy()
    usable = ~bad
    if zero is not None:
        out[zero] = 0
        bad, usable = bad & ~zero, usable & ~zero
    todo = bad & usable.any(axis=(1, 2))[:, None, None]
    out[bad & ~todo] = np.nan
    numbers = np.arange(len(images)) if groups is None else groups
    members_of = _members_of(numbers, len(images))
    if err is not None and exposures is None:
        exposures = exposure_images(images, bad, numbers, err, zero=zero, box=box)
    if on_gpu(images):
        from gpucoron.ops.cuda import bad_pixels as _bad_pixels_cuda

        if err is None:
            _bad_pixels_cuda.fill_by_medians(out, images, usable, todo, members_of, int(box) // 2)
        else:
            _bad_pixels_cuda.fill_by_kriging(out, images, usable, todo, members_of, err, exposures)
        return out

    def fill(job):
        i, members = job
        if err is None:
            _fill_by_medians(out, images, usable, todo, members, int(box) // 2)
        else:
            _fill_by_kriging(out, images, usable, todo, members, err, exposures, i)

    over_items(fill, [(i, members) for i, members in enumerate(members_of) if todo[members].any()])
    return out


def _members_of(groups, n):
    """Return the indices of the integrations of each group."""
    groups = to_host(groups)
    if groups.shape != (n,):
        raise InputError(f"groups have shape {groups.shape}, expected {(n,)}")
    return [np.flatnonzero(groups == g) for g in np.unique(groups)]


def _combine(images, usable, members, err):
    """Median of a group, its noise, and how each integration differs from it."""
    if on_gpu(images):
        return _combine_on_gpu(images, usable, members, err)
    good = usable[members]
    middle = median(images[members], good)
    sigma = np.where(good & np.isfinite(err[members]), err[members], 0.0)
    unit = _unit(np.abs(sigma).max(axis=0))  # in which no square overflows or vanishes
    noise = unit * np.sqrt(((sigma / unit) ** 2).sum(axis=0)) / np.maximum(good.sum(axis=0), 1)
    known = np.isfinite(middle)
    if len(members) == 1 or not known.any():
        return middle, noise, None
    terms = _terms(middle, known)
    factors = np.array(
        over_items(
            lambda k: _factors(terms, images[k] - middle, usable[k] & known, err[k]), members
        )
    )
    still = (images[members] - np.tensordot(factors, terms, axes=1)).astype(images.dtype)
    return median(still, good), noise, (factors, terms)


def _combine_on_gpu(images, usable, members, err):
    from gpucoron.ops.cuda import bad_pixels as _bad_pixels_cuda

    group = _bad_pixels_cuda.Group(images, usable, members)
    middle, noise = group.median(), group.noise(err)
    if len(members) == 1:
        return middle, noise, None
    terms = _terms(middle, cuda.cupy().isfinite(middle))  # NaN where nothing is known at all
    changes = group.changes(err, middle, terms)
    return group.median_without(changes, terms), noise, (changes, terms)


def _terms(middle, known):
    """Derivatives of an image by shift y and x, brightness and background."""
    xp = cuda.array_namespace(middle)
    image = fill_bad_pixels(xp.where(known, middle, 0)[None], ~known[None])[0]
    return xp.stack([*gradient(image), image.astype(np.float64), xp.ones(image.shape)])


def _factors(terms, difference, usable, err):
    """Fit shift, brightness and background of an integration relative to the median.

    The four terms have different units, so lstsq gets them scaled to like sizes, by powers of two,
    which are exact: what it takes for zero must not depend on the unit of the images.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where(usable & (err > 0), 1.0 / err.astype(np.float64), 0.0).ravel()
    columns = terms.reshape(len(terms), -1) * weight
    right = np.where(weight > 0, difference.ravel(), 0.0) * weight
    matrix = columns @ columns.T
    unit = _unit(np.sqrt(np.diag(matrix)))
    scaled = matrix / np.outer(unit, unit)
    return np.linalg.lstsq(scaled, columns @ right / unit, rcond=None)[0] / unit


def _unit(values):
    """Powers of two not above `values`, by which one divides exactly; 1/2 where they are 0."""
    return np.ldexp(values.dtype.type(1), np.frexp(values)[1] - 1)


def _measure_correlation(combined, outside, half):
    """Measure the correlation of pixels on the first exposure that has any."""
    xp = cuda.array_namespace(outside)
    for (image, noise, _), beyond in zip(combined, outside, strict=True):
        if xp.isfinite(image).any():
            filled = _fill_holes(image, noise, beyond, None, half)[0]
            return correlation_of(xp.where(beyond, xp.median(filled[~beyond]), filled))
    return correlation_of(xp.zeros(outside.shape[1:]))


def _fill_holes(image, noise, outside, correlation, half):
    """Fill the NaN pixels of an image; gives the first four parts of `Exposures`."""
    xp = cuda.array_namespace(image)
    known = xp.isfinite(image) & ~outside
    filled, spread = image.astype(np.float64), xp.zeros(image.shape)
    filled[outside] = 0.0
    y, x = xp.nonzero(~known & ~outside)
    if not len(y) or not known.any():
        return filled, known, noise, spread
    values, variances = krige(filled, known, noise, y, x, correlation)
    noise[y, x] = _boxes(noise, known, y, x, half)
    if correlation is not None:
        poor = xp.flatnonzero(variances > (UNSURE * noise[y, x].astype(np.float64)) ** 2)
        values[poor], variances[poor] = krige(
            filled, known, noise, y[poor], x[poor], correlation, FAR
        )
    lost = xp.flatnonzero(xp.isnan(values))
    values[lost] = _boxes(image, known, y[lost], x[lost], half)
    variances[lost] = values[lost] ** 2  # a guess: as uncertain as it is bright
    filled[y, x], spread[y, x] = values, xp.sqrt(variances)
    return filled, known, noise, spread


def _boxes(image, usable, y, x, half):
    """Medians of the usable pixels in boxes round some pixels of an image."""
    if on_gpu(image):
        from gpucoron.ops.cuda import bad_pixels as _bad_pixels_cuda

        return _bad_pixels_cuda.boxes(image, usable, y, x, half)
    from gpucoron.ops.cpu.bad_pixels import box_medians

    return box_medians(image, usable, y, x, half)


def _fill_by_medians(out, images, usable, todo, members, half):
    """Fill a group in place: from its median, and box medians where that is not known."""
    middle = np.full(images.shape[1:], np.nan, dtype=images.dtype)
    if len(members) > 1:
        middle = median(images[members], usable[members])
    for k in members:
        known = todo[k] & np.isfinite(middle)
        out[k][known] = middle[known]
        y, x = np.nonzero(todo[k] & ~known)
        if len(y):
            out[k][y, x] = _boxes(images[k], usable[k], y, x, half)


def _fill_by_kriging(out, images, usable, todo, members, err, exposures, i):
    """Fill a group in place: from its exposure's image, and each integration's own surroundings."""
    image = exposures.images[i]
    if exposures.changes[i] is None:
        out[members[0]][todo[members[0]]] = image[todo[members[0]]]
        return

    def fill(member):
        k, change = member
        y, x = np.nonzero(todo[k])
        base = image + np.tensordot(change, exposures.changes[i][1], axes=1)
        residual = np.where(usable[k], images[k], 0.0) - np.where(usable[k], base, 0.0)
        values, _ = krige(residual, usable[k], err[k], y, x, exposures.correlation)
        out[k][y, x] = base[y, x] + np.where(np.isnan(values), 0.0, values)

    over_items(fill, list(zip(members, exposures.changes[i][0], strict=True)))


def check_images(images, bad, box, zero, smallest=1):
    """Raise InputError or ParameterError where what is to be filled does not fit."""
    if images.ndim != 3:
        raise InputError(f"images have shape {images.shape}, expected (n, ny, nx)")
    for name, array in (("bad", bad), ("zero", zero)):
        if array is not None and array.shape != images.shape:
            raise InputError(f"{name} has shape {array.shape}, but images have {images.shape}")
    if box < smallest:
        raise ParameterError(f"box is {box}, expected a number of pixels of at least {smallest}")
