"""Where the star is in the science exposures of a product."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpucoron.core.star import StarPositions
from gpucoron.errors import ParameterError
from gpucoron.ops.registration import CONVERGED
from gpucoron.pipeline.centering import Centering, choose_center

if TYPE_CHECKING:
    from gpucoron.core.parameters import Parameters
    from gpucoron.core.stack import PlaneSource
    from gpucoron.io.exposures import Exposure
    from gpucoron.io.wcs import InputWcs
    from gpucoron.pipeline.centering import Place
    from gpucoron.pipeline.result import ProductResult
    from gpucoron.steps.positions import Pointing

__all__ = [
    "Stars",
    "check_given_star",
    "pointing",
    "relative_positions",
    "star_before_alignment",
]

log = logging.getLogger("gpucoron")


def check_given_star(parameters: Parameters, science: Sequence[Exposure]) -> None:
    """Raise ParameterError where the star that is given lies outside of the first exposure."""
    star, (_, ny, nx) = parameters.align_refs.star, science[0].shape
    if star is not None and not (0.5 <= star[0] <= nx + 0.5 and 0.5 <= star[1] <= ny + 0.5):
        raise ParameterError(
            f"align_refs.star is {star[0]:g}, {star[1]:g}, which is outside of "
            f"{science[0].path.name}; expected x from 1 to {nx} and y from 1 to {ny}"
        )


class Stars:
    """Finds the star in the science exposures of a product.

    Positions are put into ``result.stars`` and the record of the report.

    Parameters
    ----------
    science : sequence of Exposure
    parameters : Parameters
    result : ProductResult
        ``result.fits`` has the fits of the alignment of an exposure before it is looked at.
    """

    def __init__(self, science: Sequence[Exposure], parameters: Parameters, result: ProductResult):
        self._science, self._parameters, self._result = science, parameters, result

    def find(self, exposure: Exposure) -> StarPositions:
        """Return where the star is in a science exposure; see `StarPositions`."""
        known = self._result.stars
        if exposure.root not in known:
            star = self._given(exposure) or _expected(exposure)
            known[exposure.root] = star
            if self._result.record is not None and all(map(math.isfinite, star.mean)):
                x, y = star.mean
                self._result.record.exposures[exposure.root].star_px = (x - 1, y - 1)
        return known[exposure.root]

    def _given(self, exposure: Exposure) -> StarPositions | None:
        """Return the position that is given, moved as the alignment says; None where none is."""
        star, n = self._parameters.align_refs.star, exposure.shape[0]
        if star is None:
            return None
        if self._parameters.align_refs.skip or self._parameters.klip.skip:
            log.warning(
                "%s: the star is taken to be at the pixel that align_refs.star gives in every "
                "integration, as nothing is aligned",
                exposure.path.name,
            )
            return StarPositions.constant(star, n, 0.0, "given")
        moved = self._moved(exposure)
        if moved is None or not np.isfinite(moved[0]).any():
            log.warning(
                "%s: has no good alignment in common with %s, for which align_refs.star is given; "
                "the star is taken to be where the headers have it",
                *(exposure.path.name, self._science[0].path.name),
            )
            return None
        x, y, x_err, y_err = (np.broadcast_to(values, n) for values in moved)
        return StarPositions(star[0] + x, star[1] + y, x_err, y_err, "given")

    def _moved(self, exposure: Exposure) -> np.ndarray | None:
        """Return `relative_positions` of an exposure to the first one; None without fits."""
        fits = [self._result.fits.get(e.root) for e in (self._science[0], exposure)]
        if fits[0] is None or fits[1] is None:
            return None
        return relative_positions(fits[0], fits[1])

    def center(self, wcss: Sequence[InputWcs]) -> Centering:
        """Decide how the exposures are combined, warn of stars apart; `wcss` are the exposures'."""
        stars = [self.find(exposure) for exposure in self._science]
        center = choose_center(self._parameters.resample.center, self._science, stars)
        centering = Centering(self._science, stars, wcss, center)
        centering.warn_of_differences(self._compared(stars))
        if self._result.record is not None:
            for exposure, wcs in zip(self._science, centering.wcss, strict=True):
                self._result.record.exposures[exposure.root].wcs = wcs
        return centering

    def _compared(self, stars: Sequence[StarPositions]) -> list[Place] | None:
        """Return mean x, y of the star in each exposure, and the error between it and the first's.

        They are the positions found where all are measured; else that of the first exposure and
        the alignment. None where that is not known.
        """
        if all(star.measured for star in stars):
            errors = [np.nan_to_num(math.hypot(*star.mean_error)) for star in stars]
            return [(*star.mean, float(e)) for star, e in zip(stars, errors, strict=True)]
        moved = [self._moved(exposure) for exposure in self._science]
        if any(m is None for m in moved) or not np.isfinite(stars[0].mean).all():
            return None
        x, y, x_err, y_err = np.array([np.nanmean(m, axis=1) for m in moved if m is not None]).T
        x, y = x - x[0] + stars[0].mean[0], y - y[0] + stars[0].mean[1]
        return list(zip(x, y, np.hypot(x_err, y_err), strict=True))


