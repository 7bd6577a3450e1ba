"""Looking into a FITS file without trusting it.

The walk from header to header is done here, each claim compared with the file's size before
anything is made of it: astropy's own walk takes a header at its word (NAXIS = 99999999999999 keeps
it busy until memory runs out), and it reads unsigned integers through double precision. Header
objects are astropy's, made only for those who ask; pixels are read piece by piece, for a memory map
of a file that someone cuts short meanwhile would kill the process.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpucoron.errors import InputError
from gpucoron.io.files import open_input
from gpucoron.io.header_blocks import CARD, read_header

if TYPE_CHECKING:
    from astropy.io.fits import Header

    from gpucoron.io.card import RawHeader

__all__ = ["FitsFile", "Hdu", "open_fits"]

log = logging.getLogger("gpucoron")

_RAW_DTYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_TABLE_DTYPES = {"L": "S1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}
_BLOCK = 2880
_MAX_HEADER = 8192 * _BLOCK  # 300 000 cards; what has no END by then is not a header
_MAX_HDUS = 1000
_PIECE = 1 << 18  # values read and converted at a time: stays in the processor's cache


@dataclass(frozen=True)
class Hdu:
    """One header and where its data lie; `shape` is in NumPy's order, () where there are none."""

    name: str
    cards: RawHeader
    kind: str  # XTENSION; IMAGE for the primary HDU
    bitpix: int
    shape: tuple[int, ...]
    offset: int
    nbytes: int  # of data, without the padding of the last block

    @property
    def header(self) -> Header:
        """The header as an astropy object."""
        return self.cards.astropy

    @property
    def is_image(self) -> bool:
        """True for the primary HDU and image extensions."""
        return self.kind == "IMAGE"

    @property
    def empty(self) -> bool:
        """True where there are no data: NAXIS = 0, or an axis of length 0."""
        return not self.shape or 0 in self.shape


