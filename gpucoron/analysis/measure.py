"""Measure a run's results: star position, residual profiles, reference shifts."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.analysis.detection import psf_fwhm
from gpucoron.analysis.record import ExposureRecord, Record
from gpucoron.io.wcs.tan import tangent_plane

if TYPE_CHECKING:
    from gpucoron.io.wcs import InputWcs


@dataclass(frozen=True)
class Sky:
    """Star position, sky axes and scale of a combined image.

    `star` is x, y in pixels from 0, `radec` the same in degrees; `north` and `east` are unit
    vectors in pixels (x, y); `spread_px` is the largest distance of an exposure's star position
    from their mean; `given` tells whether the caller gave the position.
    """

    star: tuple[float, float]
    radec: tuple[float, float]
    north: tuple[float, float]
    east: tuple[float, float]
    arcsec_per_px: float
    fwhm_px: float
    spread_px: float
    given: bool

    def at(self, separation: float, angle_deg: float) -> tuple[float, float]:
        """Return x, y (pixels from 0) at a separation (arcsec) and position angle (degrees)."""
        turn, r = math.radians(angle_deg), separation / self.arcsec_per_px
        (nx, ny), (ex, ey) = self.north, self.east
        across, along = r * math.sin(turn), r * math.cos(turn)
        return self.star[0] + along * nx + across * ex, self.star[1] + along * ny + across * ey


def locate_star(record: Record, star: tuple[float, float] | None = None) -> Sky | None:
    """Locate the star in the combined image; None without an image or a star position.

    `star` is ra, dec in degrees; default: the mean over the exposures, see `star_in_exposure`.
    """
    wcs, science = record.wcs, science_exposures(record)
    if wcs is None or not science:
        return None
    if star is not None:
        places = np.array([wcs.sky_to_pixel(*star)], float)
    else:
        own = [(e.wcs, star_in_exposure(e)) for e in science]
        places = np.array(
            [
                wcs.sky_to_pixel(*w.pixel_to_sky(*p[:2], everywhere=True))
                for w, p in own
                if w is not None and p is not None
            ],
            float,
        )
    if not places.size:
        return None
    x, y = places.mean(axis=0)
    if not (math.isfinite(x) and math.isfinite(y)):
        return None
    ra, dec = (float(v) for v in wcs.pixel_to_sky(x, y))
    north, east = map(_unit, sky_axes(wcs, (x, y), (ra, dec)))
    spread = float(np.hypot(*(places - (x, y)).T).max())
    fwhm = psf_fwhm(science[0].meta.filter or "") / wcs.pixel_scale
    return Sky(
        (float(x), float(y)),
        (ra, dec),
        north,
        east,
        wcs.pixel_scale,
        fwhm,
        spread,
        star is not None,
    )


def sky_axes(wcs: Any, xy: tuple[float, float], radec: tuple[float, float]) -> np.ndarray:
    """Return where north and east are at a pixel: (2, 2), x and y in pixels per arcsec."""
    (ra, dec), small = radec, 1 / 3600
    skies = ((ra, dec + small), (ra + small / max(math.cos(math.radians(dec)), 1e-6), dec))
    return np.array([np.array(wcs.sky_to_pixel(*sky), float) - xy for sky in skies])


def science_exposures(record: Record) -> list[ExposureRecord]:
    """Return the science exposures of a product, in order."""
    return [e for e in record.exposures.values() if e.exptype == "science"]


def _unit(vector):
    length = math.hypot(*vector)
    return float(vector[0] / length), float(vector[1] / length)


def star_in_exposure(
    exposure: ExposureRecord, sky: tuple[float, float] | None = None
) -> tuple[float, float, float] | None:
    """Return the star's x, y in an exposure and the pixel scale in arcsec; None if unknown.

    `sky` is ra, dec in degrees. Default: where the run has it, see `gpucoron.core.star`.
    """
    if exposure.wcs is None or (sky is None and exposure.star_px is None):
        return None
    x, y = exposure.star_px or (math.nan, math.nan)
    if sky is not None:
        x, y = (float(v) for v in exposure.wcs.sky_to_pixel(*sky))
    if not (math.isfinite(x) and math.isfinite(y)):
        return None
    scale = _pixel_scale(exposure.wcs, x, y)
    return (x, y, scale) if math.isfinite(scale) and scale > 0 else None


@functools.lru_cache(maxsize=64)  # asked for with every candidate
def _pixel_scale(wcs: InputWcs, x: float, y: float) -> float:
    """Return the side of a pixel, arcsec."""
    ra, dec = wcs.pixel_to_sky(np.array([x, x + 1, x]), np.array([y, y, y + 1]), everywhere=True)
    a, b = (np.subtract(v, v[0]) * 3600 for v in tangent_plane(ra, dec, ra[0], dec[0]))
    return math.sqrt(abs(a[1] * b[2] - a[2] * b[1]))


def profile(
    image: np.ndarray, star: tuple[float, float], width_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the radial profile of the rms: standard deviation in annuli around the star.

    Returns
    -------
    separation : (n,) array, pixels
        Middle of each annulus.
    rms : (n,) array
        NaN where an annulus has fewer than ten pixels.
    """
    yy, xx = np.indices(image.shape)
    ring = (np.hypot(xx - star[0], yy - star[1]) / width_px).astype(int).ravel()
    values = np.asarray(image, dtype=np.float64).ravel()
    good = np.isfinite(values)
    ring, values = ring[good], values[good]
    if not ring.size:
        return np.empty(0), np.empty(0)
    count = np.bincount(ring)
    mean = np.bincount(ring, values) / np.maximum(count, 1)
    square = np.bincount(ring, (values - mean[ring]) ** 2)
    rms = np.where(count >= 10, np.sqrt(square / np.maximum(count - 1, 1)), np.nan)
    return (np.arange(count.size) + 0.5) * width_px, rms


