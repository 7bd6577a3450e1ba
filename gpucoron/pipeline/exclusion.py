"""Regions of known sources in science exposures, which registration and KLIP leave out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpucoron.errors import ExposureError, ParameterError
from gpucoron.pipeline.expected_star import star_before_alignment

if TYPE_CHECKING:
    from gpucoron.core.parameters import Parameters
    from gpucoron.io.exposures import Exposure

__all__ = ["Exclusion", "check_exclusions", "check_what_is_left", "find_exclusion", "warn_of_moves"]

log = logging.getLogger("gpucoron")

TOUCHED = 0.71  # px, half the diagonal of a pixel: all that a circle touches are left out
# px around a region in registration, where weights stand on the references' pixels and the science
# image, with its source, is moved onto these: by the dithers, 1 px, and by what target acquisition
# leaves, some 0.3 px rms in either image
MARGIN = 2.5
LEAST_LEFT = 0.1  # of the psfmask's weights that regions must leave


class Exclusion(NamedTuple):
    """Weights of the pixels of a science exposure, 0 in the excluded regions and 1 elsewhere."""

    klip: np.ndarray  # (ny, nx) float64
    registration: np.ndarray  # (ny, nx) float64; multiplies the psfmask


def find_exclusion(
    parameters: Parameters, science: Sequence[Exposure], exposure: Exposure
) -> Exclusion | None:
    """Return the weights by which a science exposure's regions are left out; None without any.

    Parameters
    ----------
    parameters : Parameters
        ``align_refs.exclude`` and ``align_refs.star``.
    science : sequence of Exposure
        All of the product, the one of which the star is given first.
    exposure : Exposure

    Raises
    ------
    ExposureError
        The star's position or the WCS is not known.
    """
    if parameters.align_refs.exclude is None:
        return None
    inside = _distances(parameters, science, exposure)
    klip, registration = (
        np.where((inside <= limit).any(axis=0), 0.0, 1.0) for limit in (TOUCHED, MARGIN)
    )
    return Exclusion(klip, registration)


def _distances(parameters, science, exposure) -> np.ndarray:
    """Distance of every pixel from the edge of each region, px, negative inside: (n, ny, nx)."""
    from gpucoron.io.star import offsets_from

    star = star_before_alignment(parameters, science, exposure)
    if star is None:
        raise ExposureError(
            f"{exposure.path.name}: align_refs.exclude is relative to the star, whose position the "
            "headers do not have; expected STARCENX, STARCENY or CRPIX1, CRPIX2 in SCI, or --star"
        )
    (east, north), scale = offsets_from(exposure, star)
    return np.array(
        [
            (np.hypot(east - d_east, north - d_north) - radius) / scale
            for d_east, d_north, radius in parameters.align_refs.exclude
        ]
    )


def check_exclusions(parameters: Parameters, science: Sequence[Exposure]) -> None:
    """Warn of regions that lie outside of a science exposure.

    Raises
    ------
    ExposureError
        As `find_exclusion`.
    """
    regions = parameters.align_refs.exclude
    if regions is None:
        return
    for exposure in science:
        distances = _distances(parameters, science, exposure)
        for region, distance in zip(regions, distances, strict=True):
            if not (distance <= TOUCHED).any():
                log.warning(
                    "%s: the region %g,%g,%g of align_refs.exclude lies outside of the image; "
                    "nothing is left out there",
                    *(exposure.path.name, *region),
                )


def check_what_is_left(
    parameters: Parameters, science: Sequence[Exposure], mask: np.ndarray
) -> None:
    """Raise ParameterError where regions cover nearly all that the psfmask leaves.

    `mask` (ny, nx) is the psfmask.
    """
    total = (mask**2).sum()
    for exposure in science:
        weights = find_exclusion(parameters, science, exposure)
        if weights is None:
            return
        left = ((mask * weights.registration) ** 2).sum() / total
        if left < LEAST_LEFT:
            raise ParameterError(
                f"align_refs.exclude leaves {100 * left:.1f} % of what the psfmask leaves of "
                f"{exposure.path.name}; expected at least {100 * LEAST_LEFT:g} %"
            )


def warn_of_moves(exposure: Exposure, largest: float) -> None:
    """Warn where an image was moved further than the margin around regions.

    `largest` is the largest such move along an axis, px; NaN where there is none.
    """
    if largest > MARGIN:
        log.warning(
            "%s: images are up to %.1f px apart, and the regions of align_refs.exclude have a "
            "margin of %g px in registration; such fits are used, though a source may have moved "
            "them; a radius that is larger by the difference prevents that",
            *(exposure.path.name, largest, MARGIN),
        )
