"""How far a source moves between rolls, and which of these may be references of each other."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpucoron.errors import ExposureError, plural
from gpucoron.pipeline.expected_star import star_before_alignment
from gpucoron.pipeline.zones import find_zones

if TYPE_CHECKING:
    from gpucoron.core.parameters import Parameters
    from gpucoron.core.stack import PlaneSource
    from gpucoron.io.exposures import Exposure
    from gpucoron.pipeline.references import References

__all__ = [
    "expected_place",
    "far_enough",
    "far_enough_in_zones",
    "full_frame_radius",
    "movement",
    "position_angle",
    "warn_of_self_subtraction",
]

log = logging.getLogger("gpucoron")

#: px; exposures of one roll angle differ by rounding, and never serve each other.
LEAST_MOVEMENT = 1e-2


def far_enough(
    parameters: Parameters,
    science: Sequence[Exposure],
    exposure: Exposure,
    others: Sequence[Exposure],
    angles: Mapping[str, float],
    mode: str,
) -> tuple[Exposure, ...]:
    """Return the exposures between which and this one a source moves as far as it must."""
    least = parameters.klip.movement
    radius = _radius(parameters, science, exposure)
    moves = [movement(radius, angles[exposure.root] - angles[e.root]) for e in others]
    enough = max(least, LEAST_MOVEMENT)
    chosen = tuple(e for e, m in zip(others, moves, strict=True) if m >= enough)
    log.info(
        "%s: references: %s of the target; a source at %.1f px moves by %s px (klip.movement %g)",
        *(exposure.root, ", ".join(e.root for e in chosen) or "no exposure", radius),
        *(", ".join(f"{m:.1f}" for m in moves) or "–", least),
    )
    if chosen:
        return chosen
    text = (
        f"{exposure.path.name}: no other science exposure can be its reference: between them a "
        f"source {radius:.1f} px from the star moves by at most {max(moves, default=0.0):.2f} px"
    )
    if mode != "adi+rdi":
        raise ExposureError(f"{text}, expected {least:g} px (klip.movement) and another roll angle")
    log.warning("%s, and klip.movement is %g; its references are the psf members", text, least)
    return ()


def far_enough_in_zones(
    least: float,
    chosen: References,
    exposure: Exposure,
    sources: Sequence[PlaneSource],
    radii: np.ndarray,
) -> np.ndarray:
    """Return which references of a science exposure serve in each zone.

    Parameters
    ----------
    least : float, px
        ``klip.movement``.
    chosen : References
    exposure : Exposure
    sources : sequence of PlaneSource
        Of the references.
    radii : (nzones,) floating, px
        Of the zones' middles.

    Returns
    -------
    (nzones, n, nref) bool
        All psf members; of another roll where a source at the zone's radius moves by `least`. A
        zone without any is named in a warning.
    """
    own, rolls = chosen.angles[exposure.root], chosen.rolls[exposure.root]
    turns = {e.root: abs(chosen.angles[e.root] - own) for e in rolls}
    moves = np.array([[_moves(r, turns.get(s.exposure)) for s in sources] for r in radii])
    allowed = moves >= max(least, LEAST_MOVEMENT)
    empty = ~allowed.any(axis=1)
    if empty.any():
        log.warning(
            "%s: %d of %s have no references, because a source at their middle, up to %.1f px from "
            "the star, moves by less than klip.movement = %g px; they are NaN",
            *(exposure.path.name, empty.sum(), plural(len(radii), "zone")),
            *(float(radii[empty].max()), least),
        )
    return np.repeat(allowed[:, None], exposure.shape[0], axis=1)


def _moves(radius: float, turned: float | None) -> float:
    """`movement`; without limit for a psf member."""
    return math.inf if turned is None else movement(radius, turned)


def full_frame_radius(
    parameters: Parameters, science: Sequence[Exposure], exposure: Exposure
) -> float:
    """Return where `klip.movement` is measured without zones, px: half way to the nearest edge."""
    x, y = expected_place(parameters, science, exposure)
    ny, nx = exposure.shape[1:]
    return max(min(x - 0.5, nx + 0.5 - x, y - 0.5, ny + 0.5 - y), 0.0) / 2


def _radius(parameters: Parameters, science: Sequence[Exposure], exposure: Exposure) -> float:
    """Return where movement decides whether an exposure may serve, px: the outermost zone's."""
    zones = None
    if parameters.klip.zoned:
        zones = find_zones(parameters, exposure, expected_place(parameters, science, exposure))
    if zones is None:
        return full_frame_radius(parameters, science, exposure)
    return float(zones.radii.max())


def movement(radius: float, turned: float) -> float:
    """Return how far a source at a radius moves on the detector, px, by a turn in degrees."""
    return 2 * radius * abs(math.sin(math.radians(turned) / 2))


def expected_place(
    parameters: Parameters, science: Sequence[Exposure], exposure: Exposure
) -> tuple[float, float]:
    """About where the star is, pixels counted from 1; the middle where headers do not say."""
    ny, nx = exposure.shape[1:]
    star = star_before_alignment(parameters, science, exposure)
    return ((nx + 1) / 2, (ny + 1) / 2) if star is None else star


def position_angle(
    parameters: Parameters, science: Sequence[Exposure], exposure: Exposure
) -> float:
    """Return the position angle of the y axis at the star by the GWCS, degrees east of north."""
    from gpucoron.io.star import offsets_from

    x, y = expected_place(parameters, science, exposure)
    (east, north), _ = offsets_from(exposure, (x, y))
    ny, nx = exposure.shape[1:]
    column = int(np.clip(round(x - 1), 0, nx - 1))
    row = int(np.clip(round(y - 1), 0, ny - 2))
    d_east, d_north = (
        float(plane[row + 1, column] - plane[row, column]) for plane in (east, north)
    )
    return math.degrees(math.atan2(d_east, d_north))


def warn_of_self_subtraction(
    science: Sequence[Exposure],
    rolls: Mapping[str, tuple[Exposure, ...]],
    angles: Mapping[str, float],
) -> None:
    """Say how near to the star sources subtract themselves, because rolls are close."""
    from gpucoron.analysis.detection import psf_fwhm

    turns = [
        abs(math.sin(math.radians(angles[root] - angles[e.root]) / 2))
        for root, others in rolls.items()
        for e in others
    ]
    if not turns:
        return
    turn = 2 * math.degrees(math.asin(min(turns)))
    fwhm = psf_fwhm(science[0].meta.filter or "")
    log.warning(
        "%s: rolls as near as %.1f degrees are references of each other: sources nearer to the "
        "star than %.2f arcsec move by less than a FWHM (%.2f arcsec) and subtract part of "
        "themselves, as do disks",
        *(science[0].path.name, turn, fwhm / (2 * min(turns)), fwhm),
    )
