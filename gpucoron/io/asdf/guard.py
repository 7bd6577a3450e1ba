"""Check an ASDF file's claims before the asdf package opens it.

That package takes sizes and references at their word: a block of 100 bytes may claim terabytes, or
be bzip2 that unfolds to them; aliases of aliases multiply; an array or a reference may name a file
or an address elsewhere, which would be opened; a transform may claim a billion axes.
"""

from __future__ import annotations

import bz2
import functools
import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

__all__ = [
    "AsdfTooComplex",
    "UnsupportedAsdf",
    "asdf_package",
    "check_events",
    "checked",
    "open_asdf",
    "tagged_tree",
]

_MAX_DEPTH = 200  # levels; libyaml's composer overflows the C stack at some ten thousand
_MAX_NODES = 100_000  # with every alias written out; an exposure of JWST has some 2000
_MAX_TRANSFORMS = 5000  # an exposure has some 50
_MAX_DEGREE = 64  # of a polynomial: astropy makes an object of each coefficient
_MAX_INTEGER = 100_000  # numbers of axes, and pixels, in transforms and frames
_MAX_BYTES = 64 << 20  # of all blocks, decompressed; a WCS has some thousand
_END = re.compile(rb"\r?\n\.\.\.(?:\r?\n|$)")
_SOURCE = re.compile(r"fits:[\w, -]*")  # an HDU of the file around the ASDF extension
_MAGIC = b"\xd3BLK"
_HEAD = struct.Struct(">I4sQQQ16s")  # flags, compression, allocated, used, data size, checksum
_STREAMED = 1
_DECOMPRESSORS: dict[bytes, Any] = {b"zlib": zlib.decompressobj, b"bzp2": bz2.BZ2Decompressor}


class UnsupportedAsdf(Exception):
    """Damaged, a reference to another file, or a compression that is not supported."""


class AsdfTooComplex(Exception):
    """Too deep or too large, perhaps only after decompression or with its aliases written out."""


@contextmanager
def open_asdf(content: bytes, *, lazy_tree: bool = True) -> Iterator[Mapping[str, Any]]:
    """Open an ASDF file with the asdf package after checking it, without warnings.

    With `lazy_tree` entries become objects when they are used, within the block: links to arrays
    in FITS extensions, which asdf cannot follow, and entries of unknown types then do no harm.
    Without it the tree is plain dicts and lists.

    Raises
    ------
    Exception
        As `checked`, and whatever asdf, gwcs and astropy raise for its contents.
    """
    safe = checked(content)
    asdf = asdf_package()

    with warnings.catch_warnings(), asdf.config_context() as config:
        warnings.simplefilter("ignore")
        config.validate_on_read = False  # 0.6 s for its schemas; converters check what they use
        with asdf.open(io.BytesIO(safe), memmap=False, lazy_load=False, lazy_tree=lazy_tree) as f:
            yield f.tree


@functools.cache
def asdf_package(all_packages: bool = True) -> ModuleType:
    """Import asdf with the extensions and schemas of the packages that it finds.

    All at once, and before any `asdf.config_context`, which would forget them at its end: asdf
    looks for them in each file anew. Their manifests are parsed by libyaml, not by PyYAML's own
    parser, which takes half a second for them.

    In a process of gpucoron's own those of stpipe can be left out: it has none for data, but
    imports crds and what that needs to reach its server. A user's process may want them for jwst.
    """
    import asdf
    import yaml

    config, slow, found = asdf.get_config(), yaml.SafeLoader, asdf._entry_points.entry_points
    try:
        yaml.SafeLoader = getattr(yaml, "CSafeLoader", slow)
        if not all_packages:
            asdf._entry_points.entry_points = lambda **group: [
                entry for entry in found(**group) if entry.module.partition(".")[0] != "stpipe"
            ]
        _ = config.extensions, config.resource_manager
    finally:
        yaml.SafeLoader, asdf._entry_points.entry_points = slow, found
    return asdf


def checked(content: bytes) -> bytes:
    """Return an ASDF file with the same tree and uncompressed blocks, after checking both.

    Raises
    ------
    AsdfTooComplex
        Nested deeper than 200 levels, or more entries, transforms or bytes than any WCS has.
    UnsupportedAsdf
        No YAML, references to other files, damaged blocks, or a compression other than zlib, bzp2.
    """
    end = _end_of_text(content)
    tagged_tree(content)
    return b"".join([content[:end], *_plain_blocks(content, end)])