def star_before_alignment(
    parameters: Parameters, science: Sequence[Exposure], exposure: Exposure
) -> tuple[float, float] | None:
    """Return about where the star is in a science exposure, before anything is measured.

    Parameters
    ----------
    parameters : Parameters
        ``align_refs.star``, which is its position in the first of `science`.
    science : sequence of Exposure
    exposure : Exposure
        One of them.

    Returns
    -------
    (x, y), pixels counted from 1, or None
        Where the headers have it; with a position that is given, that, moved as the headers say.
        Good to the error of target acquisition, some tenths of a pixel.
    """
    from gpucoron.io.star import expected_star

    given, own, first = (
        parameters.align_refs.star,
        expected_star(exposure),
        expected_star(science[0]),
    )
    if given is None:
        return None if own is None else own[0]
    if exposure is science[0] or own is None or first is None:
        return given
    return given[0] + own[0][0] - first[0][0], given[1] + own[0][1] - first[0][1]


def pointing(
    science: Exposure, references: Sequence[Exposure], sources: Sequence[PlaneSource]
) -> Pointing | None:
    """Return where the GWCSs of exposures have their targets; None where one is not known.

    Parameters
    ----------
    science : Exposure
    references : sequence of Exposure
    sources : sequence of PlaneSource
        Of the reference images.

    Returns
    -------
    Pointing or None
    """
    from gpucoron.io.star import target_pixel
    from gpucoron.steps.positions import Pointing

    places = {e.root: target_pixel(e) for e in references}
    own = target_pixel(science)
    wanted = [places.get(source.exposure) for source in sources]
    if own is None or not wanted or None in wanted:
        return None
    return Pointing(np.array(own), np.array(wanted))


def _expected(exposure: Exposure) -> StarPositions:
    """Return where the headers of an exposure have the star; NaN where they do not."""
    from gpucoron.io.star import expected_star

    found = expected_star(exposure)
    place = (math.nan, math.nan) if found is None else found[0]
    return StarPositions.constant(place, exposure.shape[0], math.nan, "wcs")


def relative_positions(first: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return where the star is, relative to the first integration of an exposure.

    Parameters
    ----------
    first, table : structured arrays, `gpucoron.steps.align_refs.FITS_DTYPE`
        The fits of that exposure, and those of the same references to the exposure wanted.

    Returns
    -------
    (4, n) float64, pixels
        x, y and their standard deviations for each fitted integration: the median over the
        references that both integrations are well fitted to of the first one's shift minus this
        one's. The standard deviations are the fits' own (noise that all references share with
        these images), or that of the median by its scatter, where that is larger. NaN where there
        is no such reference; 0 for the first integration itself.
    """
    (origin, origin_err), (shifts, errors) = map(_good_shifts, (first, table))
    found = np.full((4, len(shifts)), np.nan)
    usable = np.isfinite(origin).all(axis=2)
    if not usable.any():
        return found
    start = int(np.argmax(usable.any(axis=1)))  # the first one that has good fits
    for i, (shift, error) in enumerate(zip(shifts, errors, strict=True)):
        both = usable[start] & np.isfinite(shift).all(axis=1)
        if not both.any():
            continue
        away = origin[start][both] - shift[both]
        middle = np.median(away, axis=0)
        scatter = 1.4826 * np.median(np.abs(away - middle), axis=0) / math.sqrt(len(away))
        own = np.hypot(np.median(origin_err[start][both], axis=0), np.median(error[both], axis=0))
        same = not np.any(away)
        found[:, i] = *middle, *(0.0 * own if same else np.maximum(own, scatter))
    return found


def _good_shifts(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return shifts (n, nref, 2) in x and y and their errors; NaN where a fit is no good."""
    rows = table.reshape(-1, int(table["ref_plane"].max()))
    good = (rows["status"] == CONVERGED)[..., None]
    shifts, errors = (
        np.where(good, np.stack([rows[x], rows[y]], axis=-1), np.nan)
        for x, y in (("x", "y"), ("x_err", "y_err"))
    )
    return shifts, errors
