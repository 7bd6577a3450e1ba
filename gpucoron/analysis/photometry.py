"""Photometry and astrometry of point sources in a run's combined image, as a table."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gpucoron.analysis.annulus import AnnulusNoise
from gpucoron.analysis.candidates import Candidate, Field, find_candidates, measure
from gpucoron.analysis.joint_sources import without
from gpucoron.analysis.local_model import LocalModel, cut_patch, without_background
from gpucoron.analysis.matched_filter import patch_half
from gpucoron.analysis.measure import Sky, locate_star, science_exposures, star_in_exposure
from gpucoron.analysis.point_source import source_model
from gpucoron.analysis.record import ExposureRecord, Record
from gpucoron.backend.threads import limited_to
from gpucoron.io.wcs.inverse import fast_sky_to_pixel
from gpucoron.io.wcs.tan import OutputWcs, tangent_plane

if TYPE_CHECKING:
    from astropy.table import QTable

__all__ = [
    "Candidates",
    "SkyCandidate",
    "described",
    "field_of",
    "find_known",
    "measure_at",
    "on_sky",
    "samples_on_sky",
    "search",
]

APART = 2.8  # standard deviations between fluxes of one source, where they differ by a factor of 2
UNMEASURED_ARCSEC = 0.02  # error of each coordinate of a star that target acquisition placed
POINTING_ARCSEC = (
    0.07  # JWST's pointing along each axis: 0.10 radial (JDox, JWST Pointing Accuracy)
)
DISTORTION = 1e-4  # of the separation along each axis: some mas over the field of a camera
MODEL_FLUX = 0.01  # of the flux: what the wavefront does to a PSF that does not say it
ROLLS_FLUX = 0.01  # instead where rolls are among the references: rms of six planets on two sets
ROLLS_ALONE_FLUX = 0.03  # where there are no others: 1 to 4 % low, six bright planets of one set
NO_MODEL = "flux of a Gaussian, without losses by KLIP and coronagraph: no forward model"
AB_ZERO_POINT_JY = 3630.78


@dataclass
class SkyCandidate:
    """A point source: its measurement in the combined image, and what that means on the sky.

    Errors are one standard deviation, of noise, of the star's position and of the distortion.
    """

    candidate: Candidate
    separation: float  # from the star, arcsec
    separation_err: float
    angle: float  # position angle, from north through east, degrees
    angle_err: float
    offset: tuple[float, float]  # east and north of the star, arcsec
    offset_err: tuple[float, float]
    ra: float  # degrees
    dec: float
    flux_jy: float
    flux_jy_err: float
    contrast: float  # flux over the star's; NaN where that is not known
    contrast_err: float
    #: SNR in the combined image of each truncation.
    by_truncation: dict[int, float] = field(default_factory=dict)
    #: SNR in each exposure; NaN outside its field of view.
    by_exposure: dict[str, float] = field(default_factory=dict)
    #: Flux and its noise in each exposure that covers it, as `Candidate.flux`.
    fluxes: list[tuple[float, float]] = field(default_factory=list)
    caveat: str = ""  # why it may not be a point source on the sky, or its flux not what it says

    @property
    def doubtful(self) -> bool:
        """Whether there is reason to doubt that it is a point source on the sky."""
        return bool(self.caveat) and self.caveat != NO_MODEL


class Candidates(list[SkyCandidate]):
    """Candidates, best first."""

    def table(self, meta: dict[str, Any] | None = None) -> QTable:
        """Return them as an astropy table with units, which ``write("x.ecsv")`` saves.

        `meta` is added to what the table's metadata say. Columns: `separation`, `pa`, `dra` and
        `ddec` (east and north of the star), `ra`, `dec`, `flux`, `peak` (brightest pixel in the
        combined image), `contrast`, `delta_mag`, `ab_mag`, each but `peak` with its error
        (``_err``); `snr`, `significance` (Gaussian sigmas), `x`, `y` (pixels from 0), `caveat`.
        """
        import astropy.units as u
        from astropy.table import QTable

        columns = {
            name: ([getter(c) for c in self], unit) for name, (getter, unit) in _columns(u).items()
        }
        table = QTable(
            {
                name: np.array(values, float) * unit
                if unit is not None
                else np.array(values, float)
                for name, (values, unit) in columns.items()
            }
        )
        table["caveat"] = np.array([c.caveat for c in self], dtype=str)
        table.meta.update(
            {
                "errors": "one standard deviation: noise, the star's position, distortion",
                "ra_err, dec_err": f"with {POINTING_ARCSEC} arcsec for the telescope's pointing",
                "flux_err": "with an error of the model, without that of the absolute calibration",
                **(meta or {}),
            }
        )
        return table


def _columns(u: Any) -> dict[str, tuple[Any, Any]]:
    """Return the table's columns: what gives the value of a candidate, and the unit."""

    def magnitude(ratio: float) -> float:
        return -2.5 * math.log10(ratio) if ratio > 0 else math.nan

    def of_ratio(value: float, error: float) -> float:
        return 2.5 / math.log(10) * error / value if value > 0 else math.nan

    return {
        "separation": (lambda c: c.separation, u.arcsec),
        "separation_err": (lambda c: c.separation_err, u.arcsec),
        "pa": (lambda c: c.angle, u.deg),
        "pa_err": (lambda c: c.angle_err, u.deg),
        "dra": (lambda c: c.offset[0], u.arcsec),
        "dra_err": (lambda c: c.offset_err[0], u.arcsec),
        "ddec": (lambda c: c.offset[1], u.arcsec),
        "ddec_err": (lambda c: c.offset_err[1], u.arcsec),
        "ra": (lambda c: c.ra, u.deg),
        "ra_err": (lambda c: math.hypot(c.offset_err[0], POINTING_ARCSEC), u.arcsec),
        "dec": (lambda c: c.dec, u.deg),
        "dec_err": (lambda c: math.hypot(c.offset_err[1], POINTING_ARCSEC), u.arcsec),
        "flux": (lambda c: c.flux_jy, u.Jy),
        "flux_err": (lambda c: c.flux_jy_err, u.Jy),
        "peak": (lambda c: c.candidate.peak, u.MJy / u.sr),
        "contrast": (lambda c: c.contrast, u.dimensionless_unscaled),
        "contrast_err": (lambda c: c.contrast_err, u.dimensionless_unscaled),
        "delta_mag": (lambda c: magnitude(c.contrast), u.mag),
        "delta_mag_err": (lambda c: of_ratio(c.contrast, c.contrast_err), u.mag),
        "ab_mag": (lambda c: magnitude(c.flux_jy / AB_ZERO_POINT_JY), u.ABmag),
        "ab_mag_err": (lambda c: of_ratio(c.flux_jy, c.flux_jy_err), u.mag),
        "snr": (lambda c: c.candidate.snr, None),
        "significance": (lambda c: c.candidate.significance, None),
        "x": (lambda c: c.candidate.x, u.pix),
        "y": (lambda c: c.candidate.y, u.pix),
    }


