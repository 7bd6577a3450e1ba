"""Write FITS files, with headers by astropy: with checksums, and complete or not at all."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from astropy.io import fits

from gpucoron.io.files import output_file
from gpucoron.io.fits.checksums import SUM_COMMENT, fold, summed_header, word_sum
from gpucoron.io.fits.headers import quiet
from gpucoron.io.fits.walk import BLOCK
from gpucoron.io.second_process import in_second_process

__all__ = [
    "UNSIGNED_ZERO",
    "Hdu",
    "hdu_header",
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
    header, array = hdu_header(hdu), hdu.array
    if array is None or is_words(array):
        total = 0
        for words in stored_words(array):
            total += int(words.sum(dtype=np.uint64))
        file.write(summed_header(header, fold(total)))
        for words in stored_words(array):
            file.write(words.byteswap().data.cast("B"))
    else:
        data = _stored(array).tobytes()
        file.write(summed_header(header, fold(word_sum(data))))
        file.write(data)
    file.write(bytes(-file.tell() % BLOCK))
    return header["CHECKSUM"]


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


def _stored(array: np.ndarray) -> np.ndarray:
    """Return numbers or a table as a FITS file has them: big-endian, T and F for booleans."""
    names = array.dtype.names
    if names is not None:
        columns = {name: _stored(array[name]) for name in names}
        stored = np.empty(len(array), [(n, c.dtype, c.shape[1:]) for n, c in columns.items()])
        for name, column in columns.items():
            stored[name] = column
        return stored
    if array.dtype.kind == "b":
        return np.where(array, b"T", b"F")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array ^ array.dtype.type(1 << 8 * array.dtype.itemsize - 1)
    return array.astype(array.dtype.newbyteorder(">"))


def image_dtype(array: np.ndarray) -> str:
    """Return the name of the type that an image is stored in."""
    return "float32" if array.dtype.kind == "f" else array.dtype.name


def hdu_header(hdu: Hdu) -> fits.Header:
    """Return the header of an HDU, with CHECKSUM and DATASUM yet to be set."""
    array = hdu.array
    if array is None:
        header = fits.PrimaryHDU().header
    elif array.dtype.names is None:
        header = _image_layout(hdu.name, image_dtype(array), array.shape).copy()
    else:
        units = tuple((hdu.units or {}).get(name) for name in array.dtype.names)
        header = _table_layout(hdu.name, array.dtype, len(array), units).copy()
    with quiet():
        header.extend(hdu.header or (), strip=False, end=True)
    header.extend([("CHECKSUM", "", SUM_COMMENT), ("DATASUM", "", SUM_COMMENT)], end=True)
    return header


@functools.lru_cache(maxsize=128)
def _image_layout(name: str, dtype: str, shape: tuple[int, ...]) -> fits.Header:
    """Return the cards that describe an image."""
    return fits.ImageHDU(np.broadcast_to(np.zeros((), dtype), shape), name=name, ver=1).header


@functools.lru_cache(maxsize=32)
def _table_layout(name: str, dtype: np.dtype, rows: int, units: tuple) -> fits.Header:
    """Return the cards that describe a table whose columns have these units, or None."""
    return in_second_process(_table_cards, name, dtype, rows, units)  # it imports astropy.table


def _table_cards(name: str, dtype: np.dtype, rows: int, units: tuple) -> fits.Header:
    columns = fits.ColDefs(np.zeros(rows, dtype))
    for column, unit in zip(columns, units, strict=True):
        column.dim = None  # a row of numbers is one without TDIM, too
        column.unit = unit
    return fits.BinTableHDU.from_columns(columns, name=name, ver=1).header
