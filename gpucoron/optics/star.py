"""Absolute position of the star behind a coronagraph, by a model of its image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from gpucoron.backend.threads import limited_to
from gpucoron.errors import InputError
from gpucoron.optics.coronagraph_model import (
    DIAMETER_M,
    CoronagraphModel,
    Grid,
    StarModel,
)
from gpucoron.optics.instruments import Filter, Instrument, load_aperture
from gpucoron.optics.star_fit import Pixels, Prior
from gpucoron.optics.star_images import ImageModel, StarImages
from gpucoron.optics.star_search import (
    MISFIT_LIMIT,
    StarSearch,
    deviations,
    flux_errors,
)
from gpucoron.optics.star_symmetry import symmetry_centre
from gpucoron.optics.telescope import RAD

MODEL_ERROR = 0.07  # of the light of an image that the model may leave unexplained, per pixel
SMOOTHING = 0.7  # width over which that light is averaged, in units of lambda / D
RADIUS = 5.5  # pixels up to this distance from the mask are fitted, lambda / D
MOST_IMAGES = 3  # dither positions that are fitted; more add little
MISFIT_ERROR = 0.2  # that guess, lambda / D
FLOOR_MAS = {"round": 1.2, "bar": 1.2, "4qpm": 0.5, "spot": 1.0}  # of the optics of the model
MASK_FLOOR_MAS = {"round": 3.0, "bar": 3.0, "4qpm": 0.4, "spot": 9.0}  # of the mask's centre
OTHER_FLOOR_MAS = 5.0  # of masks that are not in the table
SYMMETRIC = {"round": 0.085, "spot": 0.015}  # error of the centre of symmetry, lambda / D
AGREE = 3.0  # joint errors by which the model and symmetry may be apart
UNLIKE_A_STAR = 0.5  # that is added where twice the limit is left unexplained, lambda / D
SYMMETRY_RADIUS = 10.0  # lambda / D
BAR_ALONE = 0.3  # error of one image behind a bar (a twin solution may fit as well), lambda / D
UNDITHERED = 2.0  # by which errors grow where the wavefront is seen from one place alone
ABSORBED = 1.4  # by which errors grow, as the modes absorb part of what they cannot explain
CELL = 1.0  # size of what the model leaves unexplained, lambda / D
DRIFT = 0.15  # change of the wavefront between stars, as a part of each mode's prior
SAMPLES = 24  # from the mask to the edge of the window, at most about


@dataclass(frozen=True)
class Sampling:
    """How finely the pixels of an exposure sample its images."""

    scale: tuple[float, float]  # arcsec per pixel along x and y
    wavelength_um: float

    @classmethod
    def of(cls, bandpass: Filter) -> Sampling:
        """Return the sampling in a coronagraph's filter."""
        return cls(load_aperture(bandpass.aperture).scale, bandpass.centre_um)

    @property
    def resolution(self) -> float:
        """Return lambda / D, px."""
        return self.wavelength_um * 1e-6 / DIAMETER_M / RAD / float(np.mean(self.scale))


@dataclass(frozen=True)
class StarFit:
    """Position of the star, and what was fitted with it.

    Positions count from 0 in pixels of the array, x before y.
    """

    position: tuple[float, float]  # of the common origin of `steps`
    error: tuple[float, float]
    xy_cov: float  # covariance of x and y, px^2
    method: str  # "model", "symmetry", or "none": no star is seen, and the error is infinite
    mask: np.ndarray  # (2,), or (n, 2) where each image has its own, of the images in `used`
    mask_error: np.ndarray  # likewise
    used: tuple[int, ...]  # images that were fitted
    flux: np.ndarray  # of the star in each of them, sum of its image without the mask, MJy/sr
    flux_error: np.ndarray
    background: np.ndarray  # MJy/sr
    wavefront_nm: float  # rms of the fitted wavefront over the pupil
    chi2: float  # reduced, with the model's own error in the denominator
    misfit: float  # rms of what the model leaves, as a part of the light around
    explained: bool  # little is left, with a wavefront that JWST may have
    converged: bool
    symmetry: tuple[float, float]  # centre of point symmetry
    model: tuple[float, float]  # the model's position, whatever `method` is
    known: Prior  # wavefront and mask, for `fit_star` of another star