def described(record: Record, sky: Sky, truncate: int) -> dict[str, Any]:
    """Return what a table says of where its numbers are from."""
    star, flux = record.star, record.star_flux
    return {
        "asn": record.asn,
        "truncate": truncate,
        "star_ra": sky.radec[0],
        "star_dec": sky.radec[1],
        "star_position": "given" if sky.given else star.position.source if star else "wcs",
        "star_flux_jy": None if flux is None else flux.jy,
        "star_flux_source": "not known" if flux is None else flux.source,
        **({} if flux is None or not flux.doubt else {"star_flux_doubt": flux.doubt}),
        "forward_model": record.forward is not None,
        "psf": None if record.forward is None else record.forward.psf_source,
    }


def field_of(record: Record, sky: Sky, truncate: int) -> Field:
    """Return the combined image of a truncation, with errors, star and FWHM.

    Where it has no errors (another package's rule, the preset's) pixels count alike.
    """
    image, err = record.images[truncate], record.errors.get(truncate)
    if err is None or not (np.isfinite(err) & (err > 0)).any():
        err = np.where(np.isfinite(image), 1.0, np.nan)
    return Field(image, err, sky.star, sky.fwhm_px)


def search(record: Record, sky: Sky, truncate: int) -> tuple[np.ndarray, Candidates]:
    """Search the combined image of one truncation for point sources.

    Returns
    -------
    map : (ny, nx) array
        Significance of a point source at each pixel, Gaussian sigmas.
    candidates : Candidates
        Those without caveat first, each part by decreasing significance.

    Notes
    -----
    See `gpucoron.analysis.candidates.find_candidates`. A source on the sky is in every exposure, so
    a candidate gets a caveat if its flux in some exposure is less than half of that in another,
    and lower by more than 2.8 standard deviations; if the exposures by themselves hardly show it;
    or if only one of several exposures covers it. The record keeps the result.
    """
    seen = (record.images[truncate], *(e.after.get(truncate) for e in science_exposures(record)))
    key = (truncate, sky)
    if key in record.searched and all(map(operator.is_, seen, record.searched[key][0])):
        return record.searched[key][1]
    with limited_to(1):  # the arrays are small, and threads would wait for each other
        model = source_model(record, truncate, sky.fwhm_px)
        found = find_candidates(field_of(record, sky, truncate), model)
        candidates = Candidates(
            on_sky(record, sky, truncate, c, [d for d in found.candidates if d is not c])
            for c in found.candidates
        )
    candidates.sort(key=lambda c: c.doubtful)
    record.searched[key] = seen, (found.significance, candidates)
    return found.significance, candidates


