"""How the science exposures are combined: about their star, or as their GWCSs have them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.core.star import CombinedStar, StarPositions
from gpucoron.core.star_flux import StarFlux

if TYPE_CHECKING:
    from gpucoron.io.exposures import Exposure
    from gpucoron.io.wcs import InputWcs, OutputWcs

__all__ = ["CENTER_PX", "Centering", "choose_center"]

log = logging.getLogger("gpucoron")

CENTER_PX = 0.2  # error of the positions below which exposures are combined about the star
_APART_PX = 0.3  # between where two WCSs, or a WCS and the target's coordinates, have the star

Pair = tuple[float, float]
Place = tuple[float, float, float]  # x, y from 1 and their error, pixels


def choose_center(wanted: str, science: Sequence[Exposure], stars: Sequence[StarPositions]) -> str:
    """Return "star" where the exposures can be combined about the star and are to be, else "wcs".

    A position that is measured, but not in all exposures or not well enough, gives a warning.
    """
    if wanted == "wcs" or not any(star.measured for star in stars):
        return "wcs"
    reasons = list(_reasons_against(science, stars))
    if reasons:
        log.warning(
            "i2d is combined by the exposures' GWCSs, not about the star: %s", "; ".join(reasons)
        )
        return "wcs"
    return "star"


def _reasons_against(science, stars) -> Iterator[str]:
    for exposure, star in zip(science, stars, strict=True):
        error = max(star.mean_error)
        if not star.measured:
            yield f"its position in {exposure.path.name} is not measured"
        elif not max(star.mean_error) < CENTER_PX:
            known = f"{error:.2g} px" if math.isfinite(error) else "not known"
            yield (
                f"the error of its position in {exposure.path.name} is {known} "
                f"(expected: below {CENTER_PX:g} px)"
            )


class Centering:
    """The WCSs that science exposures are combined by.

    With `center` "star" each exposure's WCS is rotated so that its star comes to one position on
    the sky: the mean of the stars' positions by the WCSs as they are, weighted by the exposures'
    times. With "wcs" the WCSs stay.

    Parameters
    ----------
    science : sequence of Exposure
    stars : sequence of StarPositions
        Of each; one that is NaN is allowed with "wcs".
    wcss : sequence of InputWcs
        Of each, as it is in the file.
    center : {"star", "wcs"}

    Attributes
    ----------
    center : {"star", "wcs"}
        What was done: "wcs" where a WCS gives its star no position.
    wcss : list of InputWcs
        To combine by.
    radec : (ra, dec), degrees, or None
        The mean position; None where the star is not known in some exposure.
    """

    def __init__(
        self,
        science: Sequence[Exposure],
        stars: Sequence[StarPositions],
        wcss: Sequence[InputWcs],
        center: str,
    ):
        self.center, self._science, self._stars = "wcs", science, stars
        self._original = self.wcss = list(wcss)
        self._weights = _weights(science)
        self.radec: Pair | None = None
        if not np.isfinite([star.mean for star in stars]).all():
            return
        skies = [_sky(wcs, star.mean) for wcs, star in zip(wcss, stars, strict=True)]
        if not np.isfinite(skies).all():
            return
        self.radec = mean = _mean_position(skies, self._weights)
        self._spread = 3600 * max(math.hypot(*_away(sky, mean)) for sky in skies)
        if center == "star":
            self.center = center
            self.wcss = [wcs.turned(sky, mean) for wcs, sky in zip(wcss, skies, strict=True)]

    def grid(self, grid: Mapping[str, Any]) -> dict[str, Any]:
        """Return keywords of `gpucoron.io.wcs.output_wcs`: CRVAL is the star's unless it is set."""
        if self.center == "star" and grid.get("crval") is None:
            return {**grid, "crval": self.radec}
        return dict(grid)

    def in_image(self, output: OutputWcs) -> CombinedStar | None:
        """Return where the star is in the combined image; None where it is not known."""
        if self.radec is None:
            return None
        places = [_place(w, output, s) for w, s in zip(self.wcss, self._stars, strict=True)]
        x, y, x_err, y_err, xy_cov, *mask = np.average(
            places, axis=0, weights=self._weights
        ).tolist()
        if not all(map(math.isfinite, (x, y, self._spread))):  # keywords that make no sense
            return None
        sources = {star.source for star in self._stars}
        position = StarPositions(
            np.array([x]),
            np.array([y]),
            np.array([x_err]),
            np.array([y_err]),
            sources.pop() if len(sources) == 1 else "wcs",
            (mask[0], mask[1]) if all(map(math.isfinite, mask)) else None,
            flux=mean_flux([star.flux for star in self._stars], self._weights),
            xy_cov=np.array([xy_cov]),
        )
        away = self._from_target()
        return CombinedStar(position, self.radec, self.center, self._spread, away)

    def _from_target(self) -> Pair | None:
        """Return the star minus the target's coordinates in the headers, east and north, arcsec."""
        from gpucoron.io.star import target_position

        target = target_position(self._science[0])
        if target is None or self.radec is None:
            return None
        east, north = (3600 * value for value in _away(self.radec, target))
        return (east, north) if math.isfinite(east) and math.isfinite(north) else None

    def warn_of_differences(self, places: Sequence[Place] | None) -> None:
        """Warn where WCSs have the stars apart, or the star away from the target's coordinates.

        `places` are mean x, y of the star in each exposure, and the error between it and the
        first one's; None where they are not known.
        """
        scale = None if places is None else _pixel_scale(self._original[0], places[0])
        if places is None or scale is None:
            return
        skies = [_sky(wcs, place[:2]) for wcs, place in zip(self._original, places, strict=True)]
        apart = []
        for exposure, sky, (_, _, error) in zip(self._science, skies, places, strict=True):
            distance = math.hypot(*_away(sky, skies[0])) / scale
            if distance > _APART_PX + 3 * error:
                apart.append(f"{distance:.2f} px ({exposure.path.name})")
        if apart:
            what = "i2d has the stars of exposures apart, by their GWCSs and the measured shifts"
            if self.center == "star":
                what = "i2d is combined about the star, which the exposures' GWCSs have apart"
            log.warning(
                "%s: from that of %s %s", what, self._science[0].path.name, ", ".join(apart)
            )
        away = self._from_target()
        if away is not None and all(star.measured for star in self._stars):
            self._warn_of_target(math.hypot(*away), 3600 * scale, max(p[2] for p in places))

    def _warn_of_target(self, distance: float, pixel: float, error: float) -> None:
        if distance / pixel > _APART_PX + 3 * error:
            log.warning(
                "%s: by the GWCSs the star is %.3g arcsec (%.3g px) from TARG_RA, TARG_DEC: the "
                "pointing is off, or the target's coordinates are",
                *(self._science[0].path.name, distance, distance / pixel),
            )


