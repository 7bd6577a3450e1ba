"""Compressed FITS files: gzip around the file, or tile-compressed images (RICE, GZIP and so on).

Both become plain FITS in memory. What a file may unpack to is bounded before it is unpacked.
"""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits

from gpucoron.errors import InputError, one_line
from gpucoron.io.fits.headers import quiet
from gpucoron.io.fits.walk import BLOCK, Hdu

__all__ = ["GZIP", "gunzipped", "is_packed", "plain_image", "unpacked_limit"]

GZIP = b"\x1f\x8b"  # how a gzip file begins
_PIECE = 1 << 20  # bytes
_ALWAYS = 256 << 20  # bytes that any file may unpack to; JWST's files shrink to a half
_RATIO = 50  # of unpacked to packed bytes beyond that
_GZIP_FORMAT = 31  # zlib's wbits
_METHODS = ("RICE_1", "RICE_ONE", "GZIP_1", "GZIP_2", "HCOMPRESS_1", "PLIO_1", "NOCOMPRESS")
_VARIABLE = re.compile(r"\s*1?([PQ])([BIJEDK])(\(\d*\))?\s*")
_ITEM_BYTES = {"B": 1, "I": 2, "J": 4, "E": 4, "D": 8, "K": 8}
_PARAMETERS = {"BLOCKSIZE": (16, 32), "BYTEPIX": (1, 2, 4, 8)}


def unpacked_limit(packed: int) -> int:
    """Return how many bytes a file of `packed` bytes may unpack to."""
    return max(_ALWAYS, _RATIO * packed)


def gunzipped(path: Path, file: BinaryIO, size: int, error: type[InputError]) -> bytes:
    """Return what a gzip file of `size` bytes holds.

    Raises
    ------
    InputError
        (as `error`) Cut short, damaged, or more than `unpacked_limit`.
    """
    limit, found, total = unpacked_limit(size), [], 0
    stream = zlib.decompressobj(_GZIP_FORMAT)
    rest = b""
    try:
        while rest := rest or file.read(_PIECE):
            if stream.eof:  # another member, or padding
                if not rest.strip(b"\0"):
                    rest = b""
                    continue
                stream = zlib.decompressobj(_GZIP_FORMAT)
            found.append(stream.decompress(rest, _PIECE * 4))
            total += len(found[-1])
            if total > limit:
                raise error(
                    f"{path}: is compressed with gzip and unpacks to more than {limit >> 20} MiB, "
                    f"expected less of a file of {size} bytes (gunzip it if it is all right)"
                )
            rest = stream.unused_data if stream.eof else stream.unconsumed_tail
    except zlib.error as problem:
        raise error(f"{path}: is compressed with gzip and damaged: {problem}") from problem
    except MemoryError:
        raise error(f"{path}: does not fit into memory when it is unpacked") from None
    if not stream.eof:
        raise error(f"{path}: is compressed with gzip and cut short after {total} unpacked bytes")
    return b"".join(found)


def is_packed(hdu: Hdu) -> bool:
    """Return whether an HDU is a tile-compressed image."""
    return hdu.kind == "BINTABLE" and hdu.header.get("ZIMAGE") is True


def plain_image(hdu: Hdu, content: bytes, allowed: int) -> bytes:
    """Return a tile-compressed image as an image HDU: header, data and padding.

    Parameters
    ----------
    hdu : Hdu
    content : bytes
        All of the HDU, with its header.
    allowed : int
        Bytes that the image may have.

    Raises
    ------
    ValueError
        Damaged, of a kind that is not known, or too large.
    """
    shape, bytes_a_pixel = _claimed(hdu, allowed)
    _check_tiles(hdu, content[len(content) - (hdu.end - hdu.offset) :], shape, bytes_a_pixel)
    alone = fits.PrimaryHDU().header.tostring().encode("ascii") + content
    try:
        with quiet(), fits.open(io.BytesIO(alone)) as hdus:
            made: Any = hdus[1]
            header = made.header.copy()
            for keyword in ("CHECKSUM", "DATASUM"):  # of the packed bytes, or of other padding
                header.remove(keyword, ignore_missing=True)
            image = fits.ImageHDU(made.data, header)
            file = io.BytesIO()
            fits.HDUList([fits.PrimaryHDU(), image]).writeto(file, output_verify="ignore")
    except Exception as problem:  # whatever astropy makes of damaged tiles
        raise ValueError(one_line(problem)) from problem
    if image.shape != shape:
        raise ValueError(f"its shape is {image.shape}, by its header {shape}")
    return file.getvalue()[BLOCK:]


def _claimed(hdu: Hdu, allowed: int) -> tuple[tuple[int, ...], int]:
    """Return shape and bytes a pixel of the image by its header, after checking them."""

    def integer(keyword: str, low: int, high: int, default: int | None = None) -> int:
        value = hdu.header.get(keyword, default)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{keyword} is {value!r}, expected an integer from {low} to {high}")
        return value

    method = str(hdu.header.get("ZCMPTYPE")).strip()
    if method not in _METHODS:
        raise ValueError(f"ZCMPTYPE is {method}, expected one of {', '.join(_METHODS)}")
    bitpix = integer("ZBITPIX", -64, 64)
    if bitpix not in (8, 16, 32, 64, -32, -64):
        raise ValueError(f"ZBITPIX is {bitpix}, expected 8, 16, 32, 64, -32 or -64")
    axes = range(integer("ZNAXIS", 1, 9), 0, -1)
    shape = tuple(integer(f"ZNAXIS{i}", 1, 10**9) for i in axes)
    for i, side in zip(axes, shape, strict=True):
        integer(f"ZTILE{i}", 1, side, side if i == 1 else 1)
    for i in range(1, 10):
        known = _PARAMETERS.get(str(hdu.header.get(f"ZNAME{i}")).strip())
        if known and hdu.header.get(f"ZVAL{i}") not in known:
            raise ValueError(f"ZVAL{i} is {hdu.header.get(f'ZVAL{i}')!r}, expected one of {known}")
    nbytes = abs(bitpix) // 8 * math.prod(shape)
    if nbytes > allowed:
        raise ValueError(f"it unpacks to {nbytes >> 20} MiB, expected at most {allowed >> 20} MiB")
    return shape, abs(bitpix) // 8


