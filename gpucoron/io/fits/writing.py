"""Write FITS files with astropy: with checksums, and complete or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple, TypeGuard

import numpy as np
from astropy.io import fits

from gpucoron.io.files import output_file
from gpucoron.io.fits.checksums import SUM_COMMENT, fold, summed_header
from gpucoron.io.fits.headers import quiet
from gpucoron.io.fits.walk import BLOCK

__all__ = [
    "UNSIGNED_ZERO",
    "Hdu",
    "astropy_hdu",
    "image_dtype",
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
    made = astropy_hdu(hdu)
    if is_words(hdu.array):
        total = sum(int(words.sum(dtype=np.uint64)) for words in stored_words(hdu.array))
        file.write(summed_header(made.header, fold(total)))
        for words in stored_words(hdu.array):
            file.write(words.byteswap().data.cast("B"))
        file.write(bytes(-4 * hdu.array.size % BLOCK))
    else:  # astropy does not write to the disk itself: where that is full it does not say so
        with quiet():
            made.add_checksum(when=SUM_COMMENT)
        before = [] if hdu.array is None else [fits.PrimaryHDU()]  # a block, which is left out
        content = io.BytesIO()
        fits.HDUList([*before, made]).writeto(content, output_verify="ignore")
        file.write(content.getbuffer()[BLOCK * len(before) :])
    return made.header["CHECKSUM"]


def is_words(array: np.ndarray | None) -> TypeGuard[np.ndarray]:
    """Return whether an array is stored as an image of 32-bit words: floats, data quality bits."""
    return (
        array is not None
        and array.ndim > 0
        and (array.dtype.kind == "f" or array.dtype == np.uint32)
    )


def stored_words(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the words, native uint32, that a FITS file has for floats or unsigned integers.

    One image (ny, nx) after another.
    """
    for image in array.reshape(-1, *array.shape[-2:]):
        if array.dtype == np.uint32:
            yield np.ascontiguousarray(image ^ UNSIGNED_ZERO)
        else:
            with np.errstate(over="ignore"):
                yield np.ascontiguousarray(image, dtype=np.float32).view(np.uint32)


def image_dtype(array: np.ndarray) -> str:
    """Return the name of the type that an image is stored in."""
    return "float32" if array.dtype.kind == "f" else array.dtype.name


def astropy_hdu(hdu: Hdu) -> fits.PrimaryHDU | fits.ImageHDU | fits.BinTableHDU:
    """Return an HDU as astropy has it: of an image of words the header alone, else with its data.

    The data are a big-endian copy: astropy swaps the bytes of what it writes or sums in place, and
    back, and another thread that reads the array meanwhile would see them swapped.
    """
    if hdu.array is None:
        made = fits.PrimaryHDU()
    elif hdu.array.dtype.names is None:
        stored = np.dtype(image_dtype(hdu.array)).newbyteorder(">")
        if is_words(hdu.array):
            array = np.broadcast_to(np.zeros((), stored), hdu.array.shape)
        else:
            array = hdu.array.astype(stored, copy=False)
        made = fits.ImageHDU(array, name=hdu.name, ver=1)
    else:
        columns = fits.ColDefs(hdu.array)
        for column in columns:
            column.dim = None  # a row of numbers is one without TDIM, too
            column.unit = (hdu.units or {}).get(column.name)
        made = fits.BinTableHDU.from_columns(columns, name=hdu.name, ver=1)
    if hdu.header:
        with quiet():  # as text: a card that has been changed would be formatted time and again
            text = hdu.header.tostring(endcard=False, padding=False)
            made.header.extend(fits.Header.fromstring(text), strip=False, end=True)
    made.header.extend([("CHECKSUM", "", SUM_COMMENT), ("DATASUM", "", SUM_COMMENT)], end=True)
    return made
