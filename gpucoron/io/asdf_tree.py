"""The ASDF extension: a GWCS passed on as it was read, beside a tree that fits the new product.

The YAML text of a GWCS, and the binary blocks behind it, go from the input's blob to the output's
unread: reading and writing them through asdf and gwcs takes 100 ms and more an exposure, this a few
milliseconds. Only the small rest of ``meta`` is parsed. No ``_fits_hash`` is written, so that
readers take keywords from the FITS headers.
"""

from __future__ import annotations

import io
import json
import logging
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gpucoron.io.asdf_guard import opened
from gpucoron.io.asdf_nodes import check_yaml
from gpucoron.io.keywords import keywords

__all__ = ["ArrayLink", "asdf_blob", "meta_from_headers", "wcs_blob"]

log = logging.getLogger("gpucoron")

ArrayLink = tuple[str, str, np.dtype, tuple[int, ...]]  # attribute, EXTNAME, dtype, shape

_TAG = "tag:stsci.edu:asdf/"
_TOP = re.compile(r"^(?=[^\s#%.\-])", re.MULTILINE)  # a key in the first column starts an entry
_SECOND = re.compile(r"^  (?=[^\s\-])", re.MULTILINE)
_ANCHOR = re.compile(r"(?:^|[\s,\[{])&(\w+)")
_ALIAS = re.compile(r"(?:^|[\s,\[{])\*(\w+)")
_HEAD = (
    "#ASDF 1.0.0\n#ASDF_STANDARD 1.5.0\n%YAML 1.1\n%TAG ! tag:stsci.edu:asdf/\n"
    "--- !core/asdf-1.1.0\n"
)
_BLOCK_MAGIC = b"\xd3BLK"


class _Unusual(Exception):
    """The blob is not laid out as asdf writes it; go through the asdf package instead."""


# ---- taking a blob apart


def _entries(text: str, pattern: re.Pattern) -> list[tuple[str, str]]:
    """Split block-style YAML into (key, text of the entry)."""
    starts = [m.start() for m in pattern.finditer(text)] + [len(text)]
    parts = [text[a:b] for a, b in zip(starts, starts[1:], strict=False)]
    return [(part.strip().split(":", 1)[0], part) for part in parts]


def _blocks(data: bytes) -> bytes:
    """Return the binary blocks at the start of `data`, without the index behind them."""
    start = data.find(_BLOCK_MAGIC)
    if start < 0:
        return b""
    place = start
    while data[place : place + 4] == _BLOCK_MAGIC:
        (size,) = struct.unpack_from(">H", data, place + 4)
        flags, _, allocated = struct.unpack_from(">I4sQ", data, place + 6)
        if flags & 1:  # streamed: reaches to the end
            return data[start:]
        place += 6 + size + allocated
    return data[start:place]


def _take_apart(blob: bytes):
    """Return head, {kept top-level entries}, meta without wcs, wcs text, blocks."""
    end = re.search(rb"^\.\.\.(\r?\n)?", blob, re.MULTILINE)
    opening = re.search(rb"^---[^\n]*\n", blob, re.MULTILINE)
    if end is None or opening is None:
        raise _Unusual
    text = blob[opening.end() : end.start()].decode("utf-8")
    top = dict(_entries(text, _TOP))
    meta = top.get("meta", "")
    if not meta.startswith("meta:\n"):
        raise _Unusual
    second = dict(_entries(meta[len("meta:\n") :], _SECOND))
    wcs = second.pop("wcs", "")
    rest = "".join(part for part in second.values() if "!core/ndarray" not in part)
    kept = [top[k] for k in ("asdf_library", "history", "cal_logs") if k in top]
    for part in (wcs, rest, *kept):  # each must make sense by itself
        if not set(_ALIAS.findall(part)) <= set(_ANCHOR.findall(part)):
            raise _Unusual
    if wcs and not wcs.startswith("  wcs: !<"):
        raise _Unusual
    head = blob[: opening.end()].decode("utf-8")
    return head, kept, rest, wcs, _blocks(blob[end.end() :])


def wcs_blob(wcs: Any) -> bytes:
    """Return a blob that holds one GWCS, written by the asdf package."""
    import asdf

    buffer = io.BytesIO()
    asdf.AsdfFile({"meta": {"wcs": wcs}}).write_to(buffer)
    return buffer.getvalue()


def _rewritten(blob: bytes) -> bytes:
    """Return a blob of the same GWCS in the layout that asdf writes today; b"" for no GWCS."""
    with opened(blob, lazy=True) as tree:
        wcs = tree.get("meta", {}).get("wcs")
        return wcs_blob(wcs) if wcs is not None else b""


# ---- putting one together