def fit_star(
    images: np.ndarray,
    errors: np.ndarray,
    steps: np.ndarray,
    instrument: Instrument | None,
    bandpass: Filter | None,
    mask_centre: tuple[float, float],
    *,
    mask_error_px: float = 0.3,
    recentred: bool = False,
    step_error_px: float = 0.0,
    weight: np.ndarray | None = None,
    guess: tuple[float, float] | None = None,
    star_model: StarImages | None = None,
    sampling: Sampling | None = None,
    options: dict | None = None,
    known: Prior | None = None,
) -> StarFit:
    """Find the absolute position of the star behind a coronagraph.

    Images of dithered exposures are fitted together: the position of the star relative to the
    mask differs between them by known steps, while the wavefront is the same. The model's
    parameters are the position of the star, that of the mask, the wavefront (see
    `CoronagraphModel`), and flux and background of each image.

    Parameters
    ----------
    images, errors : (n, ny, nx) float, MJy/sr
        For example the mean of each exposure of the reference star. Pixels that are not finite, or
        have no positive error, are not used.
    steps : (n, 2) float, px
        Position (x, y) of the star in each image relative to the common origin.
    instrument, bandpass : Instrument, Filter, or None
        None with `star_model` and `sampling`, for a coronagraph that is not modelled.
    mask_centre : (float, float), px
        Nominal centre (x, y) of the mask on the array, from 0.
    mask_error_px : float
        Its standard error; of each image's own mask with `recentred`.
    recentred : bool
        The images were shifted after they were taken, so that the mask is elsewhere in each.
    step_error_px : float
        Standard error of each step.
    weight : (ny, nx) float or None
        Further weight of each pixel, 0 to 1.
    guess : (float, float) or None
        First guess of the common origin, px; None is the centre of point symmetry near the mask.
    star_model : StarImages or None
        Images of a star that replace the model of the optics.
    sampling : Sampling or None
        Of the images; None is that of `bandpass`.
    options : dict or None
        Keywords of `CoronagraphModel`.
    known : Prior or None
        Wavefront and mask of a fit to another star (`StarFit.known`) with the same optics; the mask
        is where it was, and the wavefront may have drifted.

    Returns
    -------
    StarFit

    Raises
    ------
    InputError
        Shapes that do not fit together, or images without usable pixels round the mask.

    Notes
    -----
    Tilt of the wavefront and position of the star are one and the same behind the mask. Tilt is
    taken out of every mode by a plane fitted over the Lyot stop, so that the position is that of
    the core of the image that the star would have without the mask.

    The weights are ``1 / (sigma^2 + (0.07 light)^2)``, where the light is the image's smoothed rms,
    so that no parameter changes them. Levenberg-Marquardt, with flux and background solved
    for at each trial (variable projection); then pixels beyond 6 sigma are taken out, once.

    Unexplained speckles are the same in all images, and move with the star. The errors take them as
    independent from one cell of lambda / D in the star's frame to the next (a clustered sandwich
    covariance), and add what the priors leave, the errors of the steps, and a floor for what
    is wrong with the model, measured in docs/star.md. Where the model leaves more than a tenth of
    the light unexplained, or its wavefront has an rms of 200 nm or more, its error is a fifth of
    lambda / D or more, and point symmetry, where its error is smaller, gives the position. Where
    the two are apart by more than 3 of their joint errors (the image of a star a lambda / D or more
    from the mask is not symmetric about it), the model gives the position, and their distance its
    error if it does not explain the image.
    """
    images, errors, steps = _checked(images, errors, steps)
    if sampling is None:
        if bandpass is None:
            raise InputError("bandpass is None, expected sampling without it")
        sampling = Sampling.of(bandpass)
    scale, resolution = sampling.scale, sampling.resolution
    used = spread_out(steps, MOST_IMAGES)
    images, errors, steps = images[used], errors[used], steps[used]
    outside = np.ones(images.shape[1:]) if weight is None else np.asarray(weight, float)
    grid = _grid(images.shape[1:], mask_centre, RADIUS * resolution)
    near = _disk(outside, mask_centre, RADIUS * resolution)
    pixels = Pixels.cut(images, errors, near, grid, SMOOTHING * resolution, MODEL_ERROR)
    if not np.all(pixels.weight.any(axis=(1, 2))):
        raise InputError(
            f"an image has no usable pixel within {RADIUS * resolution:.0f} px of the mask at "
            f"({mask_centre[0]:.1f}, {mask_centre[1]:.1f}), expected some"
        )
    mask = np.asarray(mask_centre, float)
    symmetry = _symmetric_origin(images, steps, mask if guess is None else guess, resolution)
    start = np.asarray(mask if guess is None else guess, float)
    if guess is None and (instrument is None or instrument.kind in SYMMETRIC):
        lost = np.hypot(*(symmetry - mask)) > RADIUS * resolution
        start = mask if lost else symmetry
    model: StarModel
    if star_model is not None:
        model, kind = ImageModel(star_model, grid), "images"
    elif instrument is not None and bandpass is not None:
        model = CoronagraphModel(instrument, bandpass, scale, grid, **(options or {}))
        kind = instrument.kind
    else:
        raise InputError("there is no instrument or no bandpass, expected star_model without them")
    starts = (start, 2 * mask - start, mask)
    if known is None:
        prior = Prior.nominal(model, mask, mask_error_px)
    else:
        prior = known.drifted(DRIFT * model.sigma_nm)
    search = StarSearch(model, pixels, steps, prior, recentred, known is None, CELL * resolution)
    with limited_to(1):  # the matrices are small, and threads wait for each other
        fit = search.best(starts)
        return _result(fit, search, used, symmetry, kind, resolution, scale, step_error_px)


