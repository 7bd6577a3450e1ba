"""Associations given as a dict or as a list of exposures instead of a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.errors import AssociationError
from gpucoron.io.association import DEFAULT_ASN_ID, Association, association_from_text
from gpucoron.io.exposures import Exposure, exposure_role

if TYPE_CHECKING:
    from gpucoron.core.stack import IntegrationStack

__all__ = ["GivenAssociation", "given_association"]

NAME = "association"  # stands for the file in messages and in the keyword ASNTABLE
_EXPECTED = (
    "the path of an association, its contents as a dict, or a list of exposures: paths, "
    "(path, 'science' or 'psf'), or what gpucoron.io.read_exposure returns"
)


@dataclass(frozen=True)
class GivenAssociation:
    """An association, and the images of the exposures that were given in memory, by path."""

    association: Association
    stacks: Mapping[Path, IntegrationStack]


def given_association(
    source: Any, *, check_files: bool = True, need_references: bool = True
) -> GivenAssociation:
    """Make an association of a dict as a file would hold it, or of a list of exposures.

    Parameters
    ----------
    source : mapping or iterable
        The contents of an association; or paths of exposures, pairs of path and "science" or
        "psf", and `Exposure` objects, in any mixture. Names are relative to the current folder.
        A path alone is a reference where its header has IS_PSF = T.
    check_files, need_references : bool
        As for `read_association`.

    Returns
    -------
    GivenAssociation
        `Exposure` objects contribute their images as they are in memory, and everything else from
        their files.

    Raises
    ------
    AssociationError
        As `read_association`, or an entry of another kind.
    ExposureError
        A path alone whose header has no IS_PSF.
    """
    stacks: dict[Path, IntegrationStack] = {}
    if isinstance(source, Mapping):
        table = dict(source)
    elif isinstance(source, Iterable):
        members = [_member(entry, stacks) for entry in source]
        table = {"asn_id": DEFAULT_ASN_ID, "products": [{"members": members}]}
    else:
        raise AssociationError(
            f"the association is a {type(source).__name__}, expected {_EXPECTED}"
        )
    try:
        content = json.dumps(table, default=os.fspath).encode()
    except (TypeError, ValueError) as problem:
        raise AssociationError(f"the association is no plain dict: {problem}") from None
    found = association_from_text(
        Path.cwd() / NAME, content, check_files=check_files, need_references=need_references
    )
    return GivenAssociation(replace(found, in_file=False), stacks)


def _member(entry: Any, stacks: dict[Path, IntegrationStack]) -> dict[str, str]:
    """Return a member as an association lists it."""
    if isinstance(entry, Exposure):
        path, exptype = entry.path.absolute(), entry.exptype
        if entry.stack is not None:
            stacks[path] = entry.stack
    elif isinstance(entry, str | os.PathLike):
        path = Path(entry).absolute()
        exptype = exposure_role(path)
    elif isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], str):
        path, exptype = Path(entry[0]).absolute(), entry[1]
    else:
        raise AssociationError(f"{str(entry)[:60]!r} is no exposure; expected {_EXPECTED}")
    return {"expname": str(path), "exptype": exptype}