def meta_from_headers(headers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the nested metadata that the keywords of `headers` (EXTNAME, "" for PRIMARY) mean."""
    meta: dict[str, Any] = {}
    for row in keywords():
        value = headers.get(row.hdu, {}).get(row.keyword)
        if isinstance(value, str | bool | int | float):
            *parents, last = row.attribute.split(".")
            place = meta
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
    return meta


def _link(tag: str, link: ArrayLink) -> str:
    """Return the entry that says which HDU holds an array."""
    attribute, name, dtype, shape = link
    if dtype.names is None:
        kind = dtype.name
    else:
        columns = (
            f"  - {{byteorder: big, datatype: {_column(dtype[n])}, name: {_quoted(n)}}}\n"
            for n in dtype.names
        )
        kind = "\n" + "".join(columns).rstrip("\n")
    return (
        f"{attribute}: !core/ndarray-{tag}\n  source: fits:{name},1\n  datatype: {kind}\n"
        f"  byteorder: big\n  shape: [{', '.join(map(str, shape))}]\n"
    ).replace(": \n", ":\n")


def _quoted(name: str) -> str:
    """Return a column's name in YAML, in quotes unless it is a plain word."""
    return name if re.fullmatch(r"[A-Za-z_]\w*", name) else json.dumps(name)


def _column(dtype):
    if dtype.kind == "S":
        return f"[ascii, {dtype.itemsize}]"
    return "int8" if dtype.kind == "b" else dtype.name


def _merge(node, values, prefix, known):
    """Return the mapping node with its FITS keywords replaced by `values`."""
    from yaml import MappingNode, ScalarNode
    from yaml.representer import SafeRepresenter

    kept = {}
    for key, value in node.value if node is not None else []:
        if not isinstance(key, ScalarNode):  # YAML allows lists for keys
            continue
        path = prefix + key.value
        if path not in known:
            kept[key.value] = value
    pairs = {}
    for name in [*kept, *(n for n in values if n not in kept)]:
        old = kept.get(name)
        if isinstance(values.get(name), dict):
            old = old if isinstance(old, MappingNode) else None
            pairs[name] = _merge(old, values[name], f"{prefix}{name}.", known)
        elif name in values:
            pairs[name] = SafeRepresenter().represent_data(values[name])
        elif isinstance(old, MappingNode):
            pairs[name] = _merge(old, {}, f"{prefix}{name}.", known)
        else:
            pairs[name] = old
    items = [(ScalarNode("tag:yaml.org,2002:str", name), value) for name, value in pairs.items()]
    flow = not any(isinstance(v, MappingNode) for v in pairs.values())
    return MappingNode("tag:yaml.org,2002:map", items, flow_style=flow)


def _composed(rest: str):
    """Return the YAML node of the entries of meta; None where there are none."""
    import yaml

    if not rest.strip():
        return None
    text = f"%TAG ! {_TAG}\n---\n{rest}"
    check_yaml(text)  # which the next line would not survive
    try:
        node = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as problem:
        raise _Unusual from problem
    if not isinstance(node, yaml.MappingNode):
        raise _Unusual
    return node


def _meta_text(node, values: Mapping[str, Any]) -> str:
    """Return the block-style entries of meta: `values`, and what `node` has beyond keywords."""
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    merged = _merge(node, values, "", {row.attribute for row in keywords()})
    if not merged.value:
        return "meta:\n"
    merged.flow_style = False
    root = yaml.MappingNode(
        "tag:yaml.org,2002:map",
        [(yaml.ScalarNode("tag:yaml.org,2002:str", "meta"), merged)],
        flow_style=False,
    )
    text = yaml.serialize(root, Dumper=dumper, tags={"!": _TAG}, explicit_start=True, width=100)
    return text.split("---\n" if "---\n" in text else "--- ", 1)[1]


def _parts(source: bytes, keep_metadata: bool):
    """Return what a product takes from `source`: head, entries, node of meta, wcs text, blocks."""
    try:
        head, kept, rest, wcs, blocks = _take_apart(source)
        node = _composed(rest) if keep_metadata else None
    except _Unusual:
        rewritten = _rewritten(source)
        if not rewritten:
            return _HEAD, [], None, "", b""
        head, kept, rest, wcs, blocks = _take_apart(rewritten)
        node = _composed(rest) if keep_metadata else None
    if not keep_metadata:
        kept = [part for part in kept if not part.startswith("cal_logs")]
    return head, kept, node, wcs, blocks


def asdf_blob(
    source: bytes | None,
    links: Iterable[ArrayLink],
    values: Mapping[str, Any],
    *,
    keep_metadata: bool = True,
) -> bytes:
    """Return the content of the ASDF extension of a product.

    Parameters
    ----------
    source : bytes, optional
        The blob whose GWCS (and metadata without a keyword) the product keeps.
    links : iterable of (attribute, EXTNAME, dtype, shape)
        The product's arrays.
    values : mapping
        Metadata, from `meta_from_headers`.
    keep_metadata : bool
        Whether metadata of `source` beyond FITS keywords, and its logs, are kept.

    Returns
    -------
    bytes
        An ASDF file.
    """
    head, kept, node, wcs, blocks = _HEAD, [], None, "", b""
    if source:
        try:
            head, kept, node, wcs, blocks = _parts(source, keep_metadata)
        except Exception as problem:  # whatever asdf makes of it; the pixels do not depend on it
            log.warning(
                "the ASDF extension of an input cannot be read, so that products do not "
                "inherit it: %s %s",
                type(problem).__name__,
                str(problem).strip().split("\n")[0][:200],
            )
    tag = "1.1.0" if "#ASDF_STANDARD 1.6" in head else "1.0.0"
    text = head + "".join(kept) + "".join(_link(tag, link) for link in links)
    meta = _meta_text(node, values) + wcs
    text += ("meta: {}\n" if meta == "meta:\n" else meta) + "...\n"
    return text.encode("utf-8") + blocks
