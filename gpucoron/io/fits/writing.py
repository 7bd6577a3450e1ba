"""Write FITS files with astropy: with checksums, and complete or not at all."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple, cast

import numpy as np
from astropy.io import fits

from gpucoron.io.files import output_file
from gpucoron.io.fits.checksums import SUM_COMMENT, fold, summed_header
from gpucoron.io.fits.headers import quiet
from gpucoron.io.fits.walk import BLOCK

__all__ = [
    "UNSIGNED_ZERO",
    "Hdu",
    "image_dtype",
    "image_header",
    "stored_words",
    "write_fits",
    "write_hdu",
]

UNSIGNED_ZERO = np.uint32(0x80000000)  # FITS integers have signs: 0 is stored as -2^31, BZERO 2^31


class Hdu(NamedTuple):
    """One HDU to write.

    `array` is an image (floats become float32), a structured array for a table, or None for
    PRIMARY. `header` has the cards that do not describe the data. `units` are TUNIT by column.
    """

    name: str
    array: np.ndarray | None = None
    header: fits.Header | None = None
    units: dict[str, str] | None = None


def write_fits(
    path: str | os.PathLike, hdus: Iterable[Hdu], overwrite: bool = True
) -> dict[str, str]:
    """Write a FITS file, PRIMARY first; return CHECKSUM of every HDU by name.

    Raises
    ------
    OutputError
        That fails; nothing is left.
    """
    with output_file(path, overwrite) as file:
        return {hdu.name or "PRIMARY": write_hdu(file, hdu) for hdu in hdus}


def write_hdu(file: BinaryIO, hdu: Hdu) -> str:
    """Write an HDU: header with checksums, data and padding. Return CHECKSUM."""
    if hdu.array is None or is_words(hdu.array):
        header, array = image_header(hdu), hdu.array
        total = 0
        for words in stored_words(array):
            total += int(words.sum(dtype=np.uint64))
        file.write(summed_header(header, fold(total)))
        for words in stored_words(array):
            file.write(words.byteswap().data.cast("B"))
        file.write(bytes(-file.tell() % BLOCK))
        return header["CHECKSUM"]
    made = _astropy_hdu(hdu)
    with quiet():
        made.add_checksum(when=SUM_COMMENT)
    content = io.BytesIO()  # astropy does not notice that a disk is full
    fits.HDUList([fits.PrimaryHDU(), made]).writeto(content, output_verify="ignore")
    file.write(content.getbuffer()[BLOCK:])  # the primary header is one block
    return made.header["CHECKSUM"]


def is_words(array: np.ndarray) -> bool:
    """Return whether an array is stored as an image of 32-bit words: floats, data quality bits."""
    return array.dtype.kind == "f" or array.dtype == np.uint32


def stored_words(array: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yield the words, native uint32, that a FITS file has for floats or unsigned integers.

    One image (ny, nx) after another; nothing where there is no array.
    """
    if array is None:
        return
    for image in array.reshape(-1, *array.shape[-2:]):
        if array.dtype == np.uint32:
            yield np.ascontiguousarray(image ^ UNSIGNED_ZERO)
        else:
            with np.errstate(over="ignore"):
                yield np.ascontiguousarray(image, dtype=np.float32).view(np.uint32)


def image_dtype(array: np.ndarray) -> str:
    """Return the name of the type that an image is stored in."""
    return "float32" if array.dtype.kind == "f" else array.dtype.name


def image_header(hdu: Hdu) -> fits.Header:
    """Return the header of PRIMARY or an image, with CHECKSUM and DATASUM yet to be set."""
    if hdu.array is None:
        header = fits.PrimaryHDU().header
    else:
        header = _image_layout(hdu.name, image_dtype(hdu.array), hdu.array.shape).copy()
    return _completed(header, hdu)


@functools.lru_cache(maxsize=128)
def _image_layout(name: str, dtype: str, shape: tuple[int, ...]) -> fits.Header:
    """Return the cards that describe an image."""
    return fits.ImageHDU(np.broadcast_to(np.zeros((), dtype), shape), name=name, ver=1).header


def _completed(header: fits.Header, hdu: Hdu) -> fits.Header:
    """Add an HDU's own cards and those of its checksums to the cards that describe its data."""
    with quiet():
        header.extend(hdu.header or (), strip=False, end=True)
    header.extend([("CHECKSUM", "", SUM_COMMENT), ("DATASUM", "", SUM_COMMENT)], end=True)
    return header


def _astropy_hdu(hdu: Hdu) -> fits.ImageHDU | fits.BinTableHDU:
    """Return a table, or an image of other than 32-bit words, as astropy has it.

    The data are a big-endian copy: astropy swaps the bytes of what it writes or sums in place, and
    back, and another thread that reads the array meanwhile would see them swapped.
    """
    array = cast(np.ndarray, hdu.array)
    if array.dtype.names is None:
        made = fits.ImageHDU(array.astype(array.dtype.newbyteorder(">")), name=hdu.name, ver=1)
    else:
        columns = fits.ColDefs(array)
        for column in columns:
            column.dim = None  # a row of numbers is one without TDIM, too
            column.unit = (hdu.units or {}).get(column.name)
        made = fits.BinTableHDU.from_columns(columns, name=hdu.name, ver=1)
    _completed(made.header, hdu)
    return made