def measure_at(
    record: Record,
    sky: Sky,
    truncate: int,
    place: tuple[float, float],
    others: Sequence[Candidate] = (),
) -> SkyCandidate:
    """Measure a source near x, y (pixels from 0), within one FWHM, however faint it is."""
    model = source_model(record, truncate, sky.fwhm_px)
    found = measure(field_of(record, sky, truncate), model, place, others)
    return on_sky(record, sky, truncate, found, others)


def find_known(
    record: Record, known: Sequence[tuple[float, float]], star: tuple[float, float] | None = None
) -> list[SkyCandidate]:
    """Measure sources with known ra, dec (degrees) in the combined image of most KL vectors.

    A source within one FWHM of a candidate of `search` is that candidate, so that there is one
    number for it; others are measured near the known place. `star` is as for `locate_star`; empty
    without a combined image.
    """
    sky = locate_star(record, star)
    if sky is None or not record.images:
        return []
    truncate = max(record.images)
    listed = search(record, sky, truncate)[1]
    found = []
    for ra, dec in known:
        x, y = map(float, cast(OutputWcs, record.wcs).sky_to_pixel(ra, dec))
        apart = [math.dist((c.candidate.x, c.candidate.y), (x, y)) for c in listed]
        if apart and min(apart) <= sky.fwhm_px:
            found.append(listed[int(np.argmin(apart))])
        else:
            others = [c.candidate for c in listed]
            found.append(measure_at(record, sky, truncate, (x, y), others))
    return found