def _check_tiles(hdu: Hdu, data: bytes, shape: tuple[int, ...], bytes_a_pixel: int) -> None:
    """Check what the decompressors take at its word: where tiles are, and what they unpack to."""
    ndim = len(shape)
    sides = [
        hdu.header.get(f"ZTILE{ndim - k}", shape[k] if k == ndim - 1 else 1) for k in range(ndim)
    ]
    grid = [-(-n // side) for n, side in zip(shape, sides, strict=True)]
    if len(hdu.shape) != 2 or hdu.shape[0] != math.prod(grid):
        found = f"it has {hdu.shape[:1]} rows"
        raise ValueError(f"{found}, expected {math.prod(grid)}: one for each tile")
    method = str(hdu.header["ZCMPTYPE"]).strip()
    for row, name, tile in _tiles(hdu, data):
        corner = np.unravel_index(row, grid)
        pixels = math.prod(
            min(side, n - int(k) * side) for side, n, k in zip(sides, shape, corner, strict=True)
        )
        if name == "GZIP_COMPRESSED_DATA" or (name == "COMPRESSED_DATA" and "GZIP" in method):
            _check_gzip(tile, pixels * max(8, bytes_a_pixel))
        elif name == "COMPRESSED_DATA" and method == "HCOMPRESS_1":
            if len(tile) < 10 or math.prod(np.frombuffer(tile, ">i4", 2, 2).tolist()) != pixels:
                raise ValueError("a tile has another size than ZTILE1, ZTILE2 state")
        elif name == "COMPRESSED_DATA" and method == "PLIO_1":
            words = np.frombuffer(tile[: len(tile) // 2 * 2], ">i2").astype(int)
            if len(words) < 7 or not 0 <= _plio_words(words) <= len(words):
                raise ValueError("a tile is damaged")


def _check_gzip(tile: bytes, largest: int) -> None:
    """Raise ValueError where a tile is damaged, or unpacks to more than `largest` bytes."""
    stream = zlib.decompressobj(_GZIP_FORMAT)
    try:
        stream.decompress(tile, largest + 1)
    except zlib.error as problem:
        raise ValueError(f"a tile is damaged: {problem}") from problem
    if not stream.eof:
        raise ValueError(f"a tile is damaged, or more than {largest} bytes")


def _plio_words(words: np.ndarray) -> int:
    """Return how many 16-bit words a line list of PLIO claims to have."""
    return int(words[2] if words[2] > 0 else (words[4] << 15) + words[3])


def _tiles(hdu: Hdu, data: bytes) -> Iterator[tuple[int, str, bytes]]:
    """Yield row, column's name and bytes of each tile, from columns of variable length."""
    width, rows = hdu.shape[1], hdu.shape[0]
    heap, place = hdu.header.get("THEAP", width * rows), 0
    if type(heap) is not int or not width * rows <= heap <= hdu.nbytes:
        raise ValueError(f"THEAP is {heap!r}, expected {width * rows} to {hdu.nbytes}")
    fields = hdu.header.get("TFIELDS")
    if type(fields) is not int or not 0 < fields < 20:
        raise ValueError(f"TFIELDS is {fields!r}, expected 1 to 19")
    table = np.frombuffer(data, np.uint8, width * rows).reshape(rows, width)
    for i in range(1, fields + 1):
        form = str(hdu.header.get(f"TFORM{i}"))
        found = _VARIABLE.fullmatch(form)
        if found is None:
            place += _fixed_bytes(form)
            continue
        kind = np.dtype(">i4" if found[1] == "P" else ">i8")
        if place + 2 * kind.itemsize > width:
            raise ValueError(f"TFORM{i} is {form!r}, which does not fit into NAXIS1 = {width}")
        where = table[:, place : place + 2 * kind.itemsize].copy().view(kind).astype(np.int64)
        place += 2 * kind.itemsize
        name = str(hdu.header.get(f"TTYPE{i}")).strip().upper()
        for row, (count, offset) in enumerate(where.tolist()):
            length = count * _ITEM_BYTES[found[2]]
            if count < 0 or offset < 0 or heap + offset + length > hdu.nbytes:
                raise ValueError(f"column {i} has a tile that lies outside of the table")
            if count:
                yield row, name, data[heap + offset : heap + offset + length]


def _fixed_bytes(form: str) -> int:
    sizes = {"L": 1, "B": 1, "A": 1, "I": 2, "J": 4, "E": 4, "K": 8, "D": 8}
    found = re.fullmatch(r"\s*(\d{0,4})([LBAIJEKD])\s*", form)
    if found is None:
        raise ValueError(f"it has a column of {form!r}, expected numbers")
    return int(found[1] or 1) * sizes[found[2]]
