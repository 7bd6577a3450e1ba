"""Spectra and filter curves as text files or FITS tables of two columns."""

from __future__ import annotations

import os
import warnings

import numpy as np

from gpucoron.errors import InputError
from gpucoron.io.files import open_input
from gpucoron.io.fits.reading import open_fits

__all__ = ["read_curve"]

_TO_UM = {"um": 1.0, "micron": 1.0, "microns": 1.0, "nm": 1e-3, "angstrom": 1e-4, "m": 1e6}
_TO_JY = {"jy": 1.0, "mjy": 1e-3, "": 1.0}


def read_curve(path: str | os.PathLike, values: str) -> tuple[np.ndarray, np.ndarray]:
    """Read wavelengths and values.

    Parameters
    ----------
    path : path
        A text file of two columns, wavelengths in um and values, lines with ``#`` left out; or a
        FITS table (.fits) whose first two columns these are, with TUNIT1 um, nm, Angstrom or m.
    values : {"flux", "transmission"}
        What the second column is; flux densities are in Jy, or as TUNIT2 says (Jy, mJy).

    Returns
    -------
    wavelength_um, values : (n,) float64
        In the order of ascending wavelengths.

    Raises
    ------
    InputError
        Unreadable, fewer than two rows, or numbers that cannot be.
    """
    is_fits = os.fspath(path).lower().endswith((".fits", ".fits.gz"))
    wavelength, column = (_from_fits if is_fits else _from_text)(path)
    order = np.argsort(wavelength)
    wavelength, column = wavelength[order], column[order]
    good = np.isfinite(wavelength).all() and np.isfinite(column).all()
    if not good or wavelength.size < 2 or wavelength[0] <= 0 or not np.all(np.diff(wavelength) > 0):
        raise InputError(
            f"{path}: {wavelength.size} rows, expected two or more with different wavelengths "
            "above 0, and finite numbers only"
        )
    if column.min() < 0 or not column.max() > 0:
        raise InputError(
            f"{path}: {values} from {column.min():g} to {column.max():g}, expected > 0"
        )
    return wavelength, column


def _from_text(path):
    with open_input(path, InputError, "a text file of wavelengths and values") as file:
        content = file.read()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty file, which the caller reports
            lines = content.decode("utf-8").replace(",", " ").splitlines()
            table = np.loadtxt(lines, usecols=(0, 1), ndmin=2)
    except (ValueError, IndexError, UnicodeDecodeError):
        raise InputError(
            f"{path}: not two columns of numbers, expected wavelengths (um) and values"
        ) from None
    return table.reshape(-1, 2).T


def _from_fits(path):
    file = open_fits(path, InputError)
    for hdu in file.hdus[1:]:
        table = None if hdu.is_image else file.table(hdu)
        names = () if table is None else (table.dtype.names or ())
        if table is None or len(names) < 2:
            continue
        columns = [np.asarray(table[name], np.float64).ravel() for name in names[:2]]
        for k, known in enumerate((_TO_UM, _TO_JY)):
            unit = str(hdu.header.get(f"TUNIT{k + 1}", "" if k else "um")).strip()
            if unit.lower() not in known:
                expected = "um, nm, Angstrom or m" if k == 0 else "Jy or mJy"
                raise file.problem(f"TUNIT{k + 1} is {unit!r}, expected {expected}")
            columns[k] = columns[k] * known[unit.lower()]
        return columns[0], columns[1]
    raise file.problem("no table, expected one with wavelengths and values in two columns")