def on_sky(
    record: Record, sky: Sky, truncate: int, found: Candidate, others: Sequence[Candidate]
) -> SkyCandidate:
    """Turn a measurement in the combined image into one on the sky."""
    wcs = cast(OutputWcs, record.wcs)
    model = source_model(record, truncate, sky.fwhm_px)
    ra, dec = (float(v) for v in wcs.pixel_to_sky(found.x, found.y))
    east, north = (3600 * float(v) for v in tangent_plane(ra, dec, *sky.radec))
    separation = math.hypot(east, north)
    covariance = _offset_covariance(record, sky, found, separation)
    radial = np.array([east, north]) / max(separation, 1e-9)
    across = np.array([-radial[1], radial[0]])
    flux = found.flux * model.jansky
    flux_err = math.hypot(found.flux_err * model.jansky, _model_error(record) * flux)
    star = record.star_flux
    contrast = flux / star.jy if star is not None else math.nan
    entry = SkyCandidate(
        found,
        separation,
        float(math.sqrt(radial @ covariance @ radial)),
        math.degrees(math.atan2(east, north)) % 360,
        math.degrees(float(math.sqrt(across @ covariance @ across)) / max(separation, 1e-9)),
        (east, north),
        (float(math.sqrt(covariance[0, 0])), float(math.sqrt(covariance[1, 1]))),
        *(ra, dec, flux, flux_err, contrast),
        _contrast_error(contrast, flux, flux_err, star),
    )
    for other in record.images:
        entry.by_truncation[other] = (
            found.snr if other == truncate else _snr_at(record, sky, other, found, others)
        )
    _measure_exposures(record, sky, truncate, entry, others)
    entry.caveat = found.caveat or _caveat(entry) or ("" if model.exact else NO_MODEL)
    return entry


def _model_error(record: Record) -> float:
    """Return the relative error of fluxes by the forward model."""
    forward = record.forward
    if forward is None:
        return MODEL_FLUX
    of_psf = getattr(forward.psf, "flux_error", MODEL_FLUX)
    if forward.linear:
        return of_psf
    alone = any(e.klip.rolls_alone for e in forward.exposures)
    return max(of_psf, ROLLS_ALONE_FLUX if alone else ROLLS_FLUX)


