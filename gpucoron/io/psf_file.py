"""A file with the PSF of an off-axis source: one image, a cube with places, or a grid of STPSF."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

import numpy as np

from gpucoron.errors import InputError
from gpucoron.io.fits.checksums import check_sums
from gpucoron.io.fits.headers import number_pair
from gpucoron.io.fits.reading import FitsFile, open_fits
from gpucoron.io.fits.walk import Hdu
from gpucoron.io.names import says_nothing

__all__ = ["PsfFile", "read_psf"]

_IMAGES = ("SCI", "OVERDIST", "OVERSAMP", "DET_DIST", "DET_SAMP")  # the first that there is
_UNITS = {"arcsec": True, "": True, "pix": False, "pixel": False, "px": False}
_YX = re.compile(r"\s*\(\s*([^,()]+),\s*([^,()]+)\)\s*")
_EXPECTED = "expected images of a source, (ny, nx) or (n, ny, nx)"


class PsfFile(NamedTuple):
    """Images of an off-axis source, and what their headers say."""

    images: np.ndarray  # (n, ny, nx) float64
    centre: tuple[float, float] | None  # the source's y and x, samples from 0; None: the middle
    places: np.ndarray | None  # (n, 2) y and x, as `unit` says
    unit: str  # of the places: "arcsec" or "px" from the mask, "detector" (pixels from 0) or ""
    sample_arcsec: float | None  # side of a sample
    oversample: float | None  # samples per pixel, where `sample_arcsec` is not known
    convolved: bool  # a sample is what a whole pixel has
    masked: bool  # the coronagraph's mask is in the images
    filter: str | None


def read_psf(path: str | os.PathLike, checksums: bool = True) -> PsfFile:
    """Read the PSF of an off-axis source.

    Parameters
    ----------
    path : path
        FITS. The image is the first of SCI, OVERDIST, OVERSAMP, DET_DIST, DET_SAMP, or the primary
        HDU. Keywords are those of its header, or of the primary header:

        - PIXELSCL, arcsec: side of a sample (STPSF); without it samples are the detector's pixels;
        - PSFCENX, PSFCENY: the source, samples from 1; by default the middle;
        - EPSF = T: each sample is what a whole pixel centred on it has, an effective PSF;
        - NORMALIZ: as STPSF writes it; "exit_pupil", if it is there;
        - CORONMSK: the mask that is in the images. Without it there is none in a single image (or a
          grid), and one where a table PLACES says where they are.

        PLACES is a table with columns x and y and a row for each image: offsets of the source from
        the mask along the detector's x and y, arcsec, or pixels if TUNIT is pix. DET_YX0, DET_YX1
        ... ("(y, x)") and OVERSAMP make the file a grid of STPSF's ``psf_grid``: samples are
        effective PSFs, and the source is at these pixels (from 0) of the whole detector.
    checksums : bool
        Compare with the checksums in the file, if there are any.

    Raises
    ------
    InputError
        Unreadable, damaged, no such images, or keywords that cannot be.
    """
    file = open_fits(path, InputError)
    if checksums:
        check_sums(file)
    hdu = next(filter(None, map(file.find, _IMAGES)), file.hdus[0])
    if not hdu.is_image or hdu.empty:
        raise file.problem(
            f"no image in {', '.join(_IMAGES)} or the primary HDU (found: {file.names}), "
            f"{_EXPECTED}"
        )
    if len(hdu.shape) not in (2, 3):
        raise file.problem(f"{hdu.name} has shape {hdu.shape}, {_EXPECTED}")
    normalised = _text(file, hdu, "NORMALIZ")
    if normalised not in (None, "exit_pupil"):
        raise file.problem(
            f"NORMALIZ is {normalised!r}, expected 'exit_pupil': fractions of the light without "
            "the mask but with the Lyot stop (calc_psf(normalize='exit_pupil') of STPSF)"
        )
    images = file.floats(hdu, "float64").reshape(-1, *hdu.shape[-2:])
    gridded = [key for key in hdu.header if key.startswith("DET_YX")]
    oversample: float | None = None
    places: np.ndarray | None
    if gridded:
        places, unit = _grid_places(file, hdu, gridded, len(images)), "detector"
        oversample = _number(file, hdu, "OVERSAMP")
        if oversample is None:
            raise file.problem("has DET_YX keywords and no OVERSAMP, expected samples per pixel")
    else:
        places, unit = _table_places(file, len(images))
    mask = _text(file, hdu, "CORONMSK")
    return PsfFile(
        images,
        _centre(file, hdu),
        places,
        unit,
        None if gridded else _number(file, hdu, "PIXELSCL"),
        oversample,
        bool(gridded) or hdu.header.get("EPSF") is True,
        (places is not None and not gridded) if mask is None else not says_nothing(mask),
        _text(file, hdu, "FILTER"),
    )


def _grid_places(file: FitsFile, hdu: Hdu, keys: list[str], n: int) -> np.ndarray:
    """Return y and x of the pixels of a grid of STPSF, (n, 2)."""
    found = []
    for key in sorted(keys, key=lambda k: int(k[6:]) if k[6:].isdigit() else -1):
        text = _YX.fullmatch(str(hdu.header[key]))
        try:
            found.append([float(part) for part in text.groups()] if text else [])
        except ValueError:
            found.append([])
        if len(found[-1]) != 2:
            raise file.problem(f"{key} is {hdu.header[key]!r}, expected '(y, x)', two numbers")
    if len(found) != n:
        raise file.problem(f"{len(found)} DET_YX keywords, expected {n}: one for each image")
    return np.array(found)


def _table_places(file: FitsFile, n: int) -> tuple[np.ndarray | None, str]:
    """Return y and x of the table PLACES, (n, 2), and their unit; None and "" without any."""
    hdu = file.find("PLACES")
    if hdu is None:
        if n > 1:
            raise file.problem(
                f"{n} images and no places, expected a table PLACES with columns x and y (arcsec "
                "from the mask) and a row for each, or keywords DET_YX0 ..."
            )
        return None, ""
    table = file.table(hdu)
    columns: dict[str, np.ndarray] = {}
    if table is not None:
        columns = {name.lower(): table[name] for name in table.dtype.names or ()}
    found = [columns[name] for name in "yx" if name in columns]
    if len(found) < 2 or any(c.ndim != 1 or c.dtype.kind not in "iuf" for c in found):
        raise file.problem(
            "PLACES is no table with columns x and y of numbers, expected offsets of the source "
            "from the mask"
        )
    places = np.stack(found, axis=1).astype(np.float64)
    if len(places) != n:
        raise file.problem(f"PLACES has {len(places)} rows, expected {n}: one for each image")
    units = {_unit(file, hdu, column) for column in "xy"}
    if len(units) > 1:
        raise file.problem("columns x and y of PLACES have different units, expected one")
    return places, "arcsec" if units.pop() else "px"


def _unit(file: FitsFile, hdu: Hdu, column: str) -> bool:
    """Return whether a column of PLACES is in arcsec, not in pixels."""
    number = next(
        k for k in range(1, 1000) if str(hdu.header.get(f"TTYPE{k}", "")).strip().lower() == column
    )
    unit = str(hdu.header.get(f"TUNIT{number}", "")).strip()
    if unit.lower() not in _UNITS:
        raise file.problem(f"TUNIT{number} of PLACES is {unit!r}, expected arcsec or pix")
    return _UNITS[unit.lower()]


def _headers(file: FitsFile, hdu: Hdu):
    return hdu.header, file.hdus[0].header


def _text(file: FitsFile, hdu: Hdu, keyword: str) -> str | None:
    found = (header.get(keyword) for header in _headers(file, hdu))
    return next((str(value).strip() for value in found if value is not None), None)


def _number(file: FitsFile, hdu: Hdu, keyword: str) -> float | None:
    """Return a keyword above 0; None where there is none."""
    for header in _headers(file, hdu):
        if keyword in header:
            value = header[keyword]
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise file.problem(f"{keyword} is {value!r}, expected a number above 0")
            return float(value)
    return None


def _centre(file: FitsFile, hdu: Hdu) -> tuple[float, float] | None:
    """Return y and x of the source, samples from 0; None where the file does not say it."""
    for header in _headers(file, hdu):
        if "PSFCENX" in header or "PSFCENY" in header:
            pair = number_pair(header, "PSFCENX", "PSFCENY")
            if pair is None:
                raise file.problem(
                    f"PSFCENX, PSFCENY are {header.get('PSFCENX')!r}, {header.get('PSFCENY')!r}, "
                    "expected two numbers: samples from 1"
                )
            return pair[1] - 1, pair[0] - 1
    return None
