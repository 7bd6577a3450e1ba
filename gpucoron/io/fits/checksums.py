"""FITS checksums (DATASUM, CHECKSUM) and CRC-32: detect damaged or modified files.

The sums are made here, not by astropy: its `verify_checksum` takes the data's sum as 0 where there
is no DATASUM, rewrites cards against the standard before it sums them, does not see the bytes that
pad a header, and wants an HDU in memory; and psfalign is written, and summed, out of order.

References
----------
FITS standard 4.0, section 4.4.2.7 and appendix J.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
from astropy.io import fits

from gpucoron.errors import InputError
from gpucoron.io.files import open_regular
from gpucoron.io.fits.headers import quiet
from gpucoron.io.fits.reading import FitsFile, open_fits
from gpucoron.io.fits.walk import Hdu

__all__ = [
    "SUM_COMMENT",
    "check_sums",
    "crc32",
    "fold",
    "is_whole",
    "summed_header",
    "word_sum",
]

log = logging.getLogger("gpucoron")

SUM_COMMENT = "sum of 32-bit words, FITS standard"
_MINUS_ZERO = 0xFFFFFFFF  # as a ones'-complement sum
_CHUNK = 1 << 23  # bytes
_NO_SUM = "0" * 16  # what CHECKSUM is while the sum is made
_PUNCTUATION = frozenset(b":;<=>?@[\\]^_`")


def crc32(path: str | os.PathLike, stop: Callable[[], bool] = lambda: False) -> str:
    """Return the CRC-32 of a file's bytes, as of zip, in hexadecimal; "" once `stop` is true.

    Raises
    ------
    OSError
        It cannot be read, or is no regular file.
    """
    value = 0
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
            if stop():
                return ""
    return f"{value:08x}"


def is_whole(path: str | os.PathLike, sums: Mapping[str, str | None]) -> bool:
    """Return whether a FITS file is unmodified: its HDUs have the CHECKSUM in `sums`, by name.

    Every byte is read. The ones'-complement sum of an HDU is minus zero if header and data are as
    they were written.
    """
    try:
        file = open_fits(path, InputError)
        ends = [hdu.end for hdu in file.hdus]
        found = {hdu.name: hdu.header.get("CHECKSUM") for hdu in file.hdus}
        if found != dict(sums) or os.path.getsize(path) != ends[-1]:
            return False
        return all(
            _byte_sum(file, start, end) == _MINUS_ZERO for start, end in pairwise([0, *ends])
        )
    except (InputError, OSError):
        return False


def check_sums(file: FitsFile) -> None:
    """Compare the checksums in a file's headers, where there are any, with its bytes.

    CHECKSUM covers the header, too: where it alone is wrong, someone has edited a keyword, which
    gives a warning.

    Raises
    ------
    InputError
        (as the file's `error`) Some data are not those for which DATASUM was made.
    """
    file = file.stored or file
    start, size = 0, file.size  # the padding at the end may be missing
    for hdu in file.hdus:
        given = [hdu.header.get(keyword) for keyword in ("DATASUM", "CHECKSUM")]
        given = [v.strip() if isinstance(v, str) else None for v in given]
        if any(given):
            _check_sum(file, hdu, start, min(hdu.end, size), *given)
        start = hdu.end


def _check_sum(file: FitsFile, hdu: Hdu, start: int, end: int, data_sum, checksum) -> None:
    found = _byte_sum(file, hdu.offset, end)
    hint = "damaged, or changed since (--no-checksums does not look)"
    if data_sum and (not data_sum.isdecimal() or int(data_sum[:20]) != found):
        raise file.problem(
            f"the data of {hdu.name} do not go with the checksum in its header "
            f"(DATASUM is {data_sum[:20]}, found {found}): {hint}"
        )
    if checksum and fold(_byte_sum(file, start, hdu.offset) + found) != _MINUS_ZERO:
        if not data_sum:
            raise file.problem(f"{hdu.name} does not go with its CHECKSUM: {hint}")
        log.warning(
            "%s: the header of %s was changed after its CHECKSUM was made", file.path.name, hdu.name
        )


def _byte_sum(file: FitsFile, start: int, end: int) -> int:
    return fold(sum(map(word_sum, file.pieces(start, end - start))))


def word_sum(data: bytes) -> int:
    """Return the sum of the big-endian 32-bit words of `data`, zeros filling the last one."""
    words = np.frombuffer(data.ljust(-(-len(data) // 4) * 4, b"\0"), dtype=">u4")
    return int(words.sum(dtype=np.uint64))


def fold(total: int) -> int:
    """Return a plain sum of 32-bit words as their ones'-complement sum."""
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def summed_header(header: fits.Header, data_sum: int) -> bytes:
    """Return a header's blocks with DATASUM and a CHECKSUM that covers it and the data.

    Both are set in the header, too.
    """
    header["CHECKSUM"], header["DATASUM"] = _NO_SUM, str(data_sum)
    with quiet():
        text = header.tostring()
    header["CHECKSUM"] = _encoded(fold(word_sum(text.encode("ascii")) + data_sum))
    before, after = (f"CHECKSUM= '{value}'" for value in (_NO_SUM, header["CHECKSUM"]))
    return text.replace(before, after).encode("ascii")


def _encoded(total: int) -> str:
    """Return the 16 characters that bring an HDU whose words sum to `total` to minus zero."""
    value = _MINUS_ZERO - total
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
