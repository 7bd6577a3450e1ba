"""Choose the references of each science exposure: psf members, and other rolls (RDI, ADI)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gpucoron.errors import ExposureError, ParameterError, plural
from gpucoron.io.association import LeftOut, Member
from gpucoron.io.names import exposure_root
from gpucoron.pipeline.movement import far_enough, position_angle, warn_of_self_subtraction

if TYPE_CHECKING:
    from gpucoron.core.parameters import Parameters
    from gpucoron.io.association import Association, Product
    from gpucoron.io.exposures import Exposure

__all__ = ["WORDS", "References", "choose_psf_members", "choose_references"]

log = logging.getLogger("gpucoron")

WORDS = {
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
        return WORDS[self.mode]


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


def _excluded(parameters: Parameters, member: Member) -> bool:
    return any(_is_called(name, member) for name in parameters.klip.exclude_reference or ())


def _without_unused(parameters: Parameters, product: Product) -> Product:
    mode, science = parameters.klip.mode, {m.path for m in product.science}
    reasons: dict[Member, str] = {}
    for member in product.psf:
        if _excluded(parameters, member):
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
    excluded = {e.root for e in science if _excluded(parameters, members[e.path])}
    angles = {e.root: position_angle(parameters, science, e) for e in science}
    rolls = {}
    for exposure in science:
        others = [e for e in science if e is not exposure and e.root not in excluded]
        rolls[exposure.root] = far_enough(parameters, science, exposure, others, angles, mode)
    warn_of_self_subtraction(science, rolls, angles)
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
        log.info("%s: mode %s: references are %s", name, mode, WORDS[mode])
    return mode
