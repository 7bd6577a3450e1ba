"""The star by a model of its coronagraph: the optics, or images that a user gives."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpucoron.backend.arrays import to_host
from gpucoron.core.star import StarPositions
from gpucoron.core.star_flux import StarFlux
from gpucoron.errors import InputError, ParameterError

if TYPE_CHECKING:
    from gpucoron.core.parameters import Parameters
    from gpucoron.io.exposures import Exposure
    from gpucoron.optics.instruments import Filter, Instrument
    from gpucoron.optics.star import Sampling
    from gpucoron.optics.star_fit import Prior
    from gpucoron.optics.star_images import StarImages
    from gpucoron.steps.align_refs import Alignment

__all__ = ["ExposureMean", "Optics", "coronagraph_of", "load_star_model", "measure_star"]

log = logging.getLogger("gpucoron")

#: Noise of an exposure whose ERR is not known, as a part of its median light.
_UNKNOWN_NOISE = 0.01
#: Error of a fitted flux by what is wrong with the model, as a part of it.
_FLUX_ERROR = 0.03
#: Behind a round mask or a bar, where flux and wavefront are nearly one, by the rms of the phase in
#: radians: times its square where dithered references tell the wavefront (simulated sets: 0.04 at
#: 4.4 um, 0.2 at 1.8 um), times itself where they do not (0.15 at 4.4 um, 0.6 at 2 um).
_KNOWN_BY_PHASE_2, _SCATTER_BY_PHASE = 3.0, 2.5
_EDGE_PX = 2.0  # by which images may be smaller: they are continued as they are at the edge


class Optics(NamedTuple):
    """What `gpucoron.optics.star.fit_star` has to know of an exposure's coronagraph."""

    instrument: Instrument | None  # None where images of a star are the model
    bandpass: Filter | None
    sampling: Sampling
    mask_centre: tuple[float, float]  # (x, y) px from 0


def coronagraph_of(exposure: Exposure, star_model: StarImages | None = None) -> Optics:
    """Return the coronagraph of an exposure.

    Where it is not modelled, and there are images of a star, its wavelength is that of the filter's
    name, the pixel scale the WCS's, and the mask is where the headers have the star.

    Raises
    ------
    InputError
        There is no model of it.
    """
    from gpucoron.optics.instruments import optics_of
    from gpucoron.optics.star import Sampling

    known = optics_of(exposure.meta)
    if known is not None:
        return Optics(known.instrument, known.bandpass, Sampling.of(known.bandpass), known[2])
    if star_model is None:
        meta = exposure.meta
        what = (meta.instrument, meta.filter, meta.coronmsk or meta.subarray)
        raise InputError(f"there is no model of {' '.join(w or '?' for w in what)}")
    return _by_headers(exposure)


def _by_headers(exposure: Exposure) -> Optics:
    from gpucoron.io.star import expected_star, offsets_from
    from gpucoron.optics.star import Sampling

    name = (exposure.meta.filter or "").strip().upper()
    wavelength, found = re.fullmatch(r"F(\d{3,4})[A-Z]\w?", name), expected_star(exposure)
    if wavelength is None or found is None:
        missing = "star" if wavelength else "wavelength"
        raise InputError(
            f"the coronagraph is not known, and the headers do not say the {missing} "
            f"(FILTER is {name or 'missing'})"
        )
    star = found[0]
    side = offsets_from(exposure, star)[1]
    sampling = Sampling((side, side), int(wavelength[1]) / 100)
    return Optics(None, None, sampling, (star[0] - 1, star[1] - 1))


def load_star_model(
    parameters: Parameters, science: Iterable[Exposure], checksums: bool = True
) -> StarImages | None:
    """Return the images of ``align_refs.star_model``; None where no file is given.

    A run that does not measure the star gives a warning.

    Raises
    ------
    ParameterError
        The star's position is given as well.
    InputError
        The file cannot be used, or its images are smaller than what is fitted in an exposure.
    """
    from gpucoron.io.star_model import read_star_model
    from gpucoron.optics.star_images import StarImages

    path = parameters.align_refs.star_model
    if not path:
        return None
    if parameters.align_refs.stars:
        raise ParameterError(
            f"align_refs.star_model is {path!r}, but align_refs.star gives the star's position, "
            "expected one of the two"
        )
    file = read_star_model(path, checksums)
    try:
        model = StarImages(*file)
    except InputError as problem:
        raise InputError(f"{path}: {problem}") from None
    if parameters.like_jwst or parameters.align_refs.skip or parameters.klip.skip:
        why = "with preset jwst" if parameters.like_jwst else "where a step is skipped"
        log.warning("%s: not used: the star's position is not measured %s", path, why)
        return model
    for exposure in science:
        _check_size(path, model, exposure)
    return model


