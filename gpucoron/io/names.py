"""What products are called."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.errors import AssociationError

if TYPE_CHECKING:
    from gpucoron.io.association import Association
    from gpucoron.io.exposures import ExposureMeta

__all__ = [
    "check_names", "exposure_root", "product_names", "program_id", "standard_product_name",
    "text_or_none",
]

log = logging.getLogger("gpucoron")

LONGEST = 200  # bytes; file systems allow 255, suffix and name while being written included
_NOTHING = {"", "none", "null", "n/a", "noprogram", "full"}


def exposure_root(path: str | Path) -> str:
    """Return the file name without ``.fits`` and without ``_calints`` or ``_cal``.

    Products of one exposure are named ``<root>_<asn_id>_<suffix>.fits``.
    """
    return re.sub(r"(_calints|_cal)?(\.fits)?$", "", Path(path).name, count=1)


def standard_product_name(association: Association, meta: ExposureMeta) -> str:
    """Build the name that the JWST archive would give a product.

    Parameters
    ----------
    association : Association
        Gives program, asn_id and target.
    meta : ExposureMeta
        Of the product's first science exposure. Gives instrument, optical elements and subarray,
        and program and target where the association has none.

    Returns
    -------
    str
        ``jw<program>-<asn_id>_<target>_<instrument>_<elements>[-<subarray>]`` in lower case, the
        elements being filter and pupil in alphabetical order; the coronagraph mask stands in
        where there is neither pupil nor subarray.
    """
    program = association.program or program_id(meta.program) or "00000"
    target = association.target or meta.target
    target = f"t{target.zfill(3)}" if target and target.isdigit() else _slug(target) or "t000"
    elements = sorted(filter(None, map(_slug, (meta.filter, meta.pupil))))
    subarray = _slug(meta.subarray)
    if not _slug(meta.pupil) and not subarray:
        elements.append(_slug(meta.coronmsk))
    optics = "-".join(filter(None, [*elements, subarray])) or "clear"
    instrument = _slug(meta.instrument) or "unknown"
    return f"jw{program}-{association.asn_id}_{target}_{instrument}_{optics}".lower()


def product_names(association: Association, metas: Sequence[ExposureMeta]) -> tuple[str, ...]:
    """Return the name of every product, building those that the association leaves out.

    Parameters
    ----------
    association : Association
    metas : sequence of ExposureMeta
        One for each product: that of its first science exposure.

    Returns
    -------
    tuple of str

    Raises
    ------
    AssociationError
        Two products have the same name, or one is too long.
    """
    names = []
    for number, (product, meta) in enumerate(zip(association.products, metas, strict=True), 1):
        name = product.name
        if name is None:
            name = standard_product_name(association, meta)
            if len(name) > LONGEST:
                raise AssociationError(f"{association.path}: product {number} has no name, and the "
                                       f"standard one has {len(name)} characters; expected a name "
                                       f"of at most {LONGEST}")
            log.warning("%s: product %d has no name; using the standard one, %s",
                        association.path.name, number, name)
        names.append(name)
    check_names(association.path, names)
    return tuple(names)


def check_names(path: Path, names: Sequence[str | None]) -> None:
    """Raise AssociationError where two names are the same, whatever their case."""
    seen: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if name is None:
            continue
        first = seen.setdefault(name.lower(), number)
        if first != number:
            raise AssociationError(f"{path}: products {first} and {number} would both be named "
                                   f"{name}; expected a name of its own for each")


def text_or_none(value: Any) -> str | None:
    """Return a text or number as text; None where it says nothing."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    text = str(value).strip()
    return None if text.lower() in _NOTHING else text


def program_id(value: Any) -> str | None:
    """Return a programme's number with five digits, or its other name; None for nothing."""
    text = text_or_none(value)
    return text.zfill(5) if text and text.isdigit() else _slug(text) or None


def _slug(value: str | None) -> str:
    """Return `value` in lower case without what has no place in a file name; "" for nothing."""
    text = (value or "").strip().lower()
    return "" if text in _NOTHING else re.sub(r"[^a-z0-9_+.]", "", text)
