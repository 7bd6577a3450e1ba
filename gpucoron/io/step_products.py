"""Read the products of steps: which step wrote a file, psfstack's sources, psfalign by parts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from astropy.io.fits import Header

from gpucoron.core.stack import PlaneSource
from gpucoron.errors import ExposureError, InputError
from gpucoron.io.fits.headers import add_history, layout
from gpucoron.io.fits.reading import FitsFile, open_fits
from gpucoron.io.fits.walk import Hdu as StoredHdu
from gpucoron.io.fits.writing import Hdu
from gpucoron.io.names import exposure_root
from gpucoron.io.star import read_star

if TYPE_CHECKING:
    from gpucoron.core.star import StarPositions

__all__ = ["PsfalignFile", "product_kind", "read_sources", "read_star_of", "sources_hdu"]

#: Keywords of steps that are COMPLETE in a product, and not in those before it; the last first.
_KINDS = {"S_RESAMP": "i2d", "S_KLIP": "psfsub", "S_PSFALI": "psfalign", "S_PSFSTK": "psfstack"}
_TEXT = (
    "A row for each reference image, in the order of SCI: the exposure that",
    "it is from, and its integration there, counted from 1.",
)


def product_kind(path: str | Path) -> str:
    """Return what a file holds, by the steps in its header.

    Returns
    -------
    str
        "i2d", "psfsub", "psfalign" or "psfstack", of gpucoron or jwst; "exposure" for anything
        else: calints, cal, crfints.

    Raises
    ------
    ExposureError
        No such file, or not FITS.
    """
    header = open_fits(path, ExposureError).hdus[0].header
    for keyword, kind in _KINDS.items():
        if str(header.get(keyword, "")).strip().upper() == "COMPLETE":
            return kind
    return "exposure"


# ---- psfstack


def sources_hdu(sources: tuple[PlaneSource, ...]) -> Hdu:
    """Return the HDU SOURCES, which says where the planes of psfstack are from."""
    header = Header()
    add_history(header, _TEXT, "COMMENT")
    names = np.array([source.exposure.encode("ascii", "replace") for source in sources])
    table = np.zeros(len(sources), dtype=[("exposure", names.dtype), ("integration", "i4")])
    table["exposure"], table["integration"] = names, [s.integration for s in sources]
    return Hdu("SOURCES", table, header)


def read_sources(path: str | Path, n: int) -> tuple[PlaneSource, ...]:
    """Return where the `n` planes of psfstack are from; empty where it does not say (jwst's)."""
    file = open_fits(path, ExposureError)
    hdu = file.find("SOURCES")
    table = None if hdu is None else file.table(hdu)
    if table is None or not {"exposure", "integration"} <= set(table.dtype.names or ()):
        return ()
    if len(table) != n:
        raise file.problem(f"SOURCES has {len(table)} rows, expected {n} as SCI has images")
    return tuple(
        PlaneSource(name.decode("ascii", "replace").strip(), int(integration))
        for name, integration in zip(table["exposure"], table["integration"], strict=True)
    )


# ---- psfalign


class PsfalignFile:
    """A psfalign file of gpucoron or jwst, whose images are read when they are asked for.

    Parameters
    ----------
    path : path
    shape : (n, ny, nx)
        Of the science exposure that it belongs to.

    Attributes
    ----------
    root : str
        File name without ``_psfalign.fits``.
    each : bool
        Whether every science integration has aligned references of its own.
    shape : (nref, ny, nx)
        Of the references of one integration.

    Raises
    ------
    ExposureError
        No such file, not FITS, or SCI that does not go with the exposure.
    """

    def __init__(self, path: str | Path, shape: tuple[int, int, int]):
        self.path, self.root = Path(path), exposure_root(path)
        self._file: FitsFile = open_fits(path, ExposureError)
        sci = self._file.find("SCI")
        expected = f"({shape[0]}, nref, {shape[1]}, {shape[2]}) or (nref, {shape[1]}, {shape[2]})"
        if sci is None or not sci.is_image or len(sci.shape) not in (3, 4) or sci.empty:
            found = "no SCI" if sci is None else f"SCI of shape {sci.shape}"
            raise self._file.problem(f"has {found}, expected aligned references {expected}")
        self.each = len(sci.shape) == 4
        if sci.shape[-2:] != shape[1:] or (self.each and sci.shape[0] != shape[0]):
            raise self._file.problem(f"SCI has shape {sci.shape}, expected {expected}")
        self._images = {"SCI": sci}
        for name in ("ERR", "DQ"):
            plane = self._file.find(name)
            if plane is not None and plane.is_image and plane.shape == sci.shape:
                self._images[name] = plane
        nref, ny, nx = sci.shape[-3:]
        self.shape = nref, ny, nx
        self._stored = nref
        self._planes: slice | list[int] = slice(None)

    def select(self, planes: list[int]) -> PsfalignFile:
        """Return the file with some of its references only."""
        part = copy.copy(self)
        part._planes, part.shape = planes, (len(planes), *self.shape[1:])
        return part

    def references(self, integration: int, name: str = "SCI") -> np.ndarray | None:
        """Return the references aligned to a science integration (from 0), (nref, ny, nx) float32.

        NaN for those that were left out. `name` "ERR" gives their errors, "DQ" their flags
        (uint32); None without any.
        """
        if name not in self._images:
            return None
        stored, (n, ny, nx) = self._images[name], (self._stored, *self.shape[1:])
        length = abs(stored.bitpix) // 8 * n * ny * nx
        header = layout(stored.header)
        header["NAXIS"] = 3
        header.remove("NAXIS4", ignore_missing=True)
        offset = stored.offset + (integration * length if self.each else 0)
        part = StoredHdu(name, header, stored.kind, stored.bitpix, (n, ny, nx), offset, length)
        planes = self._file.bits(part) if name == "DQ" else self._file.floats(part)
        return planes[self._planes]

    def shifts(self, integration: int) -> np.ndarray | None:
        """Return how far (y, x) references were moved for a science integration, (nref, 2) px.

        None where ALIGN does not say.
        """
        hdu = self._file.find("ALIGN")
        table = None if hdu is None else self._file.table(hdu)
        if table is None or not {"sci_integration", "x", "y"} <= set(table.dtype.names or ()):
            return None
        rows = table[table["sci_integration"] == integration + 1]
        moved = -np.stack([rows["y"], rows["x"]], axis=1)
        return moved[self._planes] if len(moved) == self._stored else None


def read_star_of(path: str | Path, n: int) -> tuple[StarPositions | None, np.ndarray | None]:
    """Return the star's position in psfsub or psfalign of `n` integrations, and POSITIONS.

    Returns
    -------
    StarPositions or None, structured array or None
        As `gpucoron.io.star.read_star`; the table where there is one.
    """
    file = open_fits(path, InputError)
    hdu, sci = file.find("POSITIONS"), file.find("SCI")
    table = None if hdu is None else file.table(hdu)
    return (None if sci is None else read_star(sci.header, table, n)), table
