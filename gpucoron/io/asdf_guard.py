"""Handing an ASDF file to the asdf package only after its claims have been checked.

That package takes the sizes of blocks and the references of the tree at their word: a block of
100 bytes may claim terabytes, or be bzip2 that unfolds to them; aliases of aliases multiply; an
array or a reference may name a file or an address elsewhere, which would be opened.
"""

from __future__ import annotations

import bz2
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpucoron.io.asdf_nodes import HEAD, MAGIC, TooDeep, Unusual, block_headers, check_yaml

__all__ = ["checked", "opened"]

_END = re.compile(rb"\r?\n\.\.\.(?:\r?\n|$)")
_LARGEST = 64 << 20  # bytes of all blocks, uncompressed; a WCS has some thousand
_PACKED = {b"zlib": zlib.decompressobj, b"bzp2": bz2.BZ2Decompressor}


@contextmanager
def opened(content: bytes, *, lazy: bool = False) -> Iterator[dict[str, Any]]:
    """Open an ASDF file with the asdf package, without its warnings.

    Parameters
    ----------
    content : bytes
    lazy : bool
        Read arrays when they are used, within the block.

    Yields
    ------
    dict
        The tree.

    Raises
    ------
    TooDeep, Unusual
        The file claims more than it holds, or points elsewhere.
    Exception
        Whatever asdf, gwcs and astropy make of its contents.
    """
    safe = checked(content)
    import asdf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with asdf.open(io.BytesIO(safe), memmap=False, lazy_load=lazy) as file:
            yield dict(file.tree)


def checked(content: bytes) -> bytes:
    """Return an ASDF file with the same tree and plain blocks, after checking both."""
    end = _END.search(content)
    if end is None:
        raise Unusual("no end of the YAML text")
    text = content[: end.end()]
    check_yaml(text)
    return text + b"".join(_plain_blocks(content, end.end()))


def _plain_blocks(content: bytes, place: int):
    """Yield the blocks with what is in them, decompressed."""
    total = 0
    for block in block_headers(content, place):
        end = block.start + block.used
        if block.used > block.allocated or end > len(content):
            raise Unusual("a block is cut short")
        data = _unpacked(block.compression, content[block.start : end], block.length)
        total += len(data)
        if total > _LARGEST:
            raise TooDeep(f"blocks of more than {_LARGEST >> 20} MiB")
        yield (
            MAGIC
            + struct.pack(">H", HEAD.size)
            + HEAD.pack(0, bytes(4), len(data), len(data), len(data), bytes(16))
            + data
        )


def _unpacked(kind: bytes, data: bytes, length: int) -> bytes:
    if not kind:
        return data
    if kind not in _PACKED:
        raise Unusual(f"a block compressed with {ascii(kind)[2:-1]}, expected zlib or bzp2")
    if length > _LARGEST:
        raise TooDeep(f"a block of more than {_LARGEST >> 20} MiB")
    found = _PACKED[kind]().decompress(data, length + 1)
    if len(found) != length:
        raise Unusual("a compressed block of another size than its header tells")
    return found
