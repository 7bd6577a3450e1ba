"""Telling whether a file is what it was: products by their FITS checksums, others by a CRC."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from gpucoron.errors import InputError
from gpucoron.io.fits_writer import BLOCK, datasum, fold
from gpucoron.io.fitsread import FitsFile, open_fits

__all__ = ["crc32", "is_whole", "product_sums"]

_CHUNK = 1 << 23  # bytes


def crc32(path: str | os.PathLike, stop: Callable[[], bool] = lambda: False) -> str:
    """Return the CRC-32 of a file's bytes, the one of zip and gzip, in hexadecimal.

    Parameters
    ----------
    path : path
    stop : callable
        Asked now and then; True gives up, and what is returned is empty.

    Raises
    ------
    OSError
        It cannot be read.
    """
    value = 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
            if stop():
                return ""
    return f"{value:08x}"


def product_sums(path: str | os.PathLike) -> dict[str, str]:
    """Return CHECKSUM of every HDU, by name, as its header says.

    Raises
    ------
    InputError
        It is no FITS file, or has an HDU without.
    """
    return _sums(open_fits(path, InputError))


def is_whole(path: str | os.PathLike, sums: Mapping[str, str]) -> bool:
    """Tell whether a FITS file has these checksums, and bytes that go with them.

    Parameters
    ----------
    path : path
    sums : mapping of str to str
        What `product_sums` returned.

    Notes
    -----
    Every byte is read. The ones'-complement sum of an HDU is minus zero if header and data are as
    they were written (FITS standard 4.0, appendix J).
    """
    try:
        file = open_fits(path, InputError)
        if _sums(file) != dict(sums):
            return False
        ends = [h.offset + -(-h.nbytes // BLOCK) * BLOCK for h in file.hdus]
        if os.path.getsize(path) != ends[-1]:
            return False
        return all(_is_minus_zero(Path(path), start, end)
                   for start, end in zip([0, *ends], ends, strict=False))
    except (InputError, OSError):
        return False


def _sums(file: FitsFile) -> dict[str, str]:
    sums = {hdu.name: hdu.cards.get("CHECKSUM") for hdu in file.hdus}
    if len(sums) < len(file.hdus) or not all(isinstance(s, str) for s in sums.values()):
        raise InputError(f"{file.path}: has an HDU without a name or CHECKSUM of its own")
    return sums


def _is_minus_zero(path, start, end):
    total = 0
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while start < end:
            chunk = file.read(min(_CHUNK, end - start))
            if not chunk or len(chunk) % 4:
                return False
            total += datasum(chunk)
            start += len(chunk)
    return fold(total) == 0xFFFFFFFF
