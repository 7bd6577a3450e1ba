"""Reading an ASDF file as plain nodes: tags, texts, lists, mappings and arrays; no objects.

The asdf package builds objects, and takes more than a second to load the extensions for it. Nothing
here constructs anything but lists, dicts and texts, in time and memory proportional to the file:
an alias is one more reference to the same node.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

__all__ = [
    "HEAD",
    "MAGIC",
    "MAX_DEPTH",
    "Block",
    "Node",
    "TooDeep",
    "Unusual",
    "array",
    "block_headers",
    "blocks",
    "check_yaml",
    "number",
    "read_nodes",
]

MAX_DEPTH = 200  # libyaml's own composer overflows the C stack at some ten thousand
_MAX_NODES = 1_000_000  # with every alias written out
_OWN_SOURCE = re.compile(r"-?\d{1,9}|fits:[\w, -]*")
_MAX_INLINE = 10_000  # numbers in the text; aliases can make many of few
MAGIC = b"\xd3BLK"
HEAD = struct.Struct(">I4sQQQ16s")  # flags, compression, allocated, used, data size, checksum
_STREAMED = 1
_DTYPES = {
    "float64": "f8",
    "float32": "f4",
    "int64": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint64": "u8",
    "uint32": "u4",
    "uint16": "u2",
    "uint8": "u1",
}


class Unusual(Exception):
    """Not laid out as the JWST pipeline writes it; the asdf package may know better."""


class TooDeep(Exception):
    """Nested so deeply that parsers and evaluators would fall over it."""


class Node(NamedTuple):
    """A YAML node: its tag (None for a plain one), and a text, list of nodes, or dict of nodes."""

    tag: str | None
    value: str | list | dict

    def get(self, key: str) -> Node | None:
        """Return an entry of a mapping; None where it is missing or this is no mapping."""
        return self.value.get(key) if isinstance(self.value, dict) else None

    @property
    def items(self) -> list[Node]:
        """The entries of a list; Unusual where this is none."""
        if not isinstance(self.value, list):
            raise Unusual("expected a list")
        return self.value

    @property
    def null(self) -> bool:
        """True for YAML's null."""
        return self.tag is None and self.value in ("null", "~", "", "Null", "NULL")


def _events(text: str | bytes) -> Iterator:
    import yaml

    depth = 0
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    too_deep = TooDeep(f"more than {MAX_DEPTH} levels of nesting")
    try:
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.events.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise too_deep
            elif isinstance(event, yaml.events.CollectionEndEvent):
                depth -= 1
            yield event
    except yaml.YAMLError as problem:
        # The parser reads ahead, and may meet a limit of its own before it tells of any level.
        if _open_brackets(text) > MAX_DEPTH:
            raise too_deep from problem
        raise


def _open_brackets(text: str | bytes) -> int:
    """Return how many brackets and braces are open at most, those in quotes counted, too."""
    data = text.encode("utf-8", "replace") if isinstance(text, str) else text
    data = np.frombuffer(data, np.uint8)
    opening = (data == ord("[")) | (data == ord("{"))
    closing = (data == ord("]")) | (data == ord("}"))
    depths = np.cumsum(opening.astype(np.int8) - closing, dtype=np.int32)
    return int(depths.max(initial=0))


def check_yaml(text: str | bytes) -> None:
    """Raise where a YAML text must not be given to a parser that recurses and follows references.

    A text that is no YAML passes: whoever parses it will say so.

    Raises
    ------
    TooDeep
        Nested too deeply, too large with all its aliases written out, or holding itself.
    Unusual
        References to other files.
    """
    from yaml import YAMLError

    try:
        _measure(_events(text))
    except YAMLError:
        pass


