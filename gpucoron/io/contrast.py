"""Contrast curves and maps as files: a table (ECSV) and FITS."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.io.files import output_file
from gpucoron.io.fits.headers import ascii_text, quiet

if TYPE_CHECKING:
    from astropy.table import QTable

    from gpucoron.io.wcs import OutputWcs

__all__ = ["write_contrast", "write_contrast_table"]

#: Keywords of the primary header and their comments.
KEYWORDS = {
    "CONTSIG": "Gaussian sigmas of the limits",
    "CONTCONV": "how limits are computed",
    "STARFLUX": "[Jy] flux of the star",
    "STARFERR": "[Jy] its standard deviation",
    "STARFSRC": "where it is from",
    "CALIBRAT": "losses in mask and KLIP are in the limits",
    "JYPERFLX": "[Jy] of a source of 1 MJy/sr times pixels",
    "FWHMPX": "[pix] FWHM of the PSF",
    "PSFSRC": "PSF of a source beside the mask",
    "MASKED": "what does not count as noise",
}


def write_contrast_table(path: Path, table: QTable, overwrite: bool = True) -> dict[str, str]:
    """Write a contrast curve as ECSV; return no checksums."""
    text = io.StringIO()
    table.write(text, format="ascii.ecsv")
    with output_file(path, overwrite) as file:
        file.write(text.getvalue().encode("utf-8"))
    return {}


def write_contrast(
    path: Path,
    table: QTable,
    planes: Mapping[str, tuple[np.ndarray, str]],
    keywords: Mapping[str, Any],
    wcs: OutputWcs,
    overwrite: bool = True,
) -> dict[str, str]:
    """Write a contrast map with its curve as FITS.

    Parameters
    ----------
    path : Path
    table : QTable
        Becomes the table CURVE.
    planes : dict of str to (array, unit)
        Images by EXTNAME.
    keywords : dict of str to value
        Of the primary header, some of `KEYWORDS`; None is left out.
    wcs : OutputWcs
        Of the images.
    overwrite : bool

    Returns
    -------
    dict of str to str
        CHECKSUM of each HDU by its name.
    """
    from astropy.io import fits

    primary = fits.PrimaryHDU()
    with quiet():
        for name, value in keywords.items():
            if value is not None:
                plain = ascii_text(value) if isinstance(value, str) else value
                primary.header[name] = (plain, KEYWORDS[name])
        hdus = fits.HDUList([primary])
        for name, (plane, unit) in planes.items():
            hdu = fits.ImageHDU(plane.astype(np.float32), name=name)
            hdu.header["BUNIT"] = unit
            for keyword, value, comment in wcs.to_header_cards():
                hdu.header[keyword] = (value, comment)
            hdus.append(hdu)
        plain_table = table.copy()
        plain_table.meta = {}
        curve = fits.table_to_hdu(plain_table)
        curve.name = "CURVE"
        hdus.append(curve)
        content = io.BytesIO()
        hdus.writeto(content, checksum=True)
    with output_file(path, overwrite) as file:
        file.write(content.getvalue())
    return {hdu.name: hdu.header["CHECKSUM"] for hdu in hdus}
