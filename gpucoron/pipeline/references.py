"""Choose the references of each science exposure: psf members, and other rolls (RDI, ADI)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from gpucoron.errors import ExposureError, ParameterError, plural
from gpucoron.io.association import LeftOut, Member
from gpucoron.io.names import exposure_root
from gpucoron.pipeline.expected_star import star_before_alignment
from gpucoron.pipeline.zones import find_zones

if TYPE_CHECKING:
    from gpucoron.core.parameters import Parameters
    from gpucoron.core.stack import PlaneSource
    from gpucoron.io.association import Association, Product
    from gpucoron.io.exposures import Exposure
    from gpucoron.pipeline.inputs import ProductInputs
    from gpucoron.pipeline.product_context import ProductContext
    from gpucoron.pipeline.subtraction import Ranked
    from gpucoron.steps.bad_pixels import ReferenceLibrary

__all__ = [
    "References",
    "choose_psf_members",
    "choose_references",
    "full_frame_radius",
    "is_excluded",
    "movement",
]

log = logging.getLogger("gpucoron")

#: px; exposures of one roll angle differ by rounding, and never serve each other.
LEAST_MOVEMENT = 1e-2
_MODEL = {
    "rdi": "psf members",
    "adi": "the other rolls",
    "adi+rdi": "psf members and the other rolls",
    "roll": "the mean of the other rolls, without KLIP",
}


@dataclass(frozen=True)
class References:
    """Which other science exposures are references of each, for one product.

    Attributes
    ----------
    mode : {"rdi", "adi", "adi+rdi", "roll"}
    rolls : dict of str to tuple of Exposure
        By root name of a science exposure, the other science exposures that are its references.
    angles : dict of str to float
        Position angle of the y axis of science exposures, degrees east of north, where `rolls` are
        used.
    """

    mode: str
    rolls: Mapping[str, tuple[Exposure, ...]] = field(default_factory=dict)
    angles: Mapping[str, float] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """What the PSF is made of, in words."""
        return _MODEL[self.mode]


class ReferenceImages:
    """The references of a product's science exposures, prepared on every device.

    Parameters
    ----------
    inputs : ProductInputs
    sources : tuple of PlaneSource
        Of all reference images; may be empty where psf members are all there is.
    n : int
        Number of images.

    Attributes
    ----------
    libraries : list of ReferenceLibrary
        Of all images, one for each device.
    """

    def __init__(self, inputs: ProductInputs, sources: tuple[PlaneSource, ...], n: int):
        self._inputs, self._sources, self._n = inputs, sources, n
        self.libraries: list[ReferenceLibrary] = []

    def planes(self, exposure: Exposure) -> np.ndarray:
        """Return the numbers of the images that are a science exposure's references."""
        if not self._inputs.uses_rolls:
            return np.arange(self._n)
        rolls = {e.root for e in self._inputs.chosen.rolls.get(exposure.root, ())}
        science = {e.root for e in self._inputs.science}
        return np.flatnonzero(
            [s.exposure in rolls or s.exposure not in science for s in self._sources]
        )

    def sources(self, exposure: Exposure) -> tuple[PlaneSource, ...]:
        """Return the sources of a science exposure's references."""
        return tuple(self._sources[k] for k in self.planes(exposure))

    def of(self, exposure: Exposure) -> list[ReferenceLibrary]:
        """Return the references of a science exposure on every device."""
        if not self._inputs.uses_rolls:
            return self.libraries
        planes = self.planes(exposure)
        return [library.select(planes) for library in self.libraries]


# ---- before members are read


def choose_psf_members(parameters: Parameters, association: Association) -> Association:
    """Leave out psf members that do not serve as references.

    These are those of ``klip.exclude_reference``, all of them with the modes "adi" and "roll", and
    those that are science exposures of the same product, which are references as other rolls.

    Raises
    ------
    ParameterError
        ``klip.exclude_reference`` has a name that no member has.
    """
    klip = parameters.klip
    for name in klip.exclude_reference or ():
        members = [m for p in association.products for m in p.used]
        if not any(_is_called(name, m) for m in members):
            known = ", ".join(dict.fromkeys(m.path.name for m in members))
            raise ParameterError(
                f"klip.exclude_reference is {name!r}, expected the file or root name of a member, "
                f"or jw and the number of a visit, of {known}"
            )
    products = tuple(_without_unused(parameters, product) for product in association.products)
    return replace(association, products=products)