def samples_on_sky(
    record: Record, sky: Sky, truncate: int, samples: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Turn samples (n, 3) of x, y and flux into offsets, mas, and flux or contrast; with labels."""
    x, y, flux = samples.T
    ra, dec = cast(OutputWcs, record.wcs).pixel_to_sky(x, y)
    east, north = (3.6e6 * np.asarray(v) for v in tangent_plane(ra, dec, *sky.radec))
    flux = flux * source_model(record, truncate, sky.fwhm_px).jansky
    star = record.star_flux
    last = (1e6 * flux, "flux (µJy)") if star is None else (flux / star.jy, "contrast")
    labels = ["ΔRA (mas)", "ΔDec (mas)", last[1]]
    return np.stack([east, north, last[0]], axis=1), labels


def _offset_covariance(record: Record, sky: Sky, found: Candidate, separation: float) -> np.ndarray:
    """Return the covariance (2, 2) of the offset east and north of the star, arcsec^2."""
    turn = sky.arcsec_per_px * np.array([sky.east, sky.north])
    covariance = turn @ found.covariance[:2, :2] @ turn.T
    star = record.star
    if sky.given:
        of_star = np.zeros((2, 2))
    elif star is None or not all(map(math.isfinite, star.position.mean_error)):
        of_star = np.eye(2) * UNMEASURED_ARCSEC**2
    else:
        of_star = turn @ np.diag(np.square(star.position.mean_error)) @ turn.T
    return covariance + of_star + np.eye(2) * (DISTORTION * separation) ** 2


def _contrast_error(contrast: float, flux: float, flux_err: float, star: Any) -> float:
    if star is None or not flux:
        return math.nan
    of_star = star.error_jy / star.jy if math.isfinite(star.error_jy) else 0.0
    return abs(contrast) * math.hypot(flux_err / flux, of_star)


def _snr_at(
    record: Record, sky: Sky, truncate: int, found: Candidate, others: Sequence[Candidate]
) -> float:
    """Return the SNR of a source in the combined image of another truncation."""
    image, err = field_of(record, sky, truncate)[:2]
    model = source_model(record, truncate, sky.fwhm_px)
    half = patch_half(sky.fwhm_px)
    left = without(image, model, others)
    model = model.of_flux(found.flux)
    centre = round(found.x), round(found.y)
    local = LocalModel(model, centre, half)
    shape = local.image(np.array([found.x - centre[0], found.y - centre[1]])).ravel()
    return _linear_snr(left, np.asarray(err, float), shape, (found.x, found.y), sky, half, others)[
        1
    ]


def _linear_snr(image, err, shape, place, sky, half, others=(), star=None, fwhm_px=None):
    """Return flux, and its ratio to its scatter in the annulus, of a source of known image."""
    star, fwhm_px = star or sky.star, fwhm_px or sky.fwhm_px
    centre = round(place[0]), round(place[1])
    data, noise = (cut_patch(plane, centre, half).ravel() for plane in (image, err))
    good = np.isfinite(data) & (noise > 0)
    inverse = without_background(np.where(good, 1 / np.where(good, noise, 1.0) ** 2, 0.0))
    norm = float(shape @ inverse @ shape)
    if norm <= 0 or shape[good] @ shape[good] < 0.5 * (shape @ shape):
        return math.nan, math.nan
    estimator = inverse @ shape / norm
    flux = float(estimator @ np.where(good, data, 0.0))
    places = [(c.x, c.y) for c in others]
    annulus = AnnulusNoise.measure(image, err, place, star, fwhm_px, half, places)
    error = math.sqrt(float(annulus.covariance_of(estimator[None])[0, 0]))
    return flux, flux / error if error > 0 else math.nan


def _measure_exposures(
    record: Record, sky: Sky, truncate: int, entry: SkyCandidate, others: Sequence[Candidate]
) -> None:
    """Measure a source in the mean PSF-subtracted image of every exposure."""
    model = source_model(record, truncate, sky.fwhm_px)
    found = entry.candidate
    shapes = model.of_flux(found.flux).in_exposures((found.x, found.y))
    for exposure in science_exposures(record):
        star = star_in_exposure(exposure, sky.radec if sky.given else None)
        image = exposure.after.get(truncate)
        place = _place_in(exposure, entry)
        if star is None or image is None or place is None or exposure.root not in shapes:
            continue
        fwhm_px = sky.fwhm_px * sky.arcsec_per_px / star[2]
        half = patch_half(fwhm_px)
        centre = round(place[0]), round(place[1])
        shape = np.nan_to_num(cut_patch(shapes[exposure.root], centre, half)).ravel()
        err = np.where(np.isfinite(image), 1.0, np.nan)
        image = np.asarray(image, dtype=np.float64)
        flux, snr = _linear_snr(image, err, shape, place, sky, half, (), star[:2], fwhm_px)
        entry.by_exposure[exposure.root] = snr
        if math.isfinite(snr) and snr:
            entry.fluxes.append((flux, abs(flux / snr)))


def _place_in(exposure: ExposureRecord, entry: SkyCandidate) -> tuple[float, float] | None:
    """Return x, y of a source in an exposure, pixels from 0; None outside of it."""
    if exposure.wcs is None:
        return None
    to_pixel = fast_sky_to_pixel(exposure.wcs, exposure.shape[1:])
    x, y = (float(v) for v in to_pixel(entry.ra, entry.dec))
    ny, nx = exposure.shape[1:]
    inside = math.isfinite(x) and math.isfinite(y) and -0.5 < x < nx - 0.5 and -0.5 < y < ny - 0.5
    if not inside:
        entry.by_exposure[exposure.root] = math.nan
    return (x, y) if inside else None


def _caveat(entry: SkyCandidate) -> str:
    fluxes, fields = entry.fluxes, len(entry.by_exposure)
    if fields and not fluxes:
        return "at the edge of every exposure"
    if len(fluxes) == 1 < fields:
        return "covered by one exposure only"
    if fluxes:
        most, noise = max(fluxes)
        present = sum(f >= most / 2 or most - f <= APART * math.hypot(noise, n) for f, n in fluxes)
        if present < len(fluxes):
            return f"in {present} of {len(fluxes)} exposures only"
        alone = [max(f / n, 0) for f, n in fluxes]
        if max(alone) < 3 and math.hypot(*alone) < entry.candidate.snr / 2:
            return "not significant in any single exposure"
    return ""
