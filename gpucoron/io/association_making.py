"""Make level-3 associations from a folder of exposures: targets and references by their headers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpucoron.errors import AssociationError, ExposureError, InputError, plural
from gpucoron.io.agreement import check_members
from gpucoron.io.association import Association, LeftOut, Member, Product
from gpucoron.io.exposure_facts import ExposureFacts, read_facts
from gpucoron.io.files import check_replaceable, output_file
from gpucoron.io.names import exposure_root, program_id
from gpucoron.io.product_naming import standard_product_name

__all__ = [
    "Proposal",
    "association_file_name",
    "find_exposures",
    "make_associations",
    "notes_on",
    "write_association",
]

_EXPOSURE = re.compile(r"_(calints|cal)\.fits(\.gz)?$", re.IGNORECASE)
_CORONAGRAPHIC = ("NRC_CORON", "MIR_4QPM", "MIR_LYOT")
# full-frame NIRCam coronagraphy reads detectors that have no target behind the mask
_WITH_TARGET = {"MASKBAR": "NRCA4", "MASKRND": "NRCA2"}
_FIRST_ID = 3001  # of a3001, as jwst numbers associations that nobody has planned
_MOST_DAYS = 30.0  # between science exposures, before that is worth a note


@dataclass(frozen=True)
class Proposal:
    """An association of one target with one filter and mask, and what it was made of."""

    association: Association
    science: tuple[ExposureFacts, ...]
    references: tuple[ExposureFacts, ...]
    notes: tuple[str, ...]  # what whoever uses it should know


def find_exposures(places: Sequence[str | os.PathLike]) -> list[Path]:
    """Return the ``_calints`` and ``_cal`` files in folders and in the folders in these, sorted.

    A place that is a file is taken whatever its name.

    Raises
    ------
    AssociationError
        A place does not exist, or nothing is found.
    """
    found: dict[Path, None] = {}
    for place in map(Path, places):
        if place.is_dir():
            found.update(dict.fromkeys(_in_folder(place)))
        elif place.is_file():
            found[place] = None
        else:
            raise AssociationError(f"{place}: no such folder, expected one with _calints files")
    if not found:
        where = ", ".join(map(str, places))
        raise AssociationError(
            f"{where}: no exposure found there or in the folders in it, expected files named "
            "..._calints.fits or ..._cal.fits"
        )
    return list(found)


def _in_folder(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if _EXPOSURE.search(name) and not name.startswith("."):
                yield Path(where, name)


def make_associations(
    paths: Iterable[str | os.PathLike],
    *,
    target: str | None = None,
    program: str | None = None,
    filter: str | None = None,
) -> tuple[list[Proposal], list[LeftOut]]:
    """Sort exposures into associations, one for each target, filter and mask.

    References are all exposures of other stars (IS_PSF) that could be combined with the target's:
    `gpucoron.io.check_members` says what must agree.

    Parameters
    ----------
    paths : iterable of path
        Exposures, as from `find_exposures`.
    target : str, optional
        Only associations of this target, TARGPROP or TARGNAME: its exposures are science whatever
        IS_PSF says, and those that do not say are references.
    program : str, optional
        Only exposures of this programme.
    filter : str, optional
        Only exposures with this filter.

    Returns
    -------
    list of Proposal, list of LeftOut
        What was made, in the order of the files, and what was left out and why.

    Raises
    ------
    AssociationError
        No science exposure is left.
    """
    usable, left_out = _usable(paths, program, filter)
    names = sorted({facts.target or "?" for facts in usable})
    if target is not None:
        kept = [_of_target(facts, target) for facts in usable]
        left_out += [
            _leave_out(facts, f"another target ({facts.target}), and IS_PSF is false")
            for facts, own in zip(usable, kept, strict=True)
            if own is None
        ]
        usable = [own for own in kept if own is not None]
    proposals: list[Proposal] = []
    for group in _groups(usable):
        made = list(_of_group(group, len(proposals)))
        proposals += made
        if not made:
            reason = "a reference, but there is no target with its filter and mask"
            left_out += [_leave_out(facts, reason) for facts in group]
    if not proposals:
        raise AssociationError(_why_none(target, names, usable, left_out))
    return proposals, left_out


def _why_none(target, names, usable, left_out) -> str:
    if target is not None and names:
        return f"no exposure of target {target!r} (found: {', '.join(names)})"
    if usable:
        return (
            f"{plural(len(usable), 'exposure')}, but all are of reference stars (IS_PSF), expected "
            f"a target; --target says which (found: {', '.join(names)})"
        )
    first = left_out[0]
    return (
        f"none of {plural(len(left_out), 'exposure')} can be used, expected coronagraphic ones "
        f"({first.expname}: {first.reason})"
    )


def _leave_out(facts: ExposureFacts, reason: str) -> LeftOut:
    return LeftOut(facts.path.name, facts.meta.exp_type or "", reason)


# ---- which exposures can be used


def _usable(paths, program, filter) -> tuple[list[ExposureFacts], list[LeftOut]]:
    usable: dict[str, ExposureFacts] = {}
    left_out: list[LeftOut] = []
    # of calints and cal with one root the first, which has the integrations, is taken
    for path in sorted(map(Path, paths), key=lambda p: (exposure_root(p), "_cal." in p.name)):
        try:
            facts = read_facts(path)
        except (ExposureError, InputError) as problem:
            reason = str(problem).removeprefix(f"{path}: ")
            left_out.append(LeftOut(path.name, "", reason))
            continue
        root = facts.exposure.root
        reason = _why_not(facts, program, filter)
        if not reason and root in usable:
            reason = (
                f"the same exposure as {usable[root].path.parent.name}/{usable[root].path.name}"
            )
        if reason:
            left_out.append(_leave_out(facts, reason))
        else:
            usable[root] = facts
    return list(usable.values()), left_out


def _why_not(facts: ExposureFacts, program: str | None, filter: str | None) -> str:
    """Return why an exposure cannot be in an association; "" for nothing."""
    meta = facts.meta
    kind = (meta.exp_type or "").upper()
    if "TACQ" in kind or "TACONFIRM" in kind:
        return f"target acquisition ({kind})"
    if kind not in _CORONAGRAPHIC:
        found = f"EXP_TYPE is {kind}" if kind else "has no EXP_TYPE"
        return f"{found}, expected {', '.join(_CORONAGRAPHIC)}"
    full, detector = (meta.subarray or "").upper() == "FULL", (meta.detector or "").upper()
    behind = _WITH_TARGET.get((meta.pupil or "").upper(), detector)
    if full and re.fullmatch("NRCA[1-4]", detector) and detector != behind:
        return f"detector {detector} does not see the target, {behind} does"
    if facts.background:
        return "a background exposure (BKGDTARG)"
    if program is not None and facts.program != program_id(program):
        return f"program {facts.program or '?'}, not {program_id(program)}"
    if filter is not None and (meta.filter or "").upper() != filter.strip().upper():
        return f"filter {meta.filter or '?'}, not {filter.strip().upper()}"
    return ""


def _of_target(facts: ExposureFacts, target: str) -> ExposureFacts | None:
    """Return an exposure of `target` as science, one that may be a reference as psf, else None."""
    if facts.is_called(target):
        return facts.as_type("science")
    return None if facts.is_psf is False else facts.as_type("psf")


# ---- which exposures go together


def _groups(usable: Sequence[ExposureFacts]) -> list[list[ExposureFacts]]:
    """Sort exposures into groups that can be combined, each by the first that it goes with."""
    groups: list[list[ExposureFacts]] = []
    for facts in usable:
        for group in groups:
            if all(_agree(one, facts) for one in group):
                group.append(facts)
                break
        else:
            groups.append([facts])
    return groups


def _agree(one: ExposureFacts, other: ExposureFacts) -> bool:
    try:
        check_members([one.exposure, other.exposure])
    except ExposureError:
        return False
    return True


def _of_group(group: Sequence[ExposureFacts], made: int) -> Iterator[Proposal]:
    """Yield an association for each target and programme of a group; `made` are there already."""
    references = [facts for facts in group if facts.exposure.exptype == "psf"]
    targets: list[list[ExposureFacts]] = []
    for facts in group:
        if facts.exposure.exptype != "science":
            continue
        for own in targets:
            if own[0].program == facts.program and own[0].same_target(facts):
                own.append(facts)
                break
        else:
            targets.append([facts])
    for number, science in enumerate(targets, _FIRST_ID + made):
        association = _association(f"a{number}", science, references)
        notes = [*_silent(science), *notes_on(science, references)]
        yield Proposal(association, tuple(science), tuple(references), tuple(notes))


def _silent(science: Sequence[ExposureFacts]) -> Iterator[str]:
    silent = [facts.path.name for facts in science if facts.is_psf is None]
    if silent:
        yield (f"{', '.join(silent)}: IS_PSF is missing, taken as science (--target NAME decides)")


def _association(asn_id: str, science, references) -> Association:
    first = science[0]
    members = tuple(
        Member(facts.path, facts.exposure.exptype, facts.path.name)
        for facts in (*science, *references)
    )
    association = Association(
        path=Path(),
        asn_id=asn_id,
        asn_pool="none",
        table_name="",
        program=first.program or "00000",
        target=first.target,
        products=(),
    )
    name = association_file_name(association)
    product = Product(standard_product_name(association, first.meta), members)
    return replace(association, path=Path(name), table_name=name, products=(product,))


def association_file_name(association: Association) -> str:
    """Return the name of an association's file, as jwst names it."""
    number = int(association.asn_id[1:]) - _FIRST_ID + 1
    program, asn_id = association.program, association.asn_id
    return f"jw{program}-{asn_id}_coron3_{number:05d}_asn.json"