def _check_size(path: str, model: StarImages, exposure: Exposure) -> None:
    """Raise InputError where images end before what is fitted does."""
    from gpucoron.optics.star import RADIUS

    try:
        optics = coronagraph_of(exposure, model)
    except InputError:
        return  # it is told when the star is to be measured
    wanted = _sides(optics.mask_centre, exposure.shape[1:])
    wanted = np.minimum(wanted, RADIUS * optics.sampling.resolution)
    found = _sides(model.centre, model.images.shape[1:])
    worst = int(np.argmax(wanted - found))
    if wanted[worst] - found[worst] > _EDGE_PX:
        raise InputError(
            f"{path}: the images end {found[worst]:.0f} px from the star (or the mask), expected "
            f"{math.ceil(wanted[worst])} px, which are fitted in {exposure.path.name}"
        )


def _sides(centre: Iterable[float], shape: tuple[int, ...]) -> np.ndarray:
    """Return the distances of a point (x, y) from the left, right, lower and upper edge, px."""
    (x, y), (ny, nx) = centre, shape
    return np.array([x, nx - 1 - x, y, ny - 1 - y])


class ExposureMean(NamedTuple):
    """The mean of an exposure's integrations, on the host."""

    image: np.ndarray  # (ny, nx) MJy/sr; NaN where there is no good pixel
    sigma: np.ndarray  # (ny, nx) MJy/sr; 0 or NaN where not known
    offsets: np.ndarray  # (n, 2) px, x and y of integrations relative to each other
    offset_errors: np.ndarray  # (n, 2) px
    offset_cov: np.ndarray  # (n,) px^2, covariance of x and y of the offsets
    good: np.ndarray  # (n,) bool: of which it is the mean

    @classmethod
    def of(cls, alignment: Alignment) -> ExposureMean:
        """Return that of a science exposure, from its integrations with bad pixels filled.

        Raises
        ------
        InputError
            No integration could be registered.
        """
        offsets, errors, cov, good = _offsets(alignment)
        if not good.any():
            raise InputError("no integration could be registered")
        image = to_host(alignment.science)[good].mean(axis=0, dtype=np.float64)
        sigma = to_host(alignment.science_error) / math.sqrt(good.sum())
        return cls(image, sigma, offsets, errors, cov, good)

    @property
    def noise(self) -> np.ndarray:
        """Standard deviations for the fit, NaN where a pixel cannot be used."""
        known = self.sigma > 0
        sigma = self.sigma
        if known.mean() < 0.5:  # of holes that were filled, at most: the model's own error counts
            seen = np.abs(self.image[np.isfinite(self.image)])
            sigma = np.where(known, sigma, _UNKNOWN_NOISE * np.median(seen) if seen.size else 0.0)
        return np.where(sigma > 0, sigma, np.nan)


