"""A file with images of a star that replace the model of the coronagraph."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np

from gpucoron.errors import InputError
from gpucoron.io.fits.checksums import check_sums
from gpucoron.io.fits.headers import number_pair
from gpucoron.io.fits.reading import FitsFile, open_fits
from gpucoron.io.fits.walk import Hdu

__all__ = ["StarModelFile", "read_star_model"]


class StarModelFile(NamedTuple):
    """Images of a star, where it is in each, and where the coronagraph's mask is in all."""

    images: np.ndarray  # (n, ny, nx) float64
    positions: np.ndarray  # (n, 2) float64: x and y, pixels from 0
    mask: tuple[float, float] | None  # x and y, pixels from 0


def read_star_model(path: str | os.PathLike, checksums: bool = True) -> StarModelFile:
    """Read images of a star: SCI, or the primary HDU where there is no SCI.

    The star is where the table STARS has it (columns x and y, a row an image), or, in a file with
    one image, where STARCENX and STARCENY have it; the mask is at MASKCENX, MASKCENY, all in pixels
    counted from 1. Keywords are those of the image's header, or of the primary header.

    Raises
    ------
    InputError
        Unreadable, damaged (with `checksums`), no image, an image that is not (ny, nx) or
        (n, ny, nx), or no position of the star.
    """
    file = open_fits(path, InputError)
    if checksums:
        check_sums(file)
    hdu = file.find("SCI") or file.hdus[0]
    expected = "expected images of a star, (ny, nx) or (n, ny, nx)"
    if not hdu.is_image or hdu.empty:
        raise file.problem(f"no image in SCI or the primary HDU (found: {file.names}), {expected}")
    if len(hdu.shape) not in (2, 3):
        raise file.problem(f"{hdu.name} has shape {hdu.shape}, {expected}")
    images = file.floats(hdu, "float64").reshape(-1, *hdu.shape[-2:])
    mask = _keywords(file, hdu, "MASKCENX", "MASKCENY")
    return StarModelFile(
        images, _positions(file, hdu, len(images)), None if mask is None else tuple(mask)
    )


def _positions(file: FitsFile, hdu: Hdu, n: int) -> np.ndarray:
    """Return where the star is in each of `n` images, (n, 2), pixels from 0."""
    stars = file.find("STARS")
    if stars is None:
        place = _keywords(file, hdu, "STARCENX", "STARCENY") if n == 1 else None
        if place is None:
            keywords = "STARCENX and STARCENY, or " if n == 1 else ""
            raise file.problem(
                f"does not say where the star is, expected {keywords}a table STARS with columns x "
                f"and y (pixels from 1) and a row for each of {n} images"
            )
        return np.array([place])
    table = file.table(stars)
    columns: dict[str, np.ndarray] = {}
    if table is not None:
        columns = {name.lower(): table[name] for name in table.dtype.names or ()}
    if not {"x", "y"} <= set(columns) or any(
        columns[name].ndim != 1 or columns[name].dtype.kind not in "iuf" for name in "xy"
    ):
        raise file.problem(
            "STARS is no table with columns x and y of numbers, expected the star's pixels from 1"
        )
    if len(columns["x"]) != n:
        raise file.problem(f"STARS has {len(columns['x'])} rows, expected {n}: one for each image")
    return np.stack([columns["x"], columns["y"]], axis=1).astype(np.float64) - 1


def _keywords(file: FitsFile, hdu: Hdu, x: str, y: str) -> np.ndarray | None:
    """Return two keywords of the image or of the primary header, less 1; None without them."""
    for header in (hdu.header, file.hdus[0].header):
        if x in header or y in header:
            pair = number_pair(header, x, y)
            if pair is None:
                raise file.problem(
                    f"{x}, {y} are {header.get(x)!r}, {header.get(y)!r}, expected two numbers: "
                    "pixels from 1"
                )
            return np.array(pair) - 1
    return None