def _is_called(name: str, member: Member) -> bool:
    root = exposure_root(member.path)
    return name in (member.expname, member.path.name, root) or _is_visit_of(name, root)


def _is_visit_of(name: str, root: str) -> bool:
    """Whether an exposure's root, jwPPPPPOOOVVV_..., begins with the visit `name`."""
    return root.startswith(f"{name}_") and "_" not in name


def is_excluded(parameters: Parameters, member: Member) -> bool:
    """Whether ``klip.exclude_reference`` has a member's name, or its visit's."""
    return any(_is_called(name, member) for name in parameters.klip.exclude_reference or ())


def _without_unused(parameters: Parameters, product: Product) -> Product:
    mode, science = parameters.klip.mode, {m.path for m in product.science}
    reasons: dict[Member, str] = {}
    for member in product.psf:
        if is_excluded(parameters, member):
            reasons[member] = "klip.exclude_reference"
        elif member.path in science:
            reasons[member] = "is science, too, and a reference as another roll"
        elif mode in ("adi", "roll"):
            reasons[member] = f"klip.mode is {mode}"
    for reason in dict.fromkeys(reasons.values()):
        names = ", ".join(m.path.name for m, why in reasons.items() if why == reason)
        log.info("not used as psf members: %s (%s)", names, reason)
    if product.psf and mode == "rdi" and len(reasons) == len(product.psf):
        raise ParameterError(
            f"klip.exclude_reference leaves none of the {plural(len(reasons), 'psf member')}, "
            "expected at least one with klip.mode=rdi"
        )
    left_out = tuple(LeftOut(m.expname, "psf", reason) for m, reason in reasons.items())
    return replace(
        product,
        members=tuple(m for m in product.members if m not in reasons),
        left_out=(*product.left_out, *left_out),
    )


# ---- when their headers are known


def choose_references(
    parameters: Parameters, product: Product, science: list[Exposure], psf: list[Exposure]
) -> References:
    """Choose the references of each science exposure of a product.

    Parameters
    ----------
    parameters : Parameters
        ``klip.mode``, ``klip.movement`` and ``klip.exclude_reference``.
    product : Product
        As the association has it.
    science, psf : list of Exposure

    Raises
    ------
    ExposureError
        A science exposure has no reference.
    """
    mode = _mode(parameters, product, science, psf)
    if mode == "rdi" or parameters.klip.skip:
        return References(mode)
    members = {m.path: m for m in product.science}
    excluded = {e.root for e in science if is_excluded(parameters, members[e.path])}
    angles = {e.root: _position_angle(parameters, science, e) for e in science}
    rolls = {}
    for exposure in science:
        others = [e for e in science if e is not exposure and e.root not in excluded]
        rolls[exposure.root] = _far_enough(parameters, science, exposure, others, angles, mode)
    _warn_of_self_subtraction(science, rolls, angles)
    return References(mode, rolls, angles)


def _mode(
    parameters: Parameters, product: Product, science: list[Exposure], psf: list[Exposure]
) -> str:
    """Return the mode that is used, and say so where it is not the one that was asked for."""
    wanted = parameters.klip.mode
    if wanted == "roll" and parameters.klip.zoned:
        raise ParameterError(
            "klip.mode is roll, which is no KLIP and has no zones; expected klip.annuli, "
            "subsections, iwa, owa and maxnumbasis as by default"
        )
    name = science[0].path.name if product.name is None else product.name
    if parameters.klip.skip:
        return "rdi" if wanted == "auto" else wanted
    mode = wanted
    if wanted == "auto":
        listed_twice = {m.path for m in product.science} & {m.path for m in product.psf}
        mode = ("adi+rdi" if listed_twice else "rdi") if psf else "adi"
    elif wanted == "adi+rdi" and not psf:
        log.warning("%s: klip.mode is adi+rdi, and there are no psf members; adi is used", name)
        mode = "adi"
    if mode != "rdi" and len(science) == 1:
        if mode == "adi+rdi":
            log.warning(
                "%s: klip.mode is %s, and there is only one science exposure; rdi is used",
                *(name, wanted),
            )
            return "rdi"
        found = "no psf member to use, and only" if wanted == "auto" else f"klip.mode {mode}, and"
        raise ExposureError(
            f"product {name} has {found} one science exposure ({science[0].path.name}), so there "
            "are no references; expected psf members, or another roll of the target"
        )
    if mode != "rdi":
        log.info("%s: mode %s: references are %s", name, mode, _MODEL[mode])
    return mode