@dataclass
class Shifts:
    """Shifts that align each reference image to one science exposure.

    One entry per reference image: medians over the science integrations of shift and its error in
    pixels (`x`, `y`, `x_err`, `y_err`), offset from its exposure's median (`dx`, `dy`), number of
    failed fits, index of its exposure (`group`). `every` has all fits that converged; `outliers`
    has (index, reason).
    """

    names: list[str]
    x: np.ndarray
    y: np.ndarray
    x_err: np.ndarray
    y_err: np.ndarray
    dx: np.ndarray
    dy: np.ndarray
    failed: np.ndarray
    group: np.ndarray
    every: np.ndarray
    outliers: list[tuple[int, str]]


def reference_shifts(fits: np.ndarray, sources) -> Shifts:
    """Summarise a table of alignment fits by reference image and find outliers.

    Parameters
    ----------
    fits : structured array
        `gpucoron.steps.align_refs.FITS_DTYPE`.
    sources : sequence of PlaneSource
        Exposure and integration of each reference image; may be empty.

    Notes
    -----
    A reference is an outlier if one of its fits did not converge; if its distance from the median
    of all references exceeds the median distance by more than half a pixel and six robust standard
    deviations; or if it is more than five robust standard deviations from its exposure's median
    along x or y.
    """
    planes = np.unique(fits["ref_plane"])
    if len(sources) < (planes.max() if planes.size else 0):
        sources = [(f"reference {k}", 1) for k in range(1, int(planes.max()) + 1)]
    roots = [sources[p - 1][0] for p in planes]
    numbers = [sources[p - 1][1] for p in planes]
    good = fits["status"] == 0
    mine = [fits["ref_plane"] == p for p in planes]
    x, y, x_err, y_err = (
        np.array([_median(fits[name][good & m]) for m in mine])
        for name in ("x", "y", "x_err", "y_err")
    )
    failed = np.array([np.sum(~good & m) for m in mine], dtype=int)
    order = list(dict.fromkeys(roots))
    group = np.array([order.index(r) for r in roots], dtype=int)
    dx, dy = (v - np.array([_median(v[group == g]) for g in group]) for v in (x, y))
    names = [f"{r} integration {n}" for r, n in zip(roots, numbers, strict=True)]
    out = Shifts(names, x, y, x_err, y_err, dx, dy, failed, group, fits[good], [])
    out.outliers = _outliers(out)
    return out


def _outliers(s: Shifts) -> list[tuple[int, str]]:
    why: dict[int, str] = {}
    for k in np.flatnonzero(s.failed):
        n = int(s.failed[k])
        why[int(k)] = f"{n} failed fit{'s'[: n != 1]}"
    away = np.hypot(s.x - _median(s.x), s.y - _median(s.y))
    limit = _median(away) + max(0.5, 6 * 1.4826 * _median(np.abs(away - _median(away))))
    for k in np.flatnonzero(away > limit):
        why.setdefault(int(k), f"{away[k]:.2f} px from the median of all")
    several = np.bincount(s.group, minlength=1)[s.group] >= 3 if s.group.size else np.array([])
    apart = np.r_[s.dx[several], s.dy[several]] if s.group.size else np.empty(0)
    if apart.size:
        stated = np.r_[s.x_err, s.y_err]
        sigma = max(1.4826 * _median(np.abs(apart)), _median(stated[np.isfinite(stated)]) or 0)
        worst = np.maximum(np.abs(s.dx), np.abs(s.dy))
        for k in np.flatnonzero(several & (worst > 5 * sigma)):
            why.setdefault(int(k), f"{worst[k]:.3f} px from its exposure's median")
    return sorted(why.items())


def _median(values) -> float:
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else math.nan