def notes_on(
    science: Sequence[ExposureFacts], references: Sequence[ExposureFacts]
) -> Iterator[str]:
    """Yield what is worth knowing of a product of these exposures, in words."""
    if not references:
        yield (
            f"no reference star (IS_PSF) with {science[0].optics}: without psf members the only "
            "references are other rolls (--mode adi)"
        )
    stars = sorted({facts.target or "?" for facts in references})
    if len(stars) > 1:
        yield f"{len(stars)} reference stars, all taken: {', '.join(stars)}"
    own = [facts.path.name for facts in references if facts.same_target(science[0])]
    if own:
        yield f"{', '.join(own)}: a reference, but of the target itself"
    others = sorted({f.program or "?" for f in references} - {science[0].program or "?"})
    if others:
        yield f"references of another program are taken: {', '.join(others)}"
    days = [day for facts in science if (day := facts.days()) is not None]
    if days and max(days) - min(days) > _MOST_DAYS:
        yield (
            f"the science exposures were begun over {max(days) - min(days):.0f} days: what orbits "
            "the star, and stars behind it, have moved"
        )


# ---- writing


def write_association(
    association: Association, path: str | os.PathLike, *, overwrite: bool = False
) -> Path:
    """Write an association as JSON; its members are named relative to its folder.

    Parameters
    ----------
    association : Association
    path : path
        The file, or a folder in which it gets the name of `association_file_name`.
    overwrite : bool
        Replace a file of that name.

    Raises
    ------
    OutputError
        The file exists, or cannot be written.
    """
    from gpucoron import __version__

    path = Path(path)
    if path.is_dir():
        path = path / association_file_name(association)
    check_replaceable(path, overwrite)
    content = {
        "asn_type": "coron3",
        "asn_rule": "DMS_Level3_Base",  # as of those that are not from the archive's pool
        "version_id": None,
        "code_version": f"gpucoron {__version__}",
        "degraded_status": "No known degraded exposures in association.",
        "program": association.program,
        "constraints": "none",
        "asn_id": association.asn_id,
        "target": association.target or "none",
        "asn_pool": association.asn_pool,
        "products": [_product(product, path.parent) for product in association.products],
    }
    with output_file(path, overwrite) as file:
        file.write((json.dumps(content, indent=4) + "\n").encode())
    return path


def _product(product: Product, folder: Path) -> dict[str, object]:
    members = [
        {"expname": _relative(member.path, folder), "exptype": member.exptype}
        for member in product.members
    ]
    return {"name": product.name, "members": members}


def _relative(path: Path, folder: Path) -> str:
    real = os.path.join(os.path.realpath(path.parent), path.name)
    try:
        return Path(os.path.relpath(real, os.path.realpath(folder))).as_posix()
    except ValueError:  # another drive
        return real