@functools.lru_cache(maxsize=32)
def tagged_tree(content: bytes) -> dict[str, Any]:
    """Return the tree of an ASDF file as dicts and lists that know their tags; errors as `checked`.

    Nothing but asdf's types for tagged values is constructed.
    """
    import asdf.util
    import yaml

    text = content[: _end_of_text(content)]
    try:
        check_events(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        tree = asdf.util.load_yaml(io.BytesIO(text), tagged=True)
    except (yaml.YAMLError, ValueError, TypeError) as problem:  # numbers, dates, keys
        raise UnsupportedAsdf(f"YAML: {' '.join(str(problem).split())}") from problem
    if not isinstance(tree, dict):
        raise UnsupportedAsdf("a tree that is no mapping")
    _check_tree(tree)
    return tree


def _end_of_text(content: bytes) -> int:
    end = _END.search(content)
    if end is None:
        raise UnsupportedAsdf("no end of the YAML text")
    return end.end()


def check_events(events) -> None:
    """Check what a parser of YAML finds before anything is made of it; raise as `checked`."""
    from yaml.events import CollectionEndEvent, CollectionStartEvent, ScalarEvent

    depth = 0
    for count, event in enumerate(events):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise AsdfTooComplex(f"more than {_MAX_DEPTH} levels of nesting")
        if count > 2 * _MAX_NODES:
            raise AsdfTooComplex(f"more than {_MAX_NODES} entries")
        if isinstance(event, ScalarEvent) and event.value == "<<":  # merges multiply
            raise UnsupportedAsdf("the key <<")


def _check_tree(tree) -> None:
    """Walk the tree, aliases written out, without recursion."""
    from asdf.tagged import get_tag

    nodes, transforms = 1, 0
    stack = [(tree, 1, False)]
    while stack:
        node, depth, counts = stack.pop()  # counts: an integer may be a number of axes
        if isinstance(node, dict):
            children = list(node.values())
        else:
            children = list(node) if isinstance(node, list) else []
        tag = get_tag(node) or ""
        nodes += len(children)
        transforms += "/transform/" in tag
        for limit, found, what in (
            (_MAX_DEPTH, depth, "levels of nesting"),
            (_MAX_NODES, nodes, "entries"),
            (_MAX_TRANSFORMS, transforms, "transforms"),
        ):
            if found > limit:
                raise AsdfTooComplex(f"more than {limit} {what}")
        if counts and isinstance(node, int) and abs(node) > _MAX_INTEGER:
            raise AsdfTooComplex(f"an integer of more than {_MAX_INTEGER} in a transform")
        if isinstance(node, dict):
            _check_mapping(node, tag)
        counts = "/transform/" in tag or ":gwcs/" in tag or counts and isinstance(node, list)
        stack += [(child, depth + 1, counts) for child in children]


def _check_mapping(node: dict, tag: str) -> None:
    """Check what asdf and astropy would take at its word."""
    if "$ref" in node:
        raise UnsupportedAsdf("the key $ref")
    if max(_shape(node.get("coefficients")), default=0) > _MAX_DEGREE:
        raise AsdfTooComplex(f"a polynomial of degree {_MAX_DEGREE} or more")
    if "/ndarray-" in tag:
        source = node.get("source", 0)
        if not isinstance(source, int) and not _SOURCE.fullmatch(str(source)):
            raise UnsupportedAsdf(f"an array in another file ({str(source)[:60]})")
        if isinstance(source, int) and math.prod(_shape(node)) > _MAX_BYTES:  # strides of 0
            raise AsdfTooComplex(f"an array of shape {_shape(node)}")


def _shape(array) -> list[int]:
    """Return the shape of an array in the tree; of numbers in lists the first side."""
    if isinstance(array, dict) and isinstance(array.get("shape"), list):
        return [n for n in array["shape"] if isinstance(n, int)]
    numbers = array.get("data") if isinstance(array, dict) else array
    return [len(numbers)] if isinstance(numbers, list) else []


def _plain_blocks(content: bytes, place: int) -> Iterator[bytes]:
    total = 0
    for kind, length, data in _blocks(content, place):
        data = _decompressed(kind, data, length)
        total += len(data)
        if total > _MAX_BYTES:
            raise AsdfTooComplex(f"blocks of more than {_MAX_BYTES >> 20} MiB")
        head = _HEAD.pack(0, bytes(4), len(data), len(data), len(data), bytes(16))
        yield _MAGIC + struct.pack(">H", _HEAD.size) + head + data


def _blocks(content: bytes, place: int) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield compression, uncompressed size and contents of each block."""
    place = content.find(_MAGIC, place)
    while place >= 0 and content[place : place + 4] == _MAGIC:
        size = int.from_bytes(content[place + 4 : place + 6], "big")
        start = place + 6 + size
        if size < _HEAD.size or start > len(content):
            raise UnsupportedAsdf("a block is cut short")
        flags, kind, allocated, used, length, _ = _HEAD.unpack_from(content, place + 6)
        if flags & _STREAMED:  # to the end of the file
            allocated = used = length = len(content) - start
        if used > allocated or start + used > len(content):
            raise UnsupportedAsdf("a block is cut short")
        yield kind.strip(b"\0"), length, content[start : start + used]
        place = start + allocated


def _decompressed(kind: bytes, data: bytes, length: int) -> bytes:
    if not kind:
        return data
    if kind not in _DECOMPRESSORS:
        raise UnsupportedAsdf(f"a block compressed with {ascii(kind)[2:-1]}, expected zlib or bzp2")
    if length > _MAX_BYTES:
        raise AsdfTooComplex(f"a block of more than {_MAX_BYTES >> 20} MiB")
    try:
        found = _DECOMPRESSORS[kind]().decompress(data, length + 1)
    except (zlib.error, OSError) as problem:
        raise UnsupportedAsdf(f"a compressed block: {problem}") from problem
    if len(found) != length:
        raise UnsupportedAsdf("a compressed block of another size than its header states")
    return found