def _measure(stream) -> None:
    """Count the nodes with every alias written out, and look at what arrays refer to."""
    from yaml import events

    sizes: dict[str, int] = {}  # of what has an anchor and is complete
    stack: list[list] = [[None, "", 0, ""]]  # anchor, tag, size, scalar seen last
    for event in stream:
        if isinstance(event, events.CollectionStartEvent):
            sizes.pop(event.anchor, None)
            stack.append([event.anchor, event.tag or "", 1, ""])
            continue
        if isinstance(event, events.CollectionEndEvent):
            anchor, _, size, _ = stack.pop()
        elif isinstance(event, events.ScalarEvent):
            anchor, size = event.anchor, 1
            _check_scalar(event, stack[-1])
            stack[-1][3] = event.value
        elif isinstance(event, events.AliasEvent):
            anchor, size = None, sizes.get(event.anchor, 0)
            if not size:
                raise TooDeep("an alias of what is not complete")
            if stack[-1][3] == "source":
                raise Unusual("an alias for a source")
        else:
            continue
        if anchor:
            sizes[anchor] = size
        stack[-1][2] += size
        if stack[-1][2] > _MAX_NODES:
            raise TooDeep(f"more than {_MAX_NODES} entries")


def _check_scalar(event, inside) -> None:
    """Raise Unusual where a scalar makes asdf open another file, or would slip past this check."""
    _, tag, _, before = inside
    if event.value in ("$ref", "<<"):
        raise Unusual(f"the key {event.value}")
    if "core/ndarray-" in tag and before == "source" and not _OWN_SOURCE.fullmatch(event.value):
        raise Unusual(f"an array in another file ({event.value[:60]})")


def read_nodes(text: str | bytes) -> Node:
    """Parse one YAML document.

    Raises
    ------
    Unusual
        No YAML; keys that are not plain texts or come twice; an alias to what is not complete.
    TooDeep
    """
    from yaml import YAMLError

    try:
        return _compose(_events(text))
    except YAMLError as problem:
        raise Unusual(f"YAML: {problem}") from problem


def _compose(events) -> Node:
    """Build the nodes of the first document with a stack of our own."""
    from yaml import events as kinds

    anchors: dict[str, Node] = {}
    root: list[Node] = []
    stack: list[tuple[str | None, Node, list[Node]]] = []  # anchor, node, its children so far
    for event in events:
        if isinstance(event, kinds.CollectionStartEvent):
            empty = {} if isinstance(event, kinds.MappingStartEvent) else []
            stack.append((event.anchor, Node(event.tag, empty), []))
            continue
        if isinstance(event, kinds.ScalarEvent):
            quoted = event.style in ("'", '"') and event.tag is None
            anchor, node = event.anchor, Node("str" if quoted else event.tag, event.value)
        elif isinstance(event, kinds.CollectionEndEvent):
            anchor, node, children = stack.pop()
            _fill(node.value, children)
        elif isinstance(event, kinds.AliasEvent):
            if event.anchor not in anchors:
                raise Unusual("YAML: an alias without an anchor before it")
            anchor, node = None, anchors[event.anchor]
        else:
            continue
        if anchor is not None:
            anchors[anchor] = node
        (stack[-1][2] if stack else root).append(node)
    if len(root) != 1:
        raise Unusual(f"YAML: {len(root)} documents, expected one")
    return root[0]


def _fill(value: list | dict, children: list[Node]) -> None:
    if isinstance(value, list):
        value.extend(children)
        return
    for key, entry in zip(children[::2], children[1::2], strict=True):
        if not isinstance(key.value, str) or key.value in value:
            raise Unusual("YAML: a key that is no text, or comes twice")
        value[key.value] = entry


def number(node: Node | None) -> float:
    """Return a plain finite number, or raise Unusual."""
    if node is None or node.tag is not None or not isinstance(node.value, str):
        raise Unusual("expected a number")
    try:
        value = float(node.value)
    except ValueError:
        raise Unusual(f"expected a number, found {node.value[:40]!r}") from None
    if not np.isfinite(value) or "_" in node.value:
        raise Unusual(f"expected a finite number, found {node.value[:40]!r}")
    return value


