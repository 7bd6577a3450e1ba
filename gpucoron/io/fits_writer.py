"""Writing FITS files at the speed of the disk, with checksums, whole or not at all."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from gpucoron.errors import OutputError
from gpucoron.io.headers import Cards, card_text, image_cards, table_cards

__all__ = [
    "Hdu",
    "add_checksums",
    "begin_to_disk",
    "datasum",
    "encode_checksum",
    "header_block",
    "output_error",
    "output_file",
    "partial_path",
    "stored",
    "to_disk",
    "write_hdu",
]

BLOCK = 2880
_CHUNK = 1 << 18  # elements swapped and summed at a time: stays in the processor's cache
_SERIAL = itertools.count()
_ZERO_SUM = 16 * "0"
_sync = getattr(os, "fdatasync", os.fsync)  # macOS has only the latter
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # file systems that cannot
_PUNCTUATION = frozenset(b":;<=>?@[\\]^_`")


class Hdu(NamedTuple):
    """One HDU to write.

    `array` is an image (float32, int32 or uint32; any other float becomes float32), a structured
    array for a table, or None for no data. `cards` are those that do not describe the layout.
    """

    name: str
    array: np.ndarray | None = None
    cards: Cards | None = None
    units: dict[str, str] | None = None


# ---- files that appear when they are complete


def output_error(path: Path, problem: OSError) -> OutputError:
    """Return the error that says why `path` cannot be written."""
    return OutputError(f"cannot write {path}: {problem.strerror or problem}")


def partial_path(path: Path) -> Path:
    """Return the name that a file has until it is complete: hidden, not ending in .fits."""
    # two nodes that share the folder may have the same process number
    own = f"{os.getpid()}-{next(_SERIAL)}-{os.urandom(4).hex()}"
    return path.with_name(f".{path.name}.{own}.part")


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise OutputError where `path` exists and must not be replaced."""
    if not overwrite and path.exists():
        raise OutputError(f"{path} exists; allow overwriting or choose another output folder")


