"""Names of products, as the association or the JWST archive gives them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from gpucoron.errors import AssociationError
from gpucoron.io.association import Association
from gpucoron.io.exposures import ExposureMeta
from gpucoron.io.names import LONGEST, check_names, program_id, slug

__all__ = ["product_names", "standard_product_name"]

log = logging.getLogger("gpucoron")


def standard_product_name(association: Association, meta: ExposureMeta) -> str:
    """Build the name that the JWST archive would give a product.

    It is ``jw<program>-<asn_id>_<target>_<instrument>_<elements>[-<subarray>]`` in lower case, the
    elements being filter and pupil in alphabetical order; the coronagraph mask stands in where
    there is neither pupil nor subarray. `meta` is of the product's first science exposure; its
    program and target are used where the association has none.
    """
    program = association.program or program_id(meta.program) or "00000"
    target = association.target or meta.target
    target = f"t{target.zfill(3)}" if target and target.isdigit() else slug(target) or "t000"
    elements = sorted(filter(None, map(slug, (meta.filter, meta.pupil))))
    subarray = slug(meta.subarray)
    if not slug(meta.pupil) and not subarray:
        elements.append(slug(meta.coronmsk))
    optics = "-".join(filter(None, [*elements, subarray])) or "clear"
    instrument = slug(meta.instrument) or "unknown"
    return f"jw{program}-{association.asn_id}_{target}_{instrument}_{optics}".lower()


def product_names(association: Association, metas: Sequence[ExposureMeta]) -> tuple[str, ...]:
    """Return the name of every product, building those that the association leaves out.

    `metas` has the metadata of each product's first science exposure.

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
                raise AssociationError(
                    f"{association.path}: product {number} has no name, and the standard one "
                    f"has {len(name)} characters; expected a name of at most {LONGEST}"
                )
            text = "%s: product %d has no name; using the standard one, %s"
            level = logging.WARNING if association.in_file else logging.INFO  # a list has no names
            log.log(level, text, association.path.name, number, name)
        names.append(name)
    try:
        check_names(names)
    except AssociationError as problem:
        raise AssociationError(f"{association.path}: {problem.args[0]}") from problem
    return tuple(names)
