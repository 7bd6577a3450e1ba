"""Telling whether a file is what it was: by its FITS checksums, or a CRC of all its bytes."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Mapping

from gpucoron.errors import InputError
from gpucoron.io.fits_writer import BLOCK, datasum, fold
from gpucoron.io.fitsread import FitsFile, Hdu, open_fits

__all__ = ["check_sums", "crc32", "is_whole", "product_sums"]

log = logging.getLogger("gpucoron")

_MINUS_ZERO = 0xFFFFFFFF  # as a ones'-complement sum
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
        return all(
            _byte_sum(file, start, end - start) == _MINUS_ZERO
            for start, end in zip([0, *ends], ends, strict=False)
        )
    except (InputError, OSError):
        return False


def _sums(file: FitsFile) -> dict[str, str]:
    sums = {hdu.name: hdu.cards.get("CHECKSUM") for hdu in file.hdus}
    if len(sums) < len(file.hdus) or not all(isinstance(s, str) for s in sums.values()):
        raise InputError(f"{file.path}: has an HDU without a name or CHECKSUM of its own")
    return sums


def check_sums(file: FitsFile) -> None:
    """Compare the checksums in a file's headers, where there are any, with its bytes.

    Raises
    ------
    InputError
        (as the file's `error`) Some data are not those for which DATASUM was made.

    Notes
    -----
    CHECKSUM covers the header, too: where it alone is wrong, someone has edited a keyword, which
    gives a warning.

    References
    ----------
    FITS standard 4.0, section 4.4.2.7 and appendix J.
    """
    start = 0
    for hdu in file.hdus:
        given = [hdu.cards.get(keyword) for keyword in ("DATASUM", "CHECKSUM")]
        given = [v.strip() if isinstance(v, str) else None for v in given]
        end = hdu.offset + -(-hdu.nbytes // BLOCK) * BLOCK
        if any(given):
            end = min(end, file.path.stat().st_size)  # the padding may be missing
            _check_sum(file, hdu, start, end, *given)
        start = end


def _check_sum(file: FitsFile, hdu: Hdu, start: int, end: int, data_sum, checksum) -> None:
    found = _byte_sum(file, hdu.offset, end - hdu.offset)
    if data_sum and (not data_sum.isdecimal() or int(data_sum[:20]) != found):
        raise file.error(
            f"{file.path}: the data of {hdu.name} do not go with the checksum in its header "
            f"(DATASUM is {data_sum[:20]}, found {found}): damaged, or changed since "
            "(--no-checksums does not look)"
        )
    if checksum and fold(_byte_sum(file, start, hdu.offset - start) + found) != _MINUS_ZERO:
        if not data_sum:
            raise file.error(
                f"{file.path}: {hdu.name} does not go with its CHECKSUM: damaged, or changed since "
                "(--no-checksums does not look)"
            )
        log.warning(
            "%s: the header of %s was changed after its CHECKSUM was made", file.path.name, hdu.name
        )


def _byte_sum(file: FitsFile, start: int, length: int) -> int:
    total, rest = 0, b""
    for piece in file.pieces(start, length):
        piece = rest + piece if rest else piece
        whole = len(piece) // 4 * 4
        rest = piece[whole:]
        total += datasum(memoryview(piece)[:whole])
    return fold(total + datasum(rest))