@contextmanager
def output_file(path: str | os.PathLike, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name only when it is complete.

    Parameters
    ----------
    path : path
        The name it is to have.
    overwrite : bool
        Whether a file of that name may be replaced.

    Yields
    ------
    binary file
        Under a temporary name in the same folder; removed when anything goes wrong.

    Raises
    ------
    OutputError
        The file exists and `overwrite` is False, or writing failed; names the path and the reason.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    partial = partial_path(path)
    try:
        with open(partial, "xb") as file:
            yield file
            to_disk(file)
        refuse_existing(path, overwrite)
        os.replace(partial, path)
    except BaseException as problem:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(problem, OSError) and not isinstance(problem, OutputError):
            raise output_error(path, problem) from problem
        raise


def begin_to_disk(file: BinaryIO, offset: int, size: int) -> None:
    """Have the disk begin with a part of a file, so that little is left to `to_disk`."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # a hint, no more
            os.posix_fadvise(file.fileno(), offset, size, os.POSIX_FADV_DONTNEED)


def to_disk(file: BinaryIO) -> None:
    """Wait until a file is on the disk: if the machine fails later, it is there and whole."""
    file.flush()
    try:
        _sync(file.fileno())
    except OSError as problem:
        if problem.errno not in _NO_SYNC:
            raise


# ---- checksums (FITS standard 4.0, section 4.4.2.7 and appendix J)


def fold(total: int) -> int:
    """Return a plain sum of 32-bit words as their ones'-complement sum."""
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def datasum(data: bytes | np.ndarray) -> int:
    """Return the sum of the big-endian 32-bit words of `data`, zeros filling the last one."""
    octets = np.frombuffer(data, dtype=np.uint8)
    whole = octets.size // 4 * 4
    total = int(octets[:whole].view(">u4").sum(dtype=np.uint64))
    return fold(total + int.from_bytes(octets[whole:].tobytes().ljust(4, b"\0"), "big"))


def encode_checksum(total: int) -> str:
    """Return the 16 characters that bring an HDU whose words sum to `total` to minus zero."""
    value = 0xFFFFFFFF - total
    out = bytearray(16)
    for i in range(4):
        octet = value >> (24 - 8 * i) & 0xFF
        four = [octet // 4 + octet % 4 + 48] + [octet // 4 + 48] * 3
        while any(c in _PUNCTUATION for c in four):
            for j in (0, 2):
                if four[j] in _PUNCTUATION or four[j + 1] in _PUNCTUATION:
                    four[j] += 1
                    four[j + 1] -= 1
        out[i::4] = bytes(four)
    return (out[-1:] + out[:-1]).decode("ascii")


def header_block(text: str) -> bytes:
    """Return a header's bytes, ended and filled to whole blocks."""
    text += "END".ljust(80)
    return text.ljust(-(-len(text) // BLOCK) * BLOCK).encode("ascii")


def add_checksums(text: str, data_sum: int) -> bytes:
    """Return the header `text` as bytes with DATASUM and a CHECKSUM that covers it and the data."""
    text += card_text("DATASUM", str(data_sum), "sum of the data's 32-bit words")
    before = text + card_text("CHECKSUM", _ZERO_SUM, "makes the HDU's sum -0")
    total = fold(datasum(header_block(before)) + data_sum)
    card = card_text("CHECKSUM", encode_checksum(total), "makes the HDU's sum -0")
    return header_block(text + card)


# ---- HDUs


def stored(values: np.ndarray, unsigned: bool) -> tuple[np.ndarray, int]:
    """Return the bytes of float32, int32 or uint32 values as a FITS file has them, and their sum.

    Parameters
    ----------
    values : contiguous array of a 4-byte native type
        Images.
    unsigned : bool
        Stored with BZERO 2^31.

    Returns
    -------
    words : uint32 array
        Big-endian in memory.
    total : int
        Plain sum of the words.
    """
    words = values.view(np.uint32)
    if unsigned:
        words = words ^ np.uint32(0x80000000)
    return words.byteswap(), int(words.sum(dtype=np.uint64))


def image_dtype(array: np.ndarray) -> str:
    """Return the type that an image is stored in."""
    return "float32" if array.dtype.kind == "f" else array.dtype.newbyteorder("=").name


def write_hdu(file: BinaryIO, hdu: Hdu) -> None:
    """Write one HDU at the end of `file`, with DATASUM and CHECKSUM."""
    cards = hdu.cards.text if hdu.cards is not None else ""
    start = file.tell()
    if hdu.array is None:
        file.write(add_checksums(image_cards(hdu.name, "uint8", ()) + cards, 0))
        return
    if hdu.array.dtype.names is not None:
        table = table_bytes(hdu.array)
        text = table_cards(hdu.name, hdu.array.dtype, hdu.array.size, hdu.units) + cards
        file.write(add_checksums(text, datasum(table)))
        file.write(table)
        file.write(bytes(-len(table) % BLOCK))
        return
    dtype = image_dtype(hdu.array)
    text = image_cards(hdu.name, dtype, hdu.array.shape) + cards
    file.write(add_checksums(text, 0))  # a place for the header; the sum is known afterwards
    total = _write_image(file, hdu.array, dtype)
    end = file.tell()
    file.seek(start)
    file.write(add_checksums(text, total))
    file.seek(end)


def _write_image(file, array, dtype):
    """Write an image's data and filling; return the sum of its words."""
    flat = np.ascontiguousarray(array).reshape(-1)
    total = 0
    for start in range(0, flat.size, _CHUNK):
        with np.errstate(over="ignore"):
            native = flat[start : start + _CHUNK].astype(dtype, copy=False)
        words, part = stored(native, dtype == "uint32")
        file.write(words.data)
        total += part
    file.write(bytes(-4 * flat.size % BLOCK))
    return fold(total)


def table_bytes(table: np.ndarray) -> bytes:
    """Return a structured array's rows as FITS has them: big-endian, booleans T and F."""
    layout = [
        (name, "S1")
        if table.dtype[name].kind == "b"
        else (name, table.dtype[name].newbyteorder(">"))
        for name in table.dtype.names
    ]
    out = np.empty(table.size, dtype=layout)
    for name, kind in layout:
        column = np.ravel(table[name]) if not table.dtype[name].shape else table[name]
        out[name] = (
            np.where(column, b"T", b"F") if kind == "S1" and column.dtype.kind == "b" else column
        )
    return out.tobytes()
