"""Defensive FITS reader: sizes are checked, then astropy makes arrays of the bytes of one HDU.

The bytes are read, not mapped into memory: a map of a file that is cut short meanwhile would kill
the process.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits

from gpucoron.errors import InputError, one_line, why
from gpucoron.io.files import open_input
from gpucoron.io.fits.headers import layout, quiet
from gpucoron.io.fits.packed import GZIP, gunzipped, is_packed, plain_image, unpacked_limit
from gpucoron.io.fits.walk import Hdu, walk

__all__ = ["FitsFile", "open_fits"]

log = logging.getLogger("gpucoron")

_PIECE = 1 << 21  # bytes


@dataclass(frozen=True)
class FitsFile:
    """The HDUs of one file, whose sizes have been checked; its methods raise `error`."""

    path: Path
    error: type[InputError]
    hdus: tuple[Hdu, ...]
    content: bytes | None = None  # of a compressed file, as plain FITS
    stored: FitsFile | None = None  # where images are tile-compressed: the file with the tables

    @property
    def size(self) -> int:
        """Bytes of the file, of a compressed one when it is unpacked."""
        return self.path.stat().st_size if self.content is None else len(self.content)

    def problem(self, text: str) -> InputError:
        """Return the exception that says what is wrong with the file."""
        return self.error(f"{self.path}: {text}")

    @property
    def names(self) -> str:
        """Names of the HDUs, for messages."""
        return ", ".join(h.name for h in self.hdus)

    def find(self, name: str) -> Hdu | None:
        """Return the HDU called `name`, None where there is none; two of them are an error."""
        found = [h for h in self.hdus if h.name == name]
        if len(found) > 1:
            raise self.problem(f"has {len(found)} {name} extensions, expected one")
        return found[0] if found else None

    def floats(self, hdu: Hdu, dtype: str = "float32") -> np.ndarray:
        """Read an image as floats, native and contiguous, BSCALE and BZERO applied, BLANK as NaN.

        Values beyond the range of `dtype` become infinite.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            return np.array(self._image(hdu), dtype, order="C")

    def bits(self, hdu: Hdu) -> np.ndarray:
        """Read an image of data quality bits as native uint32."""
        values = self._image(hdu, exact=True)
        if values.dtype.kind == "i" and values.dtype.itemsize == 4:
            values = values.view(values.dtype.str.replace("i", "u"))
        with np.errstate(invalid="ignore"):
            bits = np.array(values, np.uint32, order="C")
        if not np.array_equal(bits, values):
            raise self.problem(
                f"{hdu.name} holds values that are not unsigned "
                "32-bit integers, expected data quality bits"
            )
        return bits

    def table(self, hdu: Hdu) -> np.ndarray | None:
        """Read a binary table of columns of fixed length; None, with a warning, for others."""
        try:
            _check_table(hdu)
            made = self._astropy(fits.BinTableHDU, hdu, character_as_bytes=True)
            with quiet():
                columns = {name: np.asarray(made.data[name]) for name in made.data.names}
            dtype = [(n, c.dtype.newbyteorder("="), c.shape[1:]) for n, c in columns.items()]
            table = np.empty(hdu.shape[0], dtype)
            for name, column in columns.items():
                table[name] = column
            return table
        except InputError:
            raise
        except Exception as problem:  # whatever astropy makes of odd columns
            log.warning("%s: leaving out %s: %s", self.path.name, hdu.name, one_line(problem))
            return None

    def raw_bytes(self, hdu: Hdu) -> bytes:
        """Return the data as stored, without the padding of the last block."""
        try:
            return b"".join(self.pieces(hdu.offset, hdu.nbytes))
        except MemoryError:
            raise self.problem(
                f"{hdu.name} of shape {hdu.shape} does not fit into memory"
            ) from None

    def pieces(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield `length` bytes of the file from `offset` on; it may be gone, or cut short now."""
        if self.content is not None:
            for start in range(offset, offset + length, _PIECE):
                yield self.content[start : min(start + _PIECE, offset + length)]
            return
        with open_input(self.path, self.error, "the file that was opened before") as file:
            try:
                file.seek(offset)
                while length:
                    piece = file.read(min(length, _PIECE))
                    if not piece:
                        raise self.problem("was cut short while it was read")
                    length -= len(piece)
                    yield piece
            except OSError as problem:
                raise self.problem(f"cannot be read: {why(problem)}") from problem

    def _astropy(self, kind: Any, hdu: Hdu, **options: Any) -> Any:
        """Return one HDU as astropy has it, by those cards alone that describe its data."""
        data = self.raw_bytes(hdu)
        with quiet():
            header = layout(hdu.header).tostring().encode("ascii")
            return kind.fromstring(header + data, **options)

    def _image(self, hdu: Hdu, exact: bool = False) -> np.ndarray:
        """Return the values of an image as astropy has them, scaled; integers `exact` if wanted."""
        if not hdu.is_image:
            raise self.problem(f"{hdu.name} is a table, expected an image")
        for keyword in ("BSCALE", "BZERO", "BLANK"):
            value = hdu.header.get(keyword)
            if keyword in hdu.header and not _is_number(value):
                raise self.problem(f"{keyword} of {hdu.name} is {value!r}, expected a number")
        if hdu.bitpix == 64 or (exact and hdu.bitpix in (8, 16)):
            return self._integers(hdu)
        kind = fits.ImageHDU if "XTENSION" in hdu.header else fits.PrimaryHDU
        try:
            made = self._astropy(kind, hdu)
            with quiet(), np.errstate(over="ignore", invalid="ignore"):
                return made.data.reshape(hdu.shape)
        except InputError:
            raise
        except Exception as problem:  # whatever astropy makes of odd headers
            raise self.problem(
                f"{hdu.name} of shape {hdu.shape} cannot be read: {one_line(problem)}"
            ) from problem

    def _integers(self, hdu: Hdu) -> np.ndarray:
        """Return an image of integers with BSCALE and BZERO applied exactly, BLANK as NaN.

        astropy does so in float64, or float32 for 16 bits.
        """
        dtype = np.dtype(f"{'>i' if hdu.bitpix > 8 else 'u'}{hdu.bitpix // 8}")
        stored = np.frombuffer(self.raw_bytes(hdu), dtype).reshape(hdu.shape)
        scale, zero = hdu.header.get("BSCALE", 1), hdu.header.get("BZERO", 0)
        if isinstance(zero, float) and math.isclose(zero, 2**63, rel_tol=1e-12):
            zero = 2**63  # of unsigned integers, written with the digits of a float
        least, most = int(stored.min()), int(stored.max())
        values: Any
        if scale == 1 and zero == int(zero):
            values = stored.astype(np.uint64) + np.uint64(int(zero) % 2**64)  # modulo 2^64
            least, most = least + int(zero), most + int(zero)
            signed = least < 0
            values = values.view(np.int64) if signed else values
            exact = -(2**63) <= least and most < (2**63 if signed else 2**64)
        else:
            values = stored * float(scale) + float(zero)
            exact = max(-least, most, abs(zero), abs(most * scale), abs(least * scale)) <= 2**53
        if not exact:
            raise self.problem(
                f"{hdu.name} has {hdu.bitpix}-bit integers with BSCALE {scale} and BZERO {zero}, "
                "expected values that 64 bits hold exactly"
            )
        if "BLANK" in hdu.header:
            values = np.where(stored == hdu.header["BLANK"], np.nan, values.astype(np.float64))
        return values


def open_fits(path: str | os.PathLike, error: type[InputError]) -> FitsFile:
    """Read all headers of a FITS file and make sure that its data are all there.

    Raises
    ------
    InputError
        (as `error`) No such file, not FITS, cut short, a header that makes no sense, or a
        compressed file that is damaged or unpacks to more than 256 MiB and 50 times its size.

    Notes
    -----
    Files compressed with gzip, and tile-compressed images, are unpacked in memory.
    """
    path, content = Path(path), None
    try:
        with open_input(path, error, "a FITS file") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(len(GZIP))
            file.seek(0)
            if start == GZIP:
                content = gunzipped(path, file, size, error)
                hdus = _walk(path, io.BytesIO(content), len(content), error)
            else:
                hdus = _walk(path, file, size, error)
    except InputError:
        raise
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read: {why(problem)}") from problem
    return _with_plain_images(FitsFile(path, error, hdus, content))


def _walk(path: Path, file: BinaryIO, size: int, error: type[InputError]) -> tuple[Hdu, ...]:
    head = file.read(9)
    if head != b"SIMPLE  =":
        found = f"begins with {head!r}" if head else "is empty"
        raise error(f"{path}: not a FITS file: {found}, expected b'SIMPLE  ='")
    return tuple(walk(path, file, size, error))


def _with_plain_images(file: FitsFile) -> FitsFile:
    """Return a file with its tile-compressed images as images; itself if it has none."""
    if not any(map(is_packed, file.hdus)):
        return file
    parts, start, allowed = [], 0, unpacked_limit(file.size)
    for hdu in file.hdus:
        length = min(hdu.end, file.size) - start  # the padding at the end may be missing
        part = b"".join(file.pieces(start, length)).ljust(hdu.end - start, b"\0")
        if is_packed(hdu):
            try:
                part = plain_image(hdu, part, allowed)
            except ValueError as problem:
                raise file.problem(
                    f"{hdu.name} is a compressed image that cannot be read: {problem}"
                ) from problem
        allowed -= len(part)
        parts.append(part)
        start = hdu.end
    content = b"".join(parts)
    hdus = tuple(walk(file.path, io.BytesIO(content), len(content), file.error))
    return FitsFile(file.path, file.error, hdus, content, file)


def _check_table(hdu: Hdu) -> None:
    """Raise ValueError for what is no binary table whose columns are all of fixed length."""
    if hdu.kind not in ("BINTABLE", "A3DTABLE") or len(hdu.shape) != 2:
        raise ValueError("expected a binary table")
    count = hdu.header.get("TFIELDS")
    if type(count) is not int or not 0 < count < 1000:
        raise ValueError(f"TFIELDS is {count!r}, expected 1 to 999")
    for i in range(1, count + 1):
        form = hdu.header.get(f"TFORM{i}")
        if not re.fullmatch(r"\d{0,9}[LXBIJKEDCMA]", str(form).strip()):
            raise ValueError(f"column {i} is {form!r}, expected plain numbers")


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
