"""Contrast: how faint a source can be and be detected, as a curve and as a map."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.analysis.detection import psf_fwhm
from gpucoron.analysis.noise import Source, bright_sources, detection_factor, ring_noise
from gpucoron.core.display import ArrayFields
from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.apertures import aperture_sums

if TYPE_CHECKING:
    from astropy.table import QTable

    from gpucoron.analysis.forward import ForwardModel
    from gpucoron.analysis.record import Record
    from gpucoron.io.wcs import OutputWcs

__all__ = ["Contrast", "measure_contrast"]

log = logging.getLogger("gpucoron")

SIGMA = 5.0
#: Separations at which sources are injected, FWHM, and the angles at each.
_RADII = (0.7, 1, 1.5, 2, 2.7, 3.5, 4.5, 6, 8, 11, 15, 20, 27, 36, 50, 70, 100)
_ANGLES = 8
CONVENTION = (
    "t.ppf(Phi(sigma), n-1) sqrt(1+1/n) std(ddof=1) / throughput / star; n apertures of one FWHM "
    "(Mawet et al. 2014)"
)


@dataclass(eq=False, repr=False)
class Contrast(ArrayFields):
    """Limits of detection about a star.

    Attributes
    ----------
    separation_px, separation : (n,) float64
        In pixels of the combined image and in arcsec.
    truncations : tuple of int
        Numbers of KL vectors, K of them.
    count : (K, n) int
        Apertures in which the noise was measured.
    noise : (K, n) float64
        Standard deviation of the sums in these, MJy/sr times pixels.
    throughput : (K, n) float64
        What the mask and KLIP leave of the light in an aperture on a source, relative to the same
        source without the mask and KLIP; mean over position angles.
    limit : (K, n) float64, MJy/sr times pixels of an exposure
        Light of the faintest source that is detected.
    best : (n,) int
        The number of KL vectors with the lowest limit.
    map_limit : (ny, nx) float64
        `limit` for a source at each pixel of the combined image, with the best number there; NaN
        where there are no data.
    jansky : float
        Jy of a source of 1 MJy/sr times pixels.
    peak : float
        Peak of the PSF without the mask, of a source of flux 1.
    star_jy, star_jy_error : float or None
        Flux of the star.
    sigma : float
    fwhm_px : float
        In pixels of the combined image.
    calibrated : bool
        Whether throughput is known; where it is not, losses are not in the limits.
    assumptions : dict of str to str
        Everything that was assumed, in words.
    """

    separation_px: np.ndarray
    separation: np.ndarray
    truncations: tuple[int, ...]
    count: np.ndarray
    noise: np.ndarray
    throughput: np.ndarray
    limit: np.ndarray
    best: np.ndarray
    map_limit: np.ndarray
    jansky: float
    peak: float
    star_jy: float | None
    star_jy_error: float | None
    sigma: float
    fwhm_px: float
    calibrated: bool
    assumptions: dict[str, str] = field(default_factory=dict)

    @property
    def best_limit(self) -> np.ndarray:
        """`limit` (n,) with the best number of KL vectors at each separation."""
        order = [self.truncations.index(k) for k in self.best.tolist()]
        return self.limit[order, np.arange(len(order))]

    @property
    def contrast(self) -> np.ndarray | None:
        """Limits (K, n) relative to the star; None where its flux is not known."""
        return None if self.star_jy is None else self.limit * self.jansky / self.star_jy

    @property
    def map(self) -> np.ndarray:
        """The map (ny, nx) in units of the star, or else of MJy/sr at the peak of a source."""
        if self.star_jy is None:
            return self.map_limit * self.peak
        return self.map_limit * self.jansky / self.star_jy

    @property
    def unit(self) -> str:
        """Unit of `map`: "" for a contrast, else "MJy/sr"."""
        return "MJy/sr" if self.star_jy is None else ""

    def table(self) -> QTable:
        """Return the curve as a table: one row for each separation, columns with units.

        `contrast` where the star's flux is known, `flux` (Jy) and `peak` (MJy/sr, of the PSF
        without the mask) are the limits with the best number of KL vectors, `kl` that number. With
        several numbers there are columns for each, such as ``contrast_kl005``.
        """
        from astropy import units as u
        from astropy.table import QTable

        table = QTable(meta={"sigma": self.sigma, **self.assumptions})
        table["separation"] = self.separation * u.arcsec
        table["separation_px"] = self.separation_px * u.pix
        self._add_limits(table, "", self.best_limit)
        table["kl"] = self.best
        order = [self.truncations.index(k) for k in self.best.tolist()]
        at = np.arange(len(order))
        table["throughput"] = self.throughput[order, at]
        table["noise"] = self.noise[order, at] * u.MJy / u.sr
        table["apertures"] = self.count[order, at]
        if len(self.truncations) > 1:
            for k, limit, share in zip(self.truncations, self.limit, self.throughput, strict=True):
                self._add_limits(table, f"_kl{k:03d}", limit)
                table[f"throughput_kl{k:03d}"] = share
        return table

    def _add_limits(self, table: QTable, tag: str, limit: np.ndarray) -> None:
        from astropy import units as u

        if self.star_jy is not None:
            table[f"contrast{tag}"] = limit * self.jansky / self.star_jy
        if self.calibrated:
            table[f"flux{tag}"] = limit * self.jansky * u.Jy
        table[f"peak{tag}"] = limit * self.peak * u.MJy / u.sr


def measure_contrast(
    record: Record,
    *,
    known: Sequence[tuple[float, float, float]] = (),
    sources: Sequence[Source] = (),
    find_sources: bool = False,
    sigma: float = SIGMA,
    step_fwhm: float = 0.5,
) -> Contrast:
    """Measure the contrast curve and map of a product.

    Parameters
    ----------
    record : Record
        With its combined images, the star's position and, for calibrated limits, the forward model.
    known : sequence of (east, north, radius), arcsec
        Sources or disks that do not count as noise, offsets from the star.
    sources : sequence of Source
        More of them, in pixels of the combined image.
    find_sources : bool
        Sources that stand out of the image of most KL vectors
        (`gpucoron.analysis.noise.bright_sources`) do not count as noise either.
    sigma : float
        Gaussian sigmas whose false-alarm probability is wanted.
    step_fwhm : float
        Distance of the curve's separations, from 1 FWHM on.

    Returns
    -------
    Contrast

    Raises
    ------
    InputError
        There is no combined image, or the star's position is not known.
    ParameterError
        `sigma` or `step_fwhm` that is not above 0.

    Notes
    -----
    The limit at a separation is ``tau s / a``: s is the standard deviation of sums in apertures of
    one FWHM on the circle (`gpucoron.analysis.noise.ring_noise`), tau the factor of
    `detection_factor`, and a the sum in such an aperture on a source of flux 1, from the forward
    model, mean over position angles. Sources are injected on a polar grid whose steps grow with
    the separation; between its nodes a, divided by the same sum before PSF subtraction, is
    interpolated linearly, and multiplied by that sum at the place, which varies faster: behind a
    phase mask light leaves the aperture near the edges.

    References
    ----------
    Mawet et al. 2014, ApJ 792, 97.
    """
    if not (sigma > 0 and step_fwhm > 0):
        raise ParameterError(f"sigma is {sigma}, step_fwhm {step_fwhm}, expected numbers above 0")
    wcs, star = record.wcs, record.star
    if wcs is None or not record.images:
        raise InputError("contrast: there is no combined image, expected a run with resample")
    if star is None:
        raise InputError("contrast: the star's position is not known, expected --star X,Y")
    truncations = tuple(record.images)
    masked = [*_as_sources(known, wcs, star.radec), *sources]
    response = _Response.of(record, wcs, truncations)
    if find_sources:
        most = record.images[max(truncations)]
        masked += bright_sources(most, star.pixel, response.fwhm_px)
    radii = _separations(record.images[truncations[0]], star.pixel, response.fwhm_px, step_fwhm)
    rings = [
        ring_noise(record.images[k], star.pixel, response.fwhm_px, radii, masked)
        for k in truncations
    ]
    noise, count = np.array([r.noise for r in rings]), np.array([r.apertures for r in rings])
    sums = response.on_rings(radii)
    with np.errstate(invalid="ignore", divide="ignore"):
        limit = detection_factor(count, sigma) * noise / np.where(sums > 0, sums, np.nan)
    seen = np.isfinite(limit).any(axis=0)
    radii, noise, count, sums, limit = (a[..., seen] for a in (radii, noise, count, sums, limit))
    if not radii.size:
        raise InputError(
            "contrast: no ring about the star has two apertures with data, expected one"
        )
    best = np.nanargmin(limit, axis=0)
    fraction = detection_factor(count, sigma) * noise
    star_jy, star_error, about_star = _star_flux(record)
    if star_jy is None:
        log.warning(
            "contrast: the star's flux is not known: limits are %sMJy/sr at a source's peak",
            "Jy and " if response.calibrated else "",
        )
    return Contrast(
        separation_px=radii,
        separation=radii * wcs.pixel_scale,
        truncations=truncations,
        count=count,
        noise=noise,
        throughput=sums / response.alone,
        limit=limit,
        best=np.array(truncations)[best],
        map_limit=_map(record, star.pixel, radii, fraction, best, response),
        jansky=response.jansky,
        peak=response.peak,
        star_jy=star_jy if response.calibrated else None,
        star_jy_error=star_error,
        sigma=float(sigma),
        fwhm_px=response.fwhm_px,
        calibrated=response.calibrated,
        assumptions={
            "convention": CONVENTION,
            "psf": response.source,
            "star": about_star,
            "star position": f"{star.position.source}, combined by {star.center}",
            "masked": _described(masked, star.pixel, wcs.pixel_scale),
        },
    )


def _as_sources(known, wcs: OutputWcs, star: tuple[float, float]) -> list[Source]:
    from gpucoron.analysis.forward import sky_of

    if not len(known):
        return []
    regions = np.asarray(known, dtype=np.float64)
    x, y = wcs.sky_to_pixel(*sky_of(star, regions[:, :2]))
    return [Source(*v) for v in zip(x, y, regions[:, 2] / wcs.pixel_scale, strict=True)]


def _described(masked: Sequence[Source], star: tuple[float, float], scale: float) -> str:
    """Return separations and radii of the sources that do not count as noise."""
    texts = [
        f"{scale * math.hypot(s.x - star[0], s.y - star[1]):.2f} +- {scale * s.radius:.2f}"
        for s in masked
    ]
    return f"arcsec from the star: {', '.join(texts)}" if texts else "nothing"


def _star_flux(record: Record) -> tuple[float | None, float | None, str]:
    flux = record.star_flux
    jy = getattr(flux, "jy", None)
    if jy is None or not (math.isfinite(jy) and jy > 0):
        return None, None, "flux not known"
    error = getattr(flux, "error_jy", None)
    if doubt := getattr(flux, "doubt", ""):
        log.warning("contrast: %s", doubt)
    return float(jy), error, f"{jy:.6g} Jy, {getattr(flux, 'source', 'given')}"


def _separations(image, star, fwhm_px: float, step_fwhm: float) -> np.ndarray:
    """Return the separations from one FWHM to the farthest pixel with data."""
    y, x = np.nonzero(np.isfinite(image))
    if not len(y):
        return np.empty(0)
    farthest = float(np.hypot(x - star[0], y - star[1]).max())
    return np.arange(fwhm_px, max(farthest, fwhm_px), step_fwhm * fwhm_px)


class _Response:
    """Aperture sums on sources of flux 1: what KLIP leaves, at polar nodes, times the PSF's."""

    def __init__(self, forward: ForwardModel, truncations: Sequence[int], farthest: float):
        self._forward, self.calibrated = forward, True
        self.fwhm_px, self.jansky = forward.fwhm_px, forward.jansky
        self.source = forward.psf_source
        ratio = forward.wcs.pixel_scale_ratio
        plain = np.asarray(forward.psf.without_mask, dtype=np.float64)
        middle = (len(plain) // 2, len(plain) // 2)
        self.peak = float(plain.max())
        self.alone = float(aperture_sums(plain, [middle], self.fwhm_px * ratio / 2)[0]) / ratio**2
        inner = np.array(_RADII) * self.fwhm_px
        self._radii = inner[: int(np.searchsorted(inner, farthest)) + 1]
        self._angles = np.arange(_ANGLES) * 2 * np.pi / _ANGLES
        self._measure(truncations)

    def _measure(self, truncations: Sequence[int]) -> None:
        """Measure sums over those before KLIP at the nodes: (K, radii, angles)."""
        forward, shape = self._forward, (len(self._radii), _ANGLES)
        radius, angle = (g.ravel() for g in np.meshgrid(self._radii, self._angles, indexing="ij"))
        scale = forward.wcs.pixel_scale
        offsets = scale * np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)
        half = math.ceil(self.fwhm_px / 2 + 2)
        core = forward.core(offsets).reshape(shape)
        ratios = []
        for patches in forward.with_psf(forward.coarse_psf).sweep(
            offsets, truncations, 2 * half + 1
        ):
            sums = _sums_on(patches, self.fwhm_px / 2).reshape(shape)
            with np.errstate(invalid="ignore", divide="ignore"):
                ratios.append(_without_gaps(sums / core))
        self._ratios = np.array(ratios)

    @classmethod
    def of(cls, record: Record, wcs: OutputWcs, truncations: Sequence[int]) -> Any:
        """Return that of a run; a Gaussian without losses where there is no forward model."""
        if record.forward is None:
            log.warning(
                "contrast: there is no forward model of a source, so limits are in MJy/sr and lack "
                "what mask and KLIP take of its light"
            )
            return _Gaussian(record, wcs)
        return cls(record.forward, truncations, math.hypot(*wcs.shape))

    def on_rings(self, radii: np.ndarray) -> np.ndarray:
        """Return the mean over angles of the sums at separations: (K, n)."""
        angles = np.arange(16 * _ANGLES) * np.pi / 8 / _ANGLES
        radius, angle = np.meshgrid(radii, angles, indexing="ij")
        return np.nanmean(self.at(radius, angle), axis=2)

    def at(self, radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
        """Return the sums (K, ...) at separations, px, and position angles, radians."""
        from scipy.ndimage import map_coordinates

        row = np.interp(radius, self._radii, np.arange(len(self._radii)))
        column = (angle / (2 * np.pi)) % 1.0 * _ANGLES
        around = np.concatenate([self._ratios, self._ratios[:, :, :1]], axis=2)
        ratio = np.array([map_coordinates(a, [row, column], order=1) for a in around])
        scale = self._forward.wcs.pixel_scale
        offsets = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=-1) * scale
        return ratio * self._forward.core(offsets.reshape(-1, 2)).reshape(radius.shape)

    def on_map(self, star: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
        """Return the sums (K, ny, nx) at all pixels."""
        y, x = (g.ravel() for g in np.indices(shape, dtype=np.float64))
        east, north = self._forward.offsets(np.stack([y, x], axis=1)).T
        radius = np.hypot(x - star[0], y - star[1])
        found = self.at(radius, np.arctan2(east, north))
        return found.reshape(len(found), *shape)


class _Gaussian:
    """A source as a Gaussian of the PSF's width, without losses."""

    calibrated, source = False, "a Gaussian of the filter's FWHM"

    def __init__(self, record: Record, wcs: OutputWcs):
        science = next(e for e in record.exposures.values() if e.exptype == "science")
        self.fwhm_px = psf_fwhm(science.meta.filter or "") / wcs.pixel_scale
        self.jansky, self.alone = math.nan, 0.5 / wcs.pixel_scale_ratio**2
        fwhm = self.fwhm_px * wcs.pixel_scale_ratio
        self.peak = 4 * math.log(2) / (math.pi * fwhm**2)

    def on_rings(self, radii: np.ndarray) -> np.ndarray:
        """Return the share of the light in an aperture, for one number of KL vectors."""
        return np.full((1, len(radii)), self.alone)

    def on_map(self, star: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
        """Return the same for all pixels."""
        return np.full((1, *shape), self.alone)


def _sums_on(patches: Any, radius: float) -> np.ndarray:
    """Return the sum in an aperture on each source of patches."""
    images, places = patches.images, patches.places - patches.corners
    m, side = len(images), images.shape[1]
    sheet = np.full((m * (side + 2), side), np.nan)
    for k, image in enumerate(images):
        sheet[k * (side + 2) : k * (side + 2) + side] = image
    centres = np.stack([places[:, 1], places[:, 0] + np.arange(m) * (side + 2)], axis=1)
    return aperture_sums(sheet, centres, radius)


def _without_gaps(values: np.ndarray) -> np.ndarray:
    """Fill angles without data with the mean of their radius, radii without with the nearest."""
    values = np.where(np.isfinite(values), values, np.nan)
    known = np.isfinite(values).any(axis=1)
    if not known.any():
        return values
    means = np.nanmean(values[known], axis=1)
    numbers = np.flatnonzero(known)
    rows = np.interp(np.arange(len(values)), numbers, means)
    return np.where(np.isfinite(values), values, rows[:, None])


def _map(record, star, radii, fraction, best, response) -> np.ndarray:
    """Return the limit at every pixel, for the best number of KL vectors at its separation."""
    image = next(iter(record.images.values()))
    y, x = np.indices(image.shape)
    distance = np.hypot(x - star[0], y - star[1])
    nearest = np.rint(np.interp(distance, radii, np.arange(len(radii)))).astype(int)
    chosen = best[nearest]
    sums = response.on_map(star, image.shape)
    out = np.full(image.shape, np.nan)
    for k, row in enumerate(fraction):
        known = np.isfinite(row)
        if not known.any():
            continue
        noise = np.interp(distance, radii[known], row[known])
        own = sums[min(k, len(sums) - 1)]
        with np.errstate(invalid="ignore", divide="ignore"):
            out = np.where(chosen == k, noise / np.where(own > 0, own, np.nan), out)
    inside = (distance >= radii[0] - 0.5) & (distance <= radii[-1] + 0.5)
    return np.where(inside & np.isfinite(image), out, np.nan)