class Block(NamedTuple):
    """What the header of a binary block says, and where its contents begin."""

    flags: int
    compression: bytes  # empty for none
    allocated: int
    used: int
    length: int
    start: int


def block_headers(data: bytes, place: int = 0) -> Iterator[Block]:
    """Yield the blocks that follow each other from the first one after `place`.

    Raises
    ------
    Unusual
        A header that is cut short.
    """
    place = data.find(MAGIC, place)
    while place >= 0 and data[place : place + 4] == MAGIC:
        if len(data) < place + 6 + HEAD.size:
            raise Unusual("a block is cut short")
        (size,) = struct.unpack_from(">H", data, place + 4)
        if size < HEAD.size:
            raise Unusual("a block is cut short")
        flags, kind, allocated, used, length, _ = HEAD.unpack_from(data, place + 6)
        start = place + 6 + size
        if flags & _STREAMED:  # to the end of the file
            allocated = used = length = max(len(data) - start, 0)
        yield Block(flags, kind.strip(b"\0"), allocated, used, length, start)
        place = start + allocated


def blocks(data: bytes) -> list[memoryview]:
    """Return the contents of the binary blocks at the start of `data` (after the tree).

    Raises
    ------
    Unusual
        A block that is compressed, streamed or cut short.
    """
    found = []
    for block in block_headers(data):
        if block.flags & _STREAMED or block.compression or block.used != block.length:
            raise Unusual("a block is compressed or streamed")
        if block.used > block.allocated or block.start + block.allocated > len(data):
            raise Unusual("a block is cut short")
        found.append(memoryview(data)[block.start : block.start + block.used])
    return found


def array(node: Node | None, binary: list[memoryview]) -> np.ndarray:
    """Return an array of plain numbers as float64, or raise Unusual."""
    if node is None:
        raise Unusual("expected an array")
    if isinstance(node.value, list):
        if node.tag is not None and "core/ndarray-1." not in node.tag:
            raise Unusual(f"expected an array, found {node.tag}")
        return _inline(node)
    if node.tag is None or "core/ndarray-1." not in node.tag:
        raise Unusual("expected an array")
    if set(node.value) - {"source", "data", "datatype", "byteorder", "shape", "offset"}:
        raise Unusual("an array with strides or a mask")
    if "data" in node.value:
        return _inline(node.value["data"])
    return _from_block(node, binary)


def _inline(node):
    """Turn nested lists of numbers into an array."""
    count = 0

    def plain(node):
        nonlocal count
        count += 1
        if count > _MAX_INLINE:
            raise TooDeep(f"more than {_MAX_INLINE} numbers in a list")
        return [plain(n) for n in node.value] if isinstance(node.value, list) else number(node)

    try:
        return np.array(plain(node), dtype=np.float64)
    except ValueError:
        raise Unusual("a ragged array") from None


def _from_block(node, binary):
    place, offset = number(node.get("source")), node.get("offset")
    offset = number(offset) if offset is not None else 0
    shape_node, datatype, order = (node.get(k) for k in ("shape", "datatype", "byteorder"))
    if shape_node is None or datatype is None:
        raise Unusual("an array without shape or type")
    shape = tuple(number(n) for n in shape_node.items)
    if any(n < 0 or n != int(n) or n > 2**31 for n in (place, offset, *shape)):
        raise Unusual("an array of odd shape")
    kind = _DTYPES.get(datatype.value) if isinstance(datatype.value, str) else None
    if kind is None or order is None or order.value not in ("little", "big"):
        raise Unusual("an array of another type")
    dtype = np.dtype(("<" if order.value == "little" else ">") + kind)
    count = 1
    for n in shape:
        count *= int(n)
    if place >= len(binary) or offset + count * dtype.itemsize > len(binary[int(place)]):
        raise Unusual("an array beyond the end of its block")
    flat = np.frombuffer(binary[int(place)], dtype=dtype, count=count, offset=int(offset))
    return flat.reshape([int(n) for n in shape]).astype(np.float64)