@dataclass(frozen=True)
class FitsFile:
    """The HDUs of one file, whose sizes have been checked against the file's.

    Parameters
    ----------
    path : Path
    error : type
        The exception that its methods raise, a kind of `InputError`.
    hdus : tuple of Hdu
    """

    path: Path
    error: type[InputError]
    hdus: tuple[Hdu, ...]

    @property
    def names(self) -> str:
        """Names of the HDUs, for messages."""
        return ", ".join(h.name or "(no name)" for h in self.hdus)

    def find(self, name: str) -> Hdu | None:
        """Return the HDU called `name`, None where there is none; two of them are an error."""
        found = [h for h in self.hdus if h.name == name]
        if len(found) > 1:
            raise self.error(f"{self.path}: has {len(found)} {name} extensions, expected one")
        return found[0] if found else None

    def floats(self, hdu: Hdu, dtype: str = "float32") -> np.ndarray:
        """Read an image as floats, native and contiguous, BSCALE and BZERO applied, BLANK as NaN.

        Values beyond the range of `dtype` become infinite.
        """
        scale, zero, blank = self._scaling(hdu)
        plain = (scale, zero) == (1, 0) and blank is None

        def convert(raw):
            if plain:
                return raw
            values = raw.astype(np.float64) * scale + zero
            if blank is not None and raw.dtype.kind != "f":
                values[raw == blank] = np.nan
            return values

        with np.errstate(over="ignore", invalid="ignore"):
            return self._converted(hdu, dtype, convert)

    def bits(self, hdu: Hdu) -> np.ndarray:
        """Read an image of data quality bits as native uint32.

        Notes
        -----
        Unsigned integers are stored as signed ones with BZERO = 2**31. Exchanging the sign bit
        gives the same numbers as adding BZERO, without the way through double precision.
        """
        scale, zero, _ = self._scaling(hdu)
        unsigned = hdu.bitpix == 32 and scale == 1 and zero in (0, 2**31)

        def convert(raw):
            if unsigned:
                return raw.view(">u4")
            with np.errstate(over="ignore", invalid="ignore"):
                wide = raw.astype(np.float64) * scale + zero  # exact for 32 bits
                whole = (wide >= 0) & (wide < 2**32) & (wide == np.floor(wide))
            if not np.all(whole):
                raise self.error(
                    f"{self.path}: {hdu.name} holds values that are not unsigned "
                    "32-bit integers, expected data quality bits"
                )
            return wide

        values = self._converted(hdu, "uint32", convert)
        if unsigned and zero:
            values ^= np.uint32(2**31)
        return values

    def table(self, hdu: Hdu) -> np.ndarray | None:
        """Read a binary table as a native structured array.

        Returns
        -------
        structured array or None
            None, with a warning, for what is no binary table of plain numbers and texts.
        """
        try:
            dtype = _table_dtype(hdu)
        except ValueError as problem:
            log.warning("%s: leaving out %s: %s", self.path.name, hdu.name, problem)
            return None
        length = math.prod(hdu.shape)  # what a heap behind the rows holds is not read
        rows = np.frombuffer(self.raw_bytes(hdu)[:length], dtype=dtype)
        return rows.astype(dtype.newbyteorder("="))

    def raw_bytes(self, hdu: Hdu) -> bytes:
        """Return the data as stored, without the padding of the last block."""
        return b"".join(self.pieces(hdu.offset, hdu.nbytes))

    def pieces(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield `length` bytes of the file from `offset` on, in pieces.

        Raises
        ------
        InputError
            (as the file's `error`) The file is gone, or shorter than it was.
        """
        with open_input(self.path, self.error, "the file that was opened before") as file:
            try:
                file.seek(offset)
                while length:
                    piece = file.read(min(length, 8 * _PIECE))
                    if not piece:
                        raise self.error(f"{self.path}: was cut short while it was read")
                    length -= len(piece)
                    yield piece
            except OSError as problem:
                reason = problem.strerror or problem
                raise self.error(f"{self.path}: cannot be read: {reason}") from problem

    def _converted(self, hdu: Hdu, dtype: str, convert: Callable) -> np.ndarray:
        """Return an image as a native array, each piece of it having passed through `convert`."""
        if not hdu.is_image:
            raise self.error(f"{self.path}: {hdu.name} is a table, expected an image")
        stored = np.dtype(_RAW_DTYPES[hdu.bitpix])
        try:
            values = np.empty(math.prod(hdu.shape), dtype)
        except (MemoryError, ValueError):
            raise self.error(
                f"{self.path}: {hdu.name} of shape {hdu.shape} does not fit into memory"
            ) from None
        done = 0
        for piece in self.pieces(hdu.offset, values.size * stored.itemsize):
            raw = np.frombuffer(piece, stored)
            values[done : done + raw.size] = convert(raw)
            done += raw.size
        return values.reshape(hdu.shape)

    def _scaling(self, hdu: Hdu):
        values = {k: hdu.cards.get(k, d) for k, d in (("BSCALE", 1), ("BZERO", 0), ("BLANK", None))}
        for keyword, value in values.items():
            if not (_is_number(value) or (keyword == "BLANK" and value is None)):
                raise self.error(
                    f"{self.path}: {keyword} of {hdu.name} is {value!r}, expected a number"
                )
        return values.values()


def open_fits(path: str | Path, error: type[InputError]) -> FitsFile:
    """Read all headers of a FITS file and make sure that its data are all there.

    Parameters
    ----------
    path : path
    error : type
        The exception to raise, a kind of `InputError`.

    Returns
    -------
    FitsFile

    Raises
    ------
    InputError
        (as `error`) No such file, not FITS, compressed, cut short, or a header that makes no sense.
    """
    path = Path(path)
    try:
        with open_input(path, error, "a FITS file") as file:
            _check_start(path, file.read(9), error)
            hdus = tuple(_walk(path, file, os.fstat(file.fileno()).st_size, error))
    except InputError:
        raise
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"{path}: cannot be read: {reason}") from problem
    return FitsFile(path, error, hdus)


def _check_start(path: Path, head: bytes, error: type[InputError]) -> None:
    if head[:2] == b"\x1f\x8b":
        raise error(f"{path}: is compressed with gzip, expected plain FITS (gunzip it)")
    if head != b"SIMPLE  =":
        found = f"begins with {head!r}" if head else "is empty"
        raise error(f"{path}: not a FITS file: {found}, expected b'SIMPLE  ='")


def _walk(path: Path, file, size: int, error: type[InputError]):
    """Yield the HDUs, each after its end has been compared with the size of the file."""
    position, last, count = 0, None, 0
    while position < size:
        count += 1
        if count > _MAX_HDUS:
            raise error(f"{path}: has more than {_MAX_HDUS} extensions, expected an exposure's")
        file.seek(position)
        if position and file.read(8) != b"XTENSION":
            file.seek(position)
            if file.read(_BLOCK).strip(b"\0 "):
                log.warning(
                    "%s: ignoring %d bytes after the last extension, %s",
                    path.name,
                    size - position,
                    last,
                )
            return
        raw = _header_bytes(file, position)
        if raw is None:
            after = f"after {last} " if last else ""
            raise error(
                f"{path}: is cut short or damaged: the header {after}at byte {position} "
                f"of {size} has no END"
            )
        hdu = _hdu(path, raw, position + len(raw), error)
        end = hdu.offset + hdu.nbytes
        if end > size:
            raise error(
                f"{path}: is cut short: by its header {hdu.name} ends at byte {end}, but "
                f"the file has {size} bytes"
            )
        position = hdu.offset + -(-hdu.nbytes // _BLOCK) * _BLOCK
        if position > size:
            log.warning("%s: lacks the padding after the last extension, %s", path.name, hdu.name)
        last = hdu.name
        yield hdu


def _header_bytes(file, position: int) -> bytes | None:
    """Return the blocks of a header up to and with the one that holds END."""
    file.seek(position)
    blocks: list[bytes] = []
    while len(blocks) * _BLOCK < _MAX_HEADER:
        block = file.read(_BLOCK)
        if len(block) < _BLOCK:
            return None
        blocks.append(block)
        if any(block[i : i + 8] == b"END     " for i in range(0, _BLOCK, CARD)):
            return b"".join(blocks)
    return None


def _hdu(path: Path, raw: bytes, offset: int, error: type[InputError]) -> Hdu:
    """Make an `Hdu` of the blocks of a header."""
    cards = {
        raw[i : i + 8].rstrip(): raw[i + 10 : i + CARD]
        for i in range(len(raw) - CARD, -1, -CARD)
        if raw[i + 8 : i + 10] == b"= "
    }
    kind = cards.get(b"XTENSION", b"'IMAGE'").split(b"'")[1:2]
    header, name = read_header(path, raw, b"XTENSION" not in cards, error)

    def integer(keyword: str, low: int, high: int = 10**17, default: int | None = None) -> int:
        text = cards.get(keyword.encode())
        if text is None and default is not None:
            return default
        value = (text or b"").split(b"/")[0].strip()
        if not re.fullmatch(rb"[+-]?\d{1,18}", value) or not low <= int(value) <= high:
            found = ascii(value.decode("latin1"))[1:-1] or "missing"
            bounds = f"from {low} to {high}" if high < 10**17 else f"of {low} or more"
            raise error(f"{path}: {keyword} of {name} is {found}, expected an integer {bounds}")
        return int(value)

    bitpix = integer("BITPIX", -64, 64)
    if bitpix not in _RAW_DTYPES:
        raise error(f"{path}: BITPIX of {name} is {bitpix}, expected 8, 16, 32, 64, -32 or -64")
    shape = tuple(integer(f"NAXIS{i}", 0) for i in range(integer("NAXIS", 0, 999), 0, -1))
    count = math.prod(shape) if shape else 0
    if count > 10**18:
        raise error(
            f"{path}: {name} has {len(shape)} axes of {shape[:3]} (and so on) values by "
            "its header, more than any file holds"
        )
    groups = integer("GCOUNT", 1, default=1)
    nbytes = abs(bitpix) // 8 * groups * (integer("PCOUNT", 0, default=0) + count)
    return Hdu(
        name,
        header,
        kind[0].decode("latin1").strip() if kind else "",
        bitpix,
        shape,
        offset,
        nbytes,
    )


def _table_dtype(hdu: Hdu) -> np.dtype:
    """Return the dtype of a binary table's rows; ValueError where it is not a plain one."""
    header = hdu.cards
    if hdu.kind not in ("BINTABLE", "A3DTABLE") or len(hdu.shape) != 2:
        raise ValueError("expected a binary table")
    fields = []
    count = header.get("TFIELDS")
    if not isinstance(count, int) or not 0 < count < 1000:
        raise ValueError(f"TFIELDS is {count!r}, expected 1 to 999")
    for i in range(1, count + 1):
        form = re.fullmatch(r"(\d{0,18})([LBIJKEDA])", str(header.get(f"TFORM{i}", "")).strip())
        if not form or f"TSCAL{i}" in header or f"TZERO{i}" in header:
            raise ValueError(f"column {i} is {header.get(f'TFORM{i}')!r}, expected plain numbers")
        repeat = int(form[1] or 1)
        if repeat > hdu.shape[1]:
            raise ValueError(f"column {i} is {form[0]!r}, but a row has {hdu.shape[1]} bytes")
        shape = () if repeat == 1 or form[2] == "A" else (repeat,)
        code = f"S{repeat}" if form[2] == "A" else _TABLE_DTYPES[form[2]]
        fields.append((str(header.get(f"TTYPE{i}", f"col{i}")), code, shape))
    dtype = np.dtype(fields)
    if dtype.itemsize != hdu.shape[1]:
        raise ValueError(f"its columns take {dtype.itemsize} bytes, but its rows {hdu.shape[1]}")
    return dtype


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)
