"""Write FITS files with astropy: with checksums, and complete or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from astropy.io import fits

from gpucoron.io.files import output_file
from gpucoron.io.fits.checksums import SUM_COMMENT
from gpucoron.io.fits.headers import quiet
from gpucoron.io.fits.walk import BLOCK

__all__ = ["Hdu", "astropy_hdu", "hdu_bytes", "image_dtype", "write_fits"]


class Hdu(NamedTuple):
    """One HDU to write.

    `array` is an image (floats become float32), a structured array for a table, or None for
    PRIMARY. `header` has the cards that do not describe the data. `units` are TUNIT by column.
    """

    name: str
    array: np.ndarray | None = None
    header: fits.Header | None = None
    units: dict[str, str] | None = None


def write_fits(path: str | os.PathLike, hdus: Iterable[Hdu], overwrite: bool = True) -> None:
    """Write a FITS file, PRIMARY first; raise OutputError, and leave nothing, where that fails."""
    with output_file(path, overwrite) as file:
        for hdu in hdus:
            file.write(hdu_bytes(hdu))


def hdu_bytes(hdu: Hdu) -> memoryview:
    """Return all bytes of an HDU: header with checksums, data and padding.

    astropy does not write to the disk itself: where that is full it does not say so.
    """
    made = astropy_hdu(hdu)
    with quiet():
        made.add_checksum(when=SUM_COMMENT)
    before = [] if hdu.array is None else [fits.PrimaryHDU()]  # a block, which is left out
    file = io.BytesIO()
    fits.HDUList([*before, made]).writeto(file, output_verify="ignore")
    return file.getbuffer()[BLOCK * len(before) :]


def image_dtype(array: np.ndarray) -> str:
    """Return the name of the type that an image is stored in."""
    return "float32" if array.dtype.kind == "f" else array.dtype.name


def astropy_hdu(hdu: Hdu) -> fits.PrimaryHDU | fits.ImageHDU | fits.BinTableHDU:
    """Return an HDU as astropy has it, whose data are a big-endian copy.

    astropy swaps the bytes of what it writes or sums in place, and back: another thread that reads
    the array meanwhile would see them swapped.
    """
    if hdu.array is None:
        made = fits.PrimaryHDU()
    elif hdu.array.dtype.names is None:
        stored = np.dtype(image_dtype(hdu.array)).newbyteorder(">")
        with np.errstate(over="ignore"):
            made = fits.ImageHDU(hdu.array.astype(stored, copy=False), name=hdu.name, ver=1)
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
