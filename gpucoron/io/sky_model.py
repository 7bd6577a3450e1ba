"""A file with the image of a disk or another source on the sky."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import numpy as np

from gpucoron.errors import InputError
from gpucoron.io.fits.checksums import check_sums
from gpucoron.io.fits.headers import number_pair
from gpucoron.io.fits.reading import FitsFile, open_fits
from gpucoron.io.fits.walk import Hdu

__all__ = ["SkyModelFile", "read_sky_model"]

_UNITS = ("mjy/sr", "mjy / sr", "mjy.sr-1", "mjy sr-1")
_SQUARE = 0.01  # relative, by which pixels may differ from squares
_DEGREE = 3600.0  # arcsec


class SkyModelFile(NamedTuple):
    """The image of a source, and where its pixels are on the sky."""

    image: np.ndarray  # (ny, nx) float64, MJy/sr
    star: tuple[float, float]  # y, x, pixels from 0
    scale: float  # arcsec
    angle_deg: float  # position angle of the y axis


def read_sky_model(path: str | os.PathLike, checksums: bool = True) -> SkyModelFile:
    """Read the image of a source on the sky.

    Parameters
    ----------
    path : path
        FITS: SCI, or the primary HDU, (ny, nx) in MJy/sr, as the sky is before the telescope
        (not convolved). Pixels that are not finite count as 0. The scale and the angle are those of
        CD1_1 ... or CDELT1, CDELT2 with PC1_1 ...; or PIXELSCL (arcsec), north up and east left.
        The star is at STARCENX, STARCENY, else at CRPIX1, CRPIX2 (all from 1), else in the middle.
    checksums : bool

    Raises
    ------
    InputError
        Unreadable, damaged, no such image, another unit, or pixels that are not square.
    """
    file = open_fits(path, InputError)
    if checksums:
        check_sums(file)
    hdu = file.find("SCI") or file.hdus[0]
    if not hdu.is_image or hdu.empty or len(hdu.shape) != 2:
        found = f"shape {hdu.shape}" if hdu.is_image and not hdu.empty else "no image"
        raise file.problem(f"{hdu.name} has {found}, expected an image (ny, nx) of the sky")
    unit = str(hdu.header.get("BUNIT", "MJy/sr")).strip()
    if unit.lower() not in _UNITS:
        raise file.problem(f"BUNIT is {unit!r}, expected MJy/sr")
    image = file.floats(hdu, "float64")
    image = np.where(np.isfinite(image), image, 0.0)
    if not image.any():
        raise file.problem(f"{hdu.name} is 0 everywhere, expected the image of a source")
    scale, angle = _axes(file, hdu)
    return SkyModelFile(image, _star(file, hdu), scale, angle)


def _star(file: FitsFile, hdu: Hdu) -> tuple[float, float]:
    for header in (hdu.header, file.hdus[0].header):
        for names in (("STARCENX", "STARCENY"), ("CRPIX1", "CRPIX2")):
            pair = number_pair(header, *names)
            if pair is not None:
                return pair[1] - 1, pair[0] - 1
    return (hdu.shape[0] - 1) / 2, (hdu.shape[1] - 1) / 2


def _axes(file: FitsFile, hdu: Hdu) -> tuple[float, float]:
    """Return the side of a pixel, arcsec, and the position angle of the y axis, degrees."""
    header = hdu.header
    side = header.get("PIXELSCL", file.hdus[0].header.get("PIXELSCL"))
    steps = number_pair(header, "CDELT1", "CDELT2")
    along_x, along_y = number_pair(header, "CD1_1", "CD2_1"), number_pair(header, "CD1_2", "CD2_2")
    if along_x and along_y:
        matrix = np.array([along_x, along_y]).T
    elif steps:
        names = ("PC1_1", 1.0), ("PC1_2", 0.0), ("PC2_1", 0.0), ("PC2_2", 1.0)
        turn = np.array([float(header.get(name, usual)) for name, usual in names])
        matrix = np.diag(steps) @ turn.reshape(2, 2)
    elif isinstance(side, int | float) and not isinstance(side, bool) and side > 0:
        return float(side), 0.0
    else:
        raise file.problem(
            "the scale of the image is not known, expected CD1_1 ..., CDELT1 and CDELT2, or "
            "PIXELSCL (arcsec)"
        )
    scale = math.sqrt(abs(np.linalg.det(matrix)))
    angle = math.atan2(matrix[0, 1], matrix[1, 1])
    square = scale * np.array(
        [[-math.cos(angle), math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    if not scale > 0 or not np.allclose(matrix, square, rtol=0, atol=_SQUARE * scale):
        raise file.problem(
            f"a pixel along x and y is {np.round(matrix[:, 0] * _DEGREE, 4).tolist()} and "
            f"{np.round(matrix[:, 1] * _DEGREE, 4).tolist()} arcsec east and north, expected "
            "squares with east to the left of north"
        )
    return scale * _DEGREE, math.degrees(angle)