def spread_out(steps: np.ndarray, most: int) -> list[int]:
    """Choose up to `most` images whose steps are far apart: indices, ascending."""
    distance = np.hypot(*(steps[:, None] - steps).T)
    chosen = [int(np.argmax(distance.max(axis=0)))]
    while len(chosen) < min(most, len(steps)):
        nearest = distance[chosen].min(axis=0)
        nearest[chosen] = -1
        chosen.append(int(np.argmax(nearest)))
    return sorted(chosen)


def _checked(images, errors, steps):
    images, errors, steps = (np.asarray(a, np.float64) for a in (images, errors, steps))
    if images.ndim != 3 or not len(images) or errors.shape != images.shape:
        raise InputError(
            f"images and errors have shapes {images.shape} and {errors.shape}, expected one shape "
            "(n, ny, nx)"
        )
    if steps.shape != (len(images), 2) or not (np.abs(steps) < max(images.shape[1:])).all():
        raise InputError(
            f"steps have shape {steps.shape}, expected ({len(images)}, 2), of less than the "
            f"images' size (largest: {np.abs(steps).max(initial=0):g} px): the star's x and y"
        )
    return images, errors, steps


def _grid(shape, centre, radius_px):
    """Return the grid of pixels within a radius: every pixel, or fewer where images are smooth."""
    stride = max(1, int(radius_px // SAMPLES))
    reach = stride * int(radius_px // stride)
    axes = []
    for middle, size in zip(np.rint(centre).astype(int), shape[::-1], strict=True):
        axis = np.arange(middle - reach, middle + reach + 1, stride)
        axis = axis[(axis >= 0) & (axis < size)]
        if axis.size < 8:
            raise InputError(
                f"the mask's centre is ({centre[0]:.1f}, {centre[1]:.1f}), expected a position on "
                f"the array of {shape[1]} x {shape[0]} pixels"
            )
        axes.append(axis)
    return Grid(*axes)


def _disk(weight, centre, radius_px):
    y, x = np.ogrid[: weight.shape[0], : weight.shape[1]]
    return weight * (np.hypot(x - centre[0], y - centre[1]) <= radius_px)


def _symmetric_origin(images, steps, guess, resolution):
    """Return the median of the images' centres of symmetry, less their steps."""
    found = []
    for image, step in zip(images, steps, strict=True):
        known = np.isfinite(image)
        nearest = ndimage.distance_transform_edt(
            ~known, return_distances=False, return_indices=True
        )
        centre, _ = symmetry_centre(
            image[tuple(nearest)], guess + step, SYMMETRY_RADIUS * resolution
        )
        found.append(np.subtract(centre, step))
    return np.median(found, axis=0)


def _result(fit, search, used, symmetry, kind, resolution, scale, step_error_px):
    covariance = search.covariance(fit)
    sigma = deviations(covariance)
    flux_error = flux_errors(fit, sigma)
    method, position = "model", fit.star
    error = _model_error(fit, search, sigma, kind, resolution, scale)
    xy_cov = _growth(fit, search) ** 2 * covariance[0, 1]
    symmetry_error = np.full(2, SYMMETRIC.get(kind, np.inf) * resolution)
    if symmetry_error[0] < error.min():
        apart = np.hypot(*(symmetry - fit.star))
        if apart < AGREE * np.hypot(symmetry_error[0], error.min()):
            method, position, error, xy_cov = "symmetry", symmetry, symmetry_error, 0.0
            if fit.misfit > 2 * MISFIT_LIMIT:  # an image as strange as that is no star's alone
                error = error + UNLIKE_A_STAR * resolution
        elif not search.explains(fit):
            error, xy_cov = np.full(2, apart / np.sqrt(2)), 0.0
    if not search.seen(fit):
        method, error = "none", np.full(2, np.inf)
    error = np.sqrt(error**2 + step_error_px**2 / len(used))
    mask_sigma = sigma[2 : 2 + fit.masks.size].reshape(fit.masks.shape)
    mask_error = np.hypot(ABSORBED * mask_sigma, _floor(MASK_FLOOR_MAS, kind, scale))
    return StarFit(
        position=(float(position[0]), float(position[1])),
        error=(float(error[0]), float(error[1])),
        xy_cov=float(xy_cov),
        method=method,
        mask=fit.masks if fit.own_masks else fit.masks[0],
        mask_error=mask_error if fit.own_masks else mask_error[0],
        used=tuple(used),
        flux=fit.flux,
        flux_error=flux_error,
        background=fit.background,
        wavefront_nm=search.model.wavefront_nm(fit.modes),
        chi2=fit.chi2,
        misfit=fit.misfit,
        explained=search.explains(fit),
        converged=fit.converged,
        symmetry=(float(symmetry[0]), float(symmetry[1])),
        model=(float(fit.star[0]), float(fit.star[1])),
        known=fit.posterior(),
    )


def _model_error(fit, search, sigma, kind, resolution, scale):
    """Return the standard error of the model's position along x and y, px."""
    floor = _floor(FLOOR_MAS, kind, scale)
    if not (search.explains(fit) and fit.converged):
        floor = np.full(2, MISFIT_ERROR * resolution * max(1.0, fit.misfit / MISFIT_LIMIT))
    if kind == "bar" and _undithered(fit, search):
        floor = np.hypot(floor, BAR_ALONE * resolution)
    return np.hypot(_growth(fit, search) * sigma[:2], floor)


def _undithered(fit, search):
    """Return whether nothing but one place of the star tells its wavefront."""
    return search.coarse and (fit.own_masks or len(fit.steps) == 1)


def _growth(fit, search):
    """Return the factor from the fit's own errors of the star to those that are quoted."""
    return (UNDITHERED if _undithered(fit, search) else 1.0) * ABSORBED


def _floor(floors, kind, scale):
    """Return the error along x and y that the optics of the model have at least, px."""
    return floors.get(kind, OTHER_FLOOR_MAS) / (1000 * np.asarray(scale))
