"""The ASDF extension of a product: the input's as it is, or a small tree with a GWCS.

Neither has a ``_fits_hash`` that fits the product, so that stdatamodels takes arrays and keywords
from the FITS file.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gpucoron.io.asdf.guard import asdf_package, checked, tagged_tree
from gpucoron.io.keywords import keywords
from gpucoron.io.second_process import in_second_process
from gpucoron.io.wcs.exposure import read_wcs, reason
from gpucoron.io.wcs.tan import OutputWcs

__all__ = ["ArrayLink", "asdf_extension", "meta_from_headers", "write_asdf"]

log = logging.getLogger("gpucoron")

_ENTRY = re.compile(rb"  - .*\n(?:    .*\n)*")
_EXTENSIONS = re.compile(rb"(?m)^history:\n  extensions:\n((?:%b)+)" % _ENTRY.pattern)

ArrayLink = tuple[str, str, np.dtype, tuple[int, ...]]  # attribute, EXTNAME, dtype, shape


def asdf_extension(
    source: bytes | OutputWcs | None, links: Iterable[ArrayLink], values: Mapping[str, Any]
) -> bytes:
    """Return the content of the ASDF extension of a product.

    Parameters
    ----------
    source : bytes, OutputWcs or None
        The ASDF extension of the input, which is passed on as it is if its arrays are those of the
        product and it has no keywords that the headers lack, and else gives its GWCS (none, with a
        warning, where it cannot be read); or the WCS of the product.
    links : iterable of (attribute, EXTNAME, dtype, shape)
        The product's arrays.
    values : mapping
        Metadata, from `meta_from_headers`.
    """
    return in_second_process(_asdf_extension, source, list(links), values)


def _asdf_extension(source, links, values) -> bytes:
    arrays = {link[0]: _array(*link[1:]) for link in links}
    wcs = None
    try:
        if isinstance(source, OutputWcs):
            wcs = source.to_gwcs()
        elif isinstance(source, bytes):
            tree = tagged_tree(source)
            if _same_arrays(tree, arrays.values()) and not _removed(tree.get("meta"), values):
                checked(source)
                return source
            wcs = read_wcs(source, "input").gwcs
        if wcs is not None:
            return write_asdf({**arrays, "meta": {**values, "wcs": wcs}})
    except Exception as problem:  # whatever asdf makes of it; the pixels do not depend on it
        log.warning(
            "the ASDF extension of an input cannot be read, so that products do not inherit it: %s",
            reason(problem),
        )
    return write_asdf({**arrays, "meta": dict(values)})


def _same_arrays(tree, arrays: Iterable[Mapping]) -> bool:
    """Return whether the arrays that a tree links to are exactly `arrays`."""
    found, nodes = {}, [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            nodes += node.values()
            if isinstance(node.get("source"), str):
                found[node["source"]] = dict(node)
        elif isinstance(node, list):
            nodes += node
    return found == {array["source"]: dict(array) for array in arrays}


def _removed(meta, values: Mapping[str, Any]) -> bool:
    """Return whether the metadata have a keyword that the headers no longer have."""

    def get(tree, attribute):
        for name in attribute.split("."):
            tree = tree.get(name) if isinstance(tree, dict) else None
        return tree

    attributes = (row.attribute for row in keywords())
    return any(get(meta, a) is not None and get(values, a) is None for a in attributes)


def _array(name: str, dtype: np.dtype, shape: tuple[int, ...]):
    """Return the entry that says which HDU holds an array."""
    from asdf.tagged import TaggedDict

    columns = []
    for column in dtype.names or ():
        size, kind = dtype[column].itemsize, dtype[column].kind
        stored = {"S": ["ascii", size], "b": "int8"}.get(kind, dtype[column].name)
        columns.append({"byteorder": "big", "datatype": stored, "name": column})
    entry: dict[str, Any] = {"source": f"fits:{name},1", "datatype": columns or dtype.name}
    entry |= {"byteorder": "big", "shape": [int(n) for n in shape]}
    return TaggedDict(entry, "tag:stsci.edu:asdf/core/ndarray-1.1.0")


def write_asdf(tree: Mapping[str, Any]) -> bytes:
    """Return a tree as an ASDF file, the same bytes for the same tree.

    asdf lists the extensions that it used in the order of a set, which is another in each process.
    """
    buffer = io.BytesIO()
    asdf_package().AsdfFile(dict(tree)).write_to(buffer)
    content = buffer.getvalue()
    if found := _EXTENSIONS.search(content):
        entries = sorted(_ENTRY.findall(found[1]))
        content = content[: found.start(1)] + b"".join(entries) + content[found.end(1) :]
    return content


def meta_from_headers(headers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the nested metadata that the keywords of `headers` (EXTNAME, "" for PRIMARY) mean."""
    meta: dict[str, Any] = {}
    for row in keywords():
        value = headers.get(row.hdu, {}).get(row.keyword)
        if isinstance(value, int) and abs(value) >= 2**63:  # more than asdf writes
            continue
        if isinstance(value, str | bool | int | float):
            *parents, last = row.attribute.split(".")
            place = meta
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
    return meta
