"""Detect point sources and measure them: matched filter, the brightest first, as CLEAN does."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, cast

import numpy as np

from gpucoron.analysis.annulus import AnnulusNoise
from gpucoron.analysis.detection import significance
from gpucoron.analysis.joint_sources import TogetherModel, fit_together, source_image
from gpucoron.analysis.local_model import LocalModel, SourceFit, fit_source
from gpucoron.analysis.matched_filter import (
    APART,
    FilteredImage,
    MatchedFilter,
    PatchModel,
    patch_half,
)

__all__ = ["Candidate", "Field", "Found", "find_candidates", "measure", "widened"]

log = logging.getLogger("gpucoron")

THRESHOLD = 5.0  # Gaussian sigmas
MODEL_ERROR = 0.05  # of a source's image, by the wavefront that the model does not know
FAINTER = 8.0  # times the model's error of a brighter source: fainter ones may be what it left
TOGETHER, FAR = 0.3, 5.0  # of the brightest's, and FWHM: sources that are fitted after one scan
BESIDE, RAISED = 3.0, 1.5  # FWHM; times the noise of the annuli: scatter that tells extended light
IN_EXTENDED_LIGHT = "in extended light, such as a disk"
FAINT = "below 5 sigma: no detection, the brightest place within one FWHM"
# Of a source's flux, and times the noise of the annuli: light on both sides of it that is a ridge
RIDGE, RIDGE_SIGMA = 0.3, 3.5
UNLIKE = 4.0  # chi-squared per pixel, over that of the annulus, of what is no point source


class Field(NamedTuple):
    """A combined image, its errors, and the star in it."""

    image: np.ndarray  # (ny, nx), MJy/sr; NaN where there are no data
    err: np.ndarray  # (ny, nx), MJy/sr
    star: tuple[float, float]  # x, y, px from 0
    fwhm_px: float


@dataclass(frozen=True, eq=False)
class Candidate:
    """A point source: the fit of the forward model to the combined image.

    Attributes
    ----------
    x, y : float, px from 0
    flux : float
        In the unit of the forward model.
    covariance : (3, 3) float64
        Of x, y and flux, as estimates of noise scatter in the annulus.
    snr : float
        `flux` over its error.
    significance : float
        Gaussian sigmas with the same false-alarm probability (Mawet et al. 2014).
    n : float
        Independent places that the noise is measured at.
    peak : float, MJy/sr
        Brightest pixel of the source's model in the combined image.
    chi2 : float
        Of the patch about the fit, per pixel, relative to that of noise in the annulus.
    caveat : str
        Why it may be no point source, if there is reason for doubt.
    """

    x: float
    y: float
    flux: float
    covariance: np.ndarray
    snr: float
    significance: float
    n: float
    peak: float
    chi2: float
    caveat: str = ""

    @property
    def flux_err(self) -> float:
        """Standard deviation of the flux."""
        return float(math.sqrt(self.covariance[2, 2]))


class Found(NamedTuple):
    """Candidates, and the maps that they are found in."""

    candidates: list[Candidate]  # by decreasing significance
    maps: FilteredImage  # of the image without the candidates
    significance: np.ndarray  # (ny, nx), Gaussian sigmas, of the image as it is


def find_candidates(
    field: Field, model: PatchModel, *, threshold: float = THRESHOLD, at_most: int = 20
) -> Found:
    """Find the point sources in a combined image.

    Parameters
    ----------
    field : Field
    model : PatchModel
        What a source of flux 1 leaves in the image.
    threshold : float
        Least significance of a candidate, Gaussian sigmas.
    at_most : int

    Notes
    -----
    Of the places above the threshold the one with the largest ratio of flux and pixel noise is
    fitted and subtracted, with those far from it that are not much fainter, and the filter is
    applied again, until none is left (Hogbom 1974 with an exact model for every place). The errors
    near a subtracted source grow by 5 % of its image, so that what an imperfect model leaves of
    bright sources is not found again. In the end each source is fitted to the image without the
    others.

    References
    ----------
    Hogbom 1974, A&AS 15, 417. Mawet et al. 2014, ApJ 792, 97.
    """
    search = _Search(field, model)
    first = search.scan()
    maps = first
    while len(search.fits) < at_most:
        places = search.brightest(maps, threshold)[: at_most - len(search.fits)]
        if not any([search.add(place) for place in places]):
            break
        maps = search.scan()
    if len(search.fits) >= at_most and search.brightest(maps, threshold):
        log.warning(
            "%d sources above %g sigma are found, the most that are looked for: there are fainter "
            "ones (hits in exposures of one integration, or clumps of a disk, take their places)",
            *(at_most, threshold),
        )
    search.refine()
    found = _beside_clumps([search.measured(k) for k in range(len(search.fits))], field.fwhm_px)
    kept = [c for c in found if c.significance >= threshold]
    kept.sort(key=lambda c: (bool(c.caveat), -c.significance, -c.flux / c.flux_err))
    return Found(kept, search.scanned if search.fits else first, first.significance)


def _beside_clumps(found: list[Candidate], fwhm_px: float) -> list[Candidate]:
    """Give the caveat of extended light to the fainter neighbours of those that have it."""
    by_flux = sorted(range(len(found)), key=lambda k: -found[k].flux)
    out = list(found)
    for rank, k in enumerate(by_flux):
        clumps = [out[j] for j in by_flux[:rank] if out[j].caveat == IN_EXTENDED_LIGHT]
        reach = BESIDE * fwhm_px
        near = [c for c in clumps if math.dist((c.x, c.y), (out[k].x, out[k].y)) <= reach]
        if near and not out[k].caveat:
            out[k] = replace(out[k], caveat=IN_EXTENDED_LIGHT)
    return out


def measure(
    field: Field, model: PatchModel, place: tuple[float, float], others: Sequence[Candidate] = ()
) -> Candidate:
    """Measure a source at a known place, within one FWHM, whether or not it is significant.

    Parameters
    ----------
    field, model
        As for `find_candidates`.
    place : (x, y), px from 0
    others : sequence of Candidate
        Other sources, which are subtracted first.

    Notes
    -----
    A source below the threshold of a search has a caveat, and the covariance of its position is
    that of the posterior over the circle that was searched, with flat priors of place and flux:
    where noise is as bright as the source, its place is not known better than that.
    """
    search = _Search(field, model)
    for other in others:
        search.add((other.x, other.y))
    search.add(place, reach_px=field.fwhm_px)
    found = search.measured(len(search.fits) - 1)
    if found.significance >= THRESHOLD:
        return found
    return replace(found, covariance=search.spread_out(found, place), caveat=found.caveat or FAINT)


def widened(covariance: np.ndarray, of_position: np.ndarray) -> np.ndarray:
    """Return a covariance of x, y, flux (3, 3) with one of the position (2, 2), if it is larger."""
    if np.trace(of_position) <= np.trace(covariance[:2, :2]):
        return covariance
    wide = np.zeros((3, 3))
    wide[:2, :2], wide[2, 2] = of_position, covariance[2, 2]
    return wide


class _Search:
    """The image, the sources that were found, and what is left without them."""

    def __init__(self, field: Field, model: PatchModel):
        self.field, self.model = field, model
        self.half = patch_half(field.fwhm_px)
        self.fits: list[SourceFit] = []
        self.images: list[np.ndarray] = []  # of the sources in the field
        self.model_errors: list[np.ndarray] = []  # of these
        self.known: dict[tuple[int, int], LocalModel] = {}
        self.err = np.asarray(field.err, dtype=np.float64)
        self.left = np.asarray(field.image, dtype=np.float64)
        self.weight = self._weight_without(None)

    @cached_property
    def filter(self) -> MatchedFilter:
        """The filter, whose models take most of the time."""
        field = self.field
        return MatchedFilter(self.model.rough(), self.weight.shape, field.star, field.fwhm_px)

    @cached_property
    def scanned(self) -> FilteredImage:
        """What is left in the end."""
        return self.scan()

    @property
    def places(self) -> list[tuple[float, float]]:
        return [(fit.x, fit.y) for fit in self.fits]

    def scan(self) -> FilteredImage:
        return self.filter(self.left, self.weight, self.places)

    def brightest(self, maps: FilteredImage, threshold: float) -> list[tuple[float, float]]:
        """Return the place above the threshold with the most flux for its pixels' noise.

        And others, brightest first, that are so far from it and each other and so bright that they
        are not what these have left around.
        """
        rows, columns = np.indices(maps.formal.shape)
        left = np.where(maps.significance >= threshold, maps.formal, -np.inf)
        limit, places = TOGETHER * left.max(), []
        while left.max() > max(limit, 0):
            y, x = np.unravel_index(np.argmax(left), left.shape)
            places.append((float(x), float(y)))
            left[np.hypot(columns - x, rows - y) < FAR * self.field.fwhm_px] = -np.inf
        return places

    def add(self, place: tuple[float, float], reach_px: float | None = None) -> bool:
        """Fit a source and subtract it; False where one is already there."""
        reach = self.field.fwhm_px if reach_px is None else reach_px
        fit = fit_source(self.model, self.left, self.weight, place, self.half, reach, self.known)
        if any(math.dist((fit.x, fit.y), p) < 0.5 * self.field.fwhm_px for p in self.places):
            return False
        self.fits.append(fit)
        self.images.append(self._image(fit))
        self.model_errors.append(_model_error(self.images[-1]))
        self._subtract()
        return True

    def refine(self) -> None:
        """Fit every source again to the image without the others."""
        if len(self.fits) < 2:
            return
        if not self.model.linear:
            self._refine_together()
            return
        for k, fit in enumerate(self.fits):
            alone = self.left + self.images[k]
            weight = self._weight_without(k)
            place = fit.x, fit.y
            again = fit_source(self.model, alone, weight, place, self.half, 1.0, self.known)
            if again.converged:
                self.fits[k], self.images[k] = again, self._image(again)
                self.model_errors[k] = _model_error(self.images[k])
                self._subtract()

    def _refine_together(self) -> None:
        """Fit all sources at once, where they are in the references and change these together."""
        image = np.asarray(self.field.image, dtype=np.float64)
        weights = [self._weight_without(k) for k in range(len(self.fits))]
        self.fits, self.left = fit_together(
            cast(TogetherModel, self.model), image, weights, self.fits, self.half
        )
        self.images = [self._image(fit) for fit in self.fits]
        self.model_errors = [_model_error(image) for image in self.images]
        self.weight = self._weight_without(None)

    def _image(self, fit: SourceFit) -> np.ndarray:
        shape = self.left.shape
        return source_image(self.model, (fit.x, fit.y), fit.flux, shape)

    def _subtract(self) -> None:
        self.left = np.asarray(self.field.image, dtype=np.float64) - sum(self.images)
        self.weight = self._weight_without(None)

    def _weight_without(self, index: int | None) -> np.ndarray:
        """Return inverse variances with the model errors of all sources but one."""
        variance = self.err**2
        for k, error in enumerate(self.model_errors):
            if k != index:
                variance = variance + error**2
        with np.errstate(divide="ignore"):
            return np.where(variance > 0, 1.0 / variance, 0.0)  # 0 for NaN, too

    def measured(self, k: int) -> Candidate:
        """Measure the noise about a source in the image that is left of all."""
        fit, field = self.fits[k], self.field
        others = [p for j, p in enumerate(self.places) if j != k]
        noise = AnnulusNoise.measure(
            self.left, self.err, (fit.x, fit.y), field.star, field.fwhm_px, self.half, others
        )
        covariance = noise.covariance_of(fit.estimator)
        error = math.sqrt(covariance[2, 2])
        snr = fit.flux / error if error > 0 else math.nan
        image = fit.flux * fit.local.image(fit.offset)
        chi2 = fit.chi2 / max(noise.scale() ** 2, 1e-300)
        found = Candidate(
            *(fit.x, fit.y, fit.flux, covariance, snr, float(significance(snr, noise.n)), noise.n),
            *(float(image.max()), chi2),
        )
        return replace(found, caveat=self._caveat(found, k))

    def spread_out(self, candidate: Candidate, place: tuple[float, float]) -> np.ndarray:
        """Return the covariance (3, 3) of the last source with all places that it may be at."""
        last = len(self.fits) - 1
        alone = self.left + self.images[last]
        snr = self.filter(alone, self._weight_without(last), self.places[:last]).snr
        axes = [np.arange(n) for n in snr.shape]
        y, x = np.meshgrid(*axes, indexing="ij")
        near = np.hypot(x - place[0], y - place[1]) <= self.field.fwhm_px
        near &= np.isfinite(snr)
        weight = np.exp(0.5 * (np.clip(snr[near], 0, None) ** 2 - max(candidate.snr, 0.0) ** 2))
        away = np.stack([x[near] - candidate.x, y[near] - candidate.y])
        return widened(candidate.covariance, (weight * away) @ away.T / max(weight.sum(), 1e-300))

    def _caveat(self, candidate: Candidate, k: int) -> str:
        at = round(candidate.y), round(candidate.x)
        if not (0 <= at[0] < self.left.shape[0] and 0 <= at[1] < self.left.shape[1]):
            return "outside the image"
        if not self.fits[k].converged:
            return "the position of the fit did not converge"
        brighter = [
            error[at]
            for fit, error in zip(self.fits, self.model_errors, strict=True)
            if fit.flux > self.fits[k].flux
        ]
        if brighter and candidate.peak < FAINTER * max(brighter):
            return "may be what is left of a brighter source"
        if self._in_extended_light(candidate, k):
            return IN_EXTENDED_LIGHT
        unlike = UNLIKE * (1 + (MODEL_ERROR * candidate.snr) ** 2 / self.half**2)
        return "unlike a point source" if candidate.chi2 > unlike else ""

    def _in_extended_light(self, candidate: Candidate, k: int) -> bool:
        """Whether places beside a source have as much light, or it is on a ridge of light."""
        columns, rows = (axis.ravel() for axis in np.indices(self.left.shape)[::-1])
        distance = np.hypot(columns - candidate.x, rows - candidate.y) / self.field.fwhm_px
        near = (distance >= APART) & (distance <= BESIDE)
        fainter = self._light_of(j for j, f in enumerate(self.fits) if f.flux < self.fits[k].flux)
        fluxes = self.filter(self.left + fainter, self.weight, self.places).flux
        pulls = (fluxes / self.scanned.flux_err).ravel()[near]
        pulls = pulls[np.isfinite(pulls)]
        raised = math.sqrt(np.mean(pulls**2)) if pulls.size else 0.0
        if raised > RAISED and candidate.snr < THRESHOLD * raised:
            return True
        return self._on_ridge(candidate, k, rows[near], columns[near])

    def _on_ridge(
        self, candidate: Candidate, k: int, rows: np.ndarray, columns: np.ndarray
    ) -> bool:
        """Whether there is light on two opposite sides of a source, as along an edge-on disk."""
        from scipy.ndimage import map_coordinates

        others = self._light_of(j for j in range(len(self.fits)) if j != k)
        fluxes = self.filter(self.left + others, self.weight, self.places).flux
        share = np.minimum(
            fluxes / (RIDGE * candidate.flux), fluxes / (RIDGE_SIGMA * self.scanned.flux_err)
        )
        share = np.nan_to_num(share, nan=0.0, posinf=0.0, neginf=0.0)
        opposite = np.stack([2 * candidate.y - rows, 2 * candidate.x - columns])
        there = map_coordinates(share, opposite, order=1, cval=0.0)
        return bool((np.minimum(share[rows, columns], there) > 1).any())

    def _light_of(self, which: Iterable[int]) -> np.ndarray:
        return sum((self.images[j] for j in which), np.zeros(self.left.shape))


def _model_error(image: np.ndarray) -> np.ndarray:
    """Return the error of a source's model, MJy/sr: 5 % of the brightest pixel nearby."""
    from scipy.ndimage import maximum_filter

    return MODEL_ERROR * maximum_filter(np.abs(image), 3)
