"""Areas without data in an exposure or its references, which registration and KLIP leave out."""

from __future__ import annotations

import logging

import numpy as np

from gpucoron.backend.arrays import to_host
from gpucoron.ops.dq import FLUX_ESTIMATED, NON_SCIENCE
from gpucoron.ops.flagged_pixels import FlaggedPixels

__all__ = ["area_in_references", "empty_area", "field_weight", "registration_mask"]

log = logging.getLogger("gpucoron")

LARGE = 2  # px: a cluster of bad pixels with a square of side 2 * 2 + 1 in it is an area
# The same in registration. Up to 2 * 18 + 1 px clusters are better filled, with the uncertainty of
# that, than left out: without a part of the image another shift leaves least, by 0.02 to 0.2 px. A
# cluster of 2 * 26 + 1 px is so large a part of the psfmask that fits fail
UNFILLABLE = 20
# px around areas in registration, where a science image is moved onto the references' pixels: by
# the dithers, 1 px, and by what target acquisition leaves, some 0.3 px rms in either image
MARGIN = 3
RINGING = 2  # px around areas in KLIP, where the shifts of references make edges ring most
LEAST_LEFT = 0.1  # of the pixels, or of the psfmask's weights


def empty_area(flags: np.ndarray, large: int = LARGE) -> np.ndarray:
    """Return the pixels without data in the images of a stack.

    Parameters
    ----------
    flags : (n, ny, nx) uint32
        Of bad and NON_SCIENCE pixels, as `gpucoron.steps.bad_pixels.BadPixelFiller.flags` gives
        them.
    large : int, px
        Half of the side of clusters that count: `LARGE` for KLIP, `UNFILLABLE` for registration.

    Returns
    -------
    (ny, nx) bool
        On the host: NON_SCIENCE in any image; or filled in all of them, in a square of
        ``2 large + 1`` such pixels a side, where those beyond the edge count as such.
    """
    outside = to_host(((flags & np.uint32(NON_SCIENCE)) != 0).any(axis=0))
    filled = to_host(((flags & np.uint32(FLUX_ESTIMATED)) != 0).all(axis=0))
    return outside | (_grown(~_grown(~filled, large), large) & filled)


def registration_mask(mask: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Return the psfmask, 0 where pixels without data are or may come to lie in a fit.

    Parameters
    ----------
    mask : (ny, nx) floating
        The psfmask.
    area : (ny, nx) bool
        Pixels that cannot be filled, of references and science images.

    Returns
    -------
    (ny, nx) floating
        `mask` itself, with a warning, where less than a tenth of its weights would be left.
    """
    if not area.any():
        return mask
    kept = np.where(_grown(area, MARGIN), 0.0, to_host(mask))
    left = (kept**2).sum() / max((to_host(mask) ** 2).sum(), 1e-300)
    if left < LEAST_LEFT:
        log.warning(
            "align_refs: pixels without data (NON_SCIENCE, or large areas of bad pixels) leave "
            "%.1f %% of the psfmask's weights, expected at least %g %%; they take part as filled",
            *(100 * left, 100 * LEAST_LEFT),
        )
        return mask
    return kept


def area_in_references(area: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Return the pixels without data in any of the references when these are shifted.

    Parameters
    ----------
    area : (ny, nx) bool
        In the references as they are.
    shifts : (n, 2) floating, px
        How far each is moved (y, x), to the nearest pixel here.

    Returns
    -------
    (ny, nx) bool
        Without what comes from beyond the edges.
    """
    flagged = FlaggedPixels(np.where(area, np.uint32(FLUX_ESTIMATED), np.uint32(0))[None])
    moved = np.zeros_like(area)
    for shift in np.unique(np.rint(shifts), axis=0):
        moved |= (flagged.shifted(0, shift) & FLUX_ESTIMATED) != 0
    return moved


def field_weight(area: np.ndarray) -> np.ndarray | None:
    """Return the pixels' weights in KLIP: 0 in an area without data and next to it, 1 elsewhere.

    Parameters
    ----------
    area : (ny, nx) bool
        Pixels without data, of shifted references and science images.

    Returns
    -------
    (ny, nx) float64 or None
        None where nothing is to be left out; with a warning where less than a tenth of the pixels
        would be left.
    """
    if not area.any():
        return None
    weight = np.where(_grown(area, RINGING), 0.0, 1.0)
    if weight.mean() < LEAST_LEFT:
        log.warning(
            "klip: pixels without data (NON_SCIENCE, or large areas of bad pixels) leave %.1f %% "
            "of the image, expected at least %g %%; they take part as filled",
            *(100 * weight.mean(), 100 * LEAST_LEFT),
        )
        return None
    return weight


def _grown(area: np.ndarray, radius: int) -> np.ndarray:
    """Return the pixels within `radius` px of an area along y and x."""
    for _ in range(2):
        before, area = area, area.copy()
        for step in range(1, radius + 1):
            area[step:] |= before[:-step]
            area[:-step] |= before[step:]
        area = area.T
    return area