def mean_flux(fluxes: Sequence[StarFlux | None], weights: Sequence[float]) -> StarFlux | None:
    """Return the exposures' mean flux density of the star; None where one is not known.

    The error is the mean of theirs, most of which they share, or their scatter if that is larger.
    """
    known = [flux for flux in fluxes if flux is not None]
    if not known or len(known) < len(fluxes):
        return None
    jy, error = (np.array([getattr(f, name) for f in known]) for name in ("jy", "error_jy"))
    mean = float(np.average(jy, weights=weights))
    common, scatter = float(np.average(error, weights=weights)), float(np.std(jy))
    return StarFlux(mean, max(common, scatter), known[0].source)


def _weights(science: Sequence[Exposure]) -> list[float]:
    """Return the exposures' times, s; 1 for each where one is not known."""
    times = [exposure.meta.weighing_time for exposure in science]
    known = [t for t in times if t is not None and 0 < t < math.inf]
    return known if len(known) == len(times) else [1.0] * len(times)


def _sky(wcs: InputWcs, pixel: Sequence[float]) -> Pair:
    """Return RA and Dec in degrees of a pixel counted from 1."""
    ra, dec = wcs.pixel_to_sky(pixel[0] - 1, pixel[1] - 1, everywhere=True)
    return float(ra), float(dec)


def _mean_position(skies: Sequence[Pair], weights: Sequence[float]) -> Pair:
    from gpucoron.io.wcs import direction, sky_position

    if len(set(skies)) == 1:
        return skies[0]
    ra, dec = sky_position(np.average([direction(*s) for s in skies], axis=0, weights=weights))
    return float(ra), float(dec)


def _away(sky: Pair, origin: Pair) -> Pair:
    """Return how far a position is east and north of another one, degrees on the tangent plane."""
    from gpucoron.io.wcs.tan import tangent_plane

    east, north = tangent_plane(*sky, *origin)
    return float(east), float(north)


def _pixel_scale(wcs: InputWcs, place: Place) -> float | None:
    """Return the side of a pixel in degrees; None where the WCS gives none."""
    from gpucoron.io.wcs.tan import tangent_plane

    x, y, _ = place
    steps = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    ra, dec = wcs.pixel_to_sky(x - 1 + steps[0], y - 1 + steps[1], everywhere=True)
    east, north = tangent_plane(ra, dec, float(ra[0]), float(dec[0]))
    scale = math.sqrt(abs(east[1] * north[2] - east[2] * north[1]))
    return scale if 0 < scale < math.inf else None


def _place(wcs: InputWcs, output: OutputWcs, star: StarPositions) -> list[float]:
    """Return x, y, their errors and covariance, and x, y of the mask in the output image.

    Pixels from 1.
    """
    (x, y), mask = star.mean, star.mask or (math.nan, math.nan)
    pixels = np.array([(x, y), (x + 1, y), (x, y + 1), mask]).T - 1
    sky = wcs.pixel_to_sky(*pixels, everywhere=True)
    here, right, above, mask_there = np.transpose(output.sky_to_pixel(*sky)) + 1
    change = np.stack([right - here, above - here], axis=1)
    (x_err, y_err), cov = star.mean_error, star.mean_xy_cov
    covariance = change @ np.array([[x_err**2, cov], [cov, y_err**2]]) @ change.T
    return [*here, *np.sqrt(np.diag(covariance)), covariance[0, 1], *mask_there]