def measure_star(
    exposure: Exposure,
    mean: ExposureMean,
    weight: np.ndarray | None,
    star_model: StarImages | None,
    known: Prior | None = None,
) -> StarPositions:
    """Fit a model of the coronagraph to the mean of an exposure's integrations.

    Parameters
    ----------
    exposure : Exposure
    mean : ExposureMean
    weight : (ny, nx) floating or None
        Of the pixels; 0 hides a known source.
    star_model : StarImages or None
        Images of a star that replace the model of the coronagraph.
    known : Prior or None
        Wavefront and mask, where dithered references tell them.

    Returns
    -------
    StarPositions

    Raises
    ------
    InputError
        There is no model, or no star is seen.
    """
    from gpucoron.optics.star import fit_star
    from gpucoron.optics.star_search import MISFIT_LIMIT

    optics = coronagraph_of(exposure, star_model)
    fit_mean = partial(
        fit_star,
        mean.image[None],
        mean.noise[None],
        np.zeros((1, 2)),
        optics.instrument,
        optics.bandpass,
        optics.mask_centre,
        weight=weight,
        star_model=star_model,
        sampling=optics.sampling,
    )
    fit = fit_mean(known=known)
    if known is not None and (fit.method == "none" or not fit.explained):
        alone = fit_mean()
        if alone.method != "none" and (alone.explained or alone.misfit < fit.misfit):
            fit, known = alone, None
    if fit.method == "none":
        by = "" if star_model is None else " by the images of align_refs.star_model"
        raise InputError(f"the star is not seen{by}")
    if star_model is not None and fit.misfit > MISFIT_LIMIT:
        log.warning(
            "%s: the images of align_refs.star_model leave %.0f%% of the light around the star "
            "unexplained (expected: less than %.0f%%), so the error of its position is a guess",
            *(exposure.path.name, 100 * fit.misfit, 100 * MISFIT_LIMIT),
        )
    place = np.array(fit.position) + mean.offsets - mean.offsets[mean.good].mean(axis=0) + 1
    (x, y), (x_err, y_err) = place.T, np.hypot(fit.error, mean.offset_errors).T
    xy_cov = fit.xy_cov + mean.offset_cov
    moves_with_star = star_model is not None and len(star_model.images) == 1
    kind = None if optics.instrument is None or star_model is not None else optics.instrument.kind
    wavelength_um = optics.sampling.wavelength_um
    flux = _fitted_flux(fit, kind, wavelength_um, known is not None, exposure.meta.pixar_sr)
    if fit.method != "model" or moves_with_star:  # nothing is known of the mask
        return StarPositions(x, y, x_err, y_err, fit.method, xy_cov=xy_cov)
    mask = np.reshape(fit.mask, (-1, 2))[0] + 1
    centre = float(mask[0]), float(mask[1])
    return StarPositions(x, y, x_err, y_err, fit.method, centre, flux, xy_cov)


def _fitted_flux(fit, kind, wavelength_um, wavefront_known, pixel_sr) -> StarFlux | None:
    """Return the star's flux density by the fit; None where the fit does not tell it.

    That is where the model is a user's images, whose unit is not known (`kind` None), or does not
    explain the image, or where PIXAR_SR is not known. Behind a round mask or a bar one image tells
    the product of flux and square of the wavefront error only. Without dithered references it is
    that of the expected wavefront, whose rms is known to 20 %.
    """
    from gpucoron.optics.wavefront import EXPECTED_ERROR_NM, EXPECTED_NM

    flux = float(np.mean(fit.flux))
    if kind is None or not fit.explained or not flux > 0 or not (pixel_sr or 0) > 0:
        return None
    part, scale, text = _FLUX_ERROR, 1.0, "fitted model of the coronagraph"
    phase = 2e-3 * math.pi * EXPECTED_NM / wavelength_um
    if kind not in ("4qpm", "spot") and wavefront_known:
        part = math.hypot(part, _KNOWN_BY_PHASE_2 * phase**2)
    elif kind not in ("4qpm", "spot"):
        part = math.hypot(2 * EXPECTED_ERROR_NM / EXPECTED_NM, _SCATTER_BY_PHASE * phase)
        scale = (fit.wavefront_nm / EXPECTED_NM) ** 2
        text += ", without dithers"
    error = math.hypot(float(np.mean(fit.flux_error)), part * flux)
    scale *= 1e6 * pixel_sr
    return StarFlux(flux * scale, error * scale, text)


def _offsets(alignment: Alignment) -> tuple[np.ndarray, ...]:
    """Return x, y of integrations relative to each other, their errors and covariance.

    And which of them are measured.
    """
    from gpucoron.ops.registration import CONVERGED

    n = len(alignment.science)
    if alignment.align != "joint":
        usable = np.array([alignment.has_pixels(i) for i in range(n)])
        offsets = np.where(usable[:, None], np.zeros((n, 2)), np.nan)
        return offsets, np.zeros((n, 2)), np.zeros(n), usable
    found = alignment.positions
    good = found.status[0] == CONVERGED
    return found.science[:, ::-1], found.science_errors[:, ::-1], found.xy_cov[0], good