def _far_enough(
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
    x, y = _star(parameters, science, exposure)
    ny, nx = exposure.shape[1:]
    return max(min(x - 0.5, nx + 0.5 - x, y - 0.5, ny + 0.5 - y), 0.0) / 2


def _radius(parameters: Parameters, science: Sequence[Exposure], exposure: Exposure) -> float:
    """Return where movement decides whether an exposure may serve, px: the outermost zone's."""
    zones = None
    if parameters.klip.zoned:
        zones = find_zones(parameters, exposure, _star(parameters, science, exposure))
    if zones is None:
        return full_frame_radius(parameters, science, exposure)
    return float(zones.radii.max())


def movement(radius: float, turned: float) -> float:
    """Return how far a source at a radius moves on the detector, px, by a turn in degrees."""
    return 2 * radius * abs(math.sin(math.radians(turned) / 2))


def _star(
    parameters: Parameters, science: Sequence[Exposure], exposure: Exposure
) -> tuple[float, float]:
    """About where the star is, pixels counted from 1; the middle where headers do not say."""
    ny, nx = exposure.shape[1:]
    star = star_before_alignment(parameters, science, exposure)
    return ((nx + 1) / 2, (ny + 1) / 2) if star is None else star


def _position_angle(
    parameters: Parameters, science: Sequence[Exposure], exposure: Exposure
) -> float:
    """Return the position angle of the y axis at the star by the GWCS, degrees east of north."""
    from gpucoron.io.star import offsets_from

    x, y = _star(parameters, science, exposure)
    (east, north), _ = offsets_from(exposure, (x, y))
    ny, nx = exposure.shape[1:]
    column = int(np.clip(round(x - 1), 0, nx - 1))
    row = int(np.clip(round(y - 1), 0, ny - 2))
    d_east, d_north = (
        float(plane[row + 1, column] - plane[row, column]) for plane in (east, north)
    )
    return math.degrees(math.atan2(d_east, d_north))


def _warn_of_self_subtraction(
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


# ---- when they are aligned


def to_be_ranked(product: ProductContext, exposure: Exposure) -> Ranked | None:
    """Return what ranks the references of a science exposure; None where that cannot be."""
    from gpucoron.pipeline.subtraction import Ranked

    sources = product.record.sources_of(exposure.root)
    if not sources or product.parameters.like_jwst or product.parameters.align_refs.skip:
        return None
    x, y = _star(product.parameters, product.inputs.science, exposure)
    return Ranked(sources, (x - 1, y - 1))


def report_ranking(product: ProductContext, exposure: Exposure, ranking: np.ndarray | None) -> None:
    """Note how the references of a science exposure rank, and warn of those with a source."""
    from gpucoron.steps.reference_ranking import LIKELY_SOURCE

    if ranking is None:
        return
    product.result.references[exposure.root] = ranking
    for row in ranking[ranking["source"] > LIKELY_SOURCE]:
        if row["exposure"] in product.inputs.chosen.rolls or row["exposure"] in product.suspected:
            continue  # a companion of the target, or known already
        product.suspected.add(str(row["exposure"]))
        log.warning(
            "%s: the reference %s has what the others have not: a source at x, y = %d, %d of the "
            "aligned image, %.0f times the scatter there; it will be negative in the result "
            "(--exclude-reference leaves the exposure out)",
            *(exposure.root, row["exposure"], row["x"], row["y"], row["source"]),
        )
