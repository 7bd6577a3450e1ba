"""JWST level-3 associations: which exposures make which product."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from gpucoron.errors import AssociationError
from gpucoron.io.association_text import parse_association
from gpucoron.io.files import read_input
from gpucoron.io.names import (
    LONGEST,
    check_names,
    exposure_root,
    product_root,
    program_id,
    text_or_none,
)

__all__ = ["Association", "LeftOut", "Member", "Product", "read_association"]

log = logging.getLogger("gpucoron")

USED_TYPES = ("science", "psf")
LARGEST = 64 << 20  # bytes; real ones have some thousand
_LONGEST = {"expname": 4000, "exptype": 40}
_EXPECTED = "a level-3 association file (JSON or YAML)"
DEFAULT_ASN_ID = "a3001"  # what jwst gives an association made by hand


@dataclass(frozen=True)
class Member:
    """One exposure of a product."""

    path: Path
    exptype: str  # lower case
    expname: str  # as the association spells it

    @property
    def used(self) -> bool:
        """True for exptypes science and psf; other members are ignored."""
        return self.exptype in USED_TYPES


class LeftOut(NamedTuple):
    """A member that is not used, as the association spells it, and why."""

    expname: str
    exptype: str
    reason: str


@dataclass(frozen=True)
class Product:
    """One product and its members, in the order of the association.

    `left_out` are those that could not be used: see `gpucoron.io.inspection`.
    """

    name: str | None
    members: tuple[Member, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def science(self) -> tuple[Member, ...]:
        """Exposures of the target."""
        return tuple(m for m in self.members if m.exptype == "science")

    @property
    def psf(self) -> tuple[Member, ...]:
        """Reference exposures."""
        return tuple(m for m in self.members if m.exptype == "psf")

    @property
    def used(self) -> tuple[Member, ...]:
        """`science`, then `psf`."""
        return self.science + self.psf

    @property
    def ignored(self) -> tuple[Member, ...]:
        """Members of any other exptype."""
        return tuple(m for m in self.members if not m.used)


@dataclass(frozen=True)
class Association:
    """A level-3 association; `program`, `target` and `asn_pool` are None where it lacks them."""

    path: Path
    asn_id: str
    asn_pool: str | None
    table_name: str
    program: str | None
    target: str | None
    products: tuple[Product, ...]
    in_file: bool = True  # False where it was given as a dict or a list: `path` is then only a name


def read_association(
    path: str | Path, *, check_files: bool = True, need_references: bool = True
) -> Association:
    """Read a level-3 association and find its members, relative to its folder.

    Parameters
    ----------
    path : path
        The file: JSON, or YAML (see `gpucoron.io.association_text`).
    check_files : bool
        False does not look whether members are there.
    need_references : bool
        False allows products without psf members, and exposures that are science and psf.

    Returns
    -------
    Association
        Products in the order of the file, each with at least one science and one psf member.
        Members of other exptypes are named in a warning and need not exist. A member that is
        listed twice is there once, with a warning.

    Raises
    ------
    AssociationError
        The file is unreadable, not JSON (with line and column), not an association, or holds a
        product without science or psf members; a member is missing, not a file, or listed as
        science and as psf; two products, or the products of two exposures, would have the same
        file name.
    """
    path = Path(path)
    content = read_input(path, AssociationError, _EXPECTED, LARGEST)
    return association_from_text(
        path, content, check_files=check_files, need_references=need_references
    )


def association_from_text(
    path: Path, content: bytes, *, check_files: bool = True, need_references: bool = True
) -> Association:
    """Make an association of the contents of a file; as `read_association`."""
    try:
        return _association(path, content, check_files, need_references)
    except AssociationError as problem:
        raise AssociationError(f"{path}: {problem.args[0]}") from problem


def _association(
    path: Path, content: bytes, check_files: bool, need_references: bool
) -> Association:
    """Make an association; the errors do not name the file."""
    table = _load(content, path.name)
    products = _products(path, table, need_references)
    asn_id = text_or_none(table.get("asn_id"))
    if asn_id is None:
        log.warning("%s: has no asn_id; using %s", path.name, DEFAULT_ASN_ID)
    asn_id = _file_name_part("asn_id", asn_id or DEFAULT_ASN_ID)
    if check_files:
        _check_files(path.parent, products)
    _check_unique(products, asn_id)
    for product in products:
        if product.ignored:
            names = ", ".join(f"{m.expname} ({m.exptype})" for m in product.ignored)
            log.warning(
                "%s: %s: ignoring %s: neither science nor psf",
                path.name,
                f"product {product.name}" if product.name else "product without a name",
                shorten(names, 1000, placeholder=" ..."),
            )
    kind, pool = table.get("asn_type"), table.get("asn_pool")
    if kind is not None and kind != "coron3":
        log.warning("%s: asn_type is %s, expected 'coron3'; going on", path.name, repr(kind)[:100])
    return Association(
        path=path,
        asn_id=asn_id,
        # as it is, "none" included: products repeat it
        asn_pool=pool.strip() or None if isinstance(pool, str) else None,
        table_name=path.name,
        program=program_id(table.get("program")),
        target=text_or_none(table.get("target")),
        products=products,
    )


def _load(content: bytes, name: str) -> dict[str, Any]:
    if content.startswith(b"SIMPLE  ="):
        raise AssociationError(f"is a FITS file, expected {_EXPECTED}")
    if not content.strip():
        raise AssociationError(f"is empty, expected {_EXPECTED}")
    table = parse_association(content, name)
    if not isinstance(table, dict):
        raise AssociationError(
            f"holds {_kind(table)}, expected a JSON object with a list 'products'"
        )
    return table


def _products(path: Path, table: dict[str, Any], need_references: bool) -> tuple[Product, ...]:
    entries = table.get("products")
    if not isinstance(entries, list) or not entries:
        found = "no 'products'" if entries is None else f"'products' is {_kind(entries)}"
        raise AssociationError(f"not a level-3 association: {found}, expected a list of products")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("members"), list):
            raise AssociationError(
                f"not a level-3 association: product {number} has no list 'members'"
            )
        for position, member in enumerate(entry["members"], 1):
            _check_member(f"product {number}, member {position}", member)
    return tuple(
        _product(path, index, entry, need_references) for index, entry in enumerate(entries)
    )


def _check_member(where: str, member: Any) -> None:
    for key, longest in _LONGEST.items():
        value = member.get(key) if isinstance(member, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise AssociationError(f"{where} has no {key!r}, expected a text")
        if not value.strip().isprintable() or len(value) > longest:
            raise AssociationError(
                f"{where} has the {key} {value[:60]!r}, expected at most {longest} "
                "printable characters"
            )


def _product(path: Path, index: int, entry: dict[str, Any], need_references: bool) -> Product:
    texts = [(m["expname"].strip(), m["exptype"].strip().lower()) for m in entry["members"]]
    members = tuple(Member(path.parent / name, exptype, name) for name, exptype in texts)
    product = Product(_product_name(path, index, entry.get("name")), members)
    wanted = {"science": "exposure of the target"}
    if need_references:
        wanted["psf"] = "reference exposure, without which no PSF can be subtracted"
    for exptype, purpose in wanted.items():
        if not getattr(product, exptype):
            found = ", ".join(sorted({m.exptype for m in members})) or "no members"
            raise AssociationError(
                f"{_label(product, index)} has no member with exptype {exptype!r} (found: "
                f"{found}), expected at least one {purpose}"
            )
    return replace(product, members=_without_repeated(path, product, index, need_references))


def _product_name(path: Path, index: int, name: Any) -> str | None:
    """Return the name that products are called after, which is that of jwst."""
    what = f"the name of product {index + 1}"
    if not isinstance(name, str | None):
        raise AssociationError(f"{what} is {_kind(name)}, expected a text")
    if not name or not name.strip():
        return None
    root = _file_name_part(what, product_root(name), name)
    if root != name.strip():
        text = "%s: %s is %s; its products are named %s_..., as jwst names them"
        log.warning(text, path.name, what, name.strip(), root)
    return root


def _without_repeated(
    path: Path, product: Product, index: int, distinct: bool
) -> tuple[Member, ...]:
    """Return the members, each used one once; if `distinct`, raise where one is science and psf."""
    label = _label(product, index)
    first: dict[Any, Member] = {}
    kept, repeated = [], []
    for member in product.members:
        key = _file(member), "" if distinct else member.exptype
        known = first.setdefault(key, member) if member.used else member
        also = "" if known.expname == member.expname else f" (also as {known.expname})"
        if known is member:
            kept.append(member)
        elif known.exptype == member.exptype:
            repeated.append(f"{member.expname}{also}")
        else:
            raise AssociationError(
                f"{label} lists {member.expname}{also} twice, as {known.exptype} and as "
                f"{member.exptype}, but an exposure cannot be subtracted from itself; to use rolls "
                "as references of each other, list one product for each roll, in which that roll "
                "is science and the others are psf"
            )
    if repeated:
        names = shorten(", ".join(dict.fromkeys(repeated)), 1000, placeholder=" ...")
        text = "%s: %s lists more than once what is used once: %s"
        log.warning(text, path.name, label, names)
    return tuple(kept)


def _file(member: Member) -> Any:
    """Return what all names of one file have in common, links included."""
    try:
        state = member.path.stat()
    except OSError:
        return os.path.realpath(member.path)
    return (state.st_dev, state.st_ino) if state.st_ino else os.path.realpath(member.path)


def _file_name_part(what: str, text: str, given: str = "") -> str:
    """Return `text` stripped, having made sure that it can stand in a file name.

    It may be a part of what was `given`, which the error then shows.
    """
    text = text.strip()
    given = given.strip() or text
    printable = text and given.isprintable()
    if not printable or re.search(r"[/\\]", text) or text.startswith("."):
        raise AssociationError(
            f"{what} is {given[:300]!r}, expected a text that can be part of a file name"
        )
    if len(text.encode()) > LONGEST:
        raise AssociationError(f"{what} has {len(text.encode())} bytes, expected at most {LONGEST}")
    return text


def _check_files(folder: Path, products: Sequence[Product]) -> None:
    """Raise unless every science and psf member is a file; list all that are missing."""
    used = {m.expname: m.path for p in products for m in p.used}
    missing = [name for name, file in used.items() if not os.path.exists(file)]
    if missing:
        count = f"{len(missing)} of {len(used)} members missing"
        raise AssociationError(f"{count} (looked for relative to {folder}): {', '.join(missing)}")
    for name, file in used.items():
        if not os.path.isfile(file):
            what = "a folder" if os.path.isdir(file) else "not a regular file"
            raise AssociationError(f"member {name} is {what}, expected a FITS file")


def _check_unique(products: Sequence[Product], asn_id: str) -> None:
    """Raise where two outputs would have one file name.

    Names that differ only by case are the same: some file systems see no difference.
    """
    check_names([p.name for p in products])
    by_root: dict[str, tuple[Path, str]] = {}
    science_in: dict[Path, str] = {}
    for index, product in enumerate(products):
        label = _label(product, index)
        for member in product.used:
            file = member.path.resolve()
            root = _root(member, asn_id)
            known, expname = by_root.setdefault(root.casefold(), (file, member.expname))
            if known != file:
                raise AssociationError(
                    f"members {expname} and {member.expname} differ, but their products "
                    "would have the same names; expected distinct file names"
                )
        for member in product.science:
            other = science_in.setdefault(member.path.resolve(), label)
            if other != label:
                raise AssociationError(
                    f"{member.expname} is science in {other} and in {label}, whose psfsub "
                    "would have the same name; expected it in one product"
                )


def _root(member: Member, asn_id: str) -> str:
    root = exposure_root(member.expname)
    length = len(f"{root}_{asn_id}".encode())
    if not root or length > LONGEST:
        found = f"{length} bytes with the asn_id" if root else "nothing before its suffix"
        raise AssociationError(
            f"the file name of member {member.expname} has {found}, "
            f"expected 1 to {LONGEST} to name products after"
        )
    return root


def _label(product: Product, index: int) -> str:
    return f"product {index + 1 if product.name is None else product.name}"


def _kind(value: Any) -> str:
    kinds = ((list, "a list"), (str, "a text"), (bool, "true or false"), (int | float, "a number"))
    if value is None or value == []:
        return "null" if value is None else "an empty list"
    return next((name for kind, name in kinds if isinstance(value, kind)), "an object")
