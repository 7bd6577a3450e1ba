"""Reading exposures: ``_calints`` cubes and ``_cal`` images."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.core.stack import VARIANCES, IntegrationStack, PlaneSource
from gpucoron.errors import ExposureError
from gpucoron.io.fits.headers import plain_value
from gpucoron.io.fits.reading import FitsFile, open_fits
from gpucoron.io.fits.walk import Hdu
from gpucoron.io.names import exposure_root

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = ["Exposure", "ExposureMeta", "exposure_of", "read_exposure", "read_meta", "science_hdu"]

log = logging.getLogger("gpucoron")

_COMPANIONS = ("ERR", "DQ", *(name.upper() for name in VARIANCES))


def _key(keyword: str, home: str = "PRIMARY"):
    """Declare a field of `ExposureMeta`: its keyword and the header where it belongs."""
    return dataclasses.field(default=None, metadata={"keyword": keyword, "home": home})


@dataclass(frozen=True)
class ExposureMeta:
    """What the steps and the products need to know of an exposure; None where the file lacks it.

    Angles in degrees, lengths in arcsec, durations in s, times as MJD (UTC).
    """

    instrument: str | None = _key("INSTRUME")
    detector: str | None = _key("DETECTOR")
    channel: str | None = _key("CHANNEL")
    filter: str | None = _key("FILTER")
    pupil: str | None = _key("PUPIL")
    coronmsk: str | None = _key("CORONMSK")
    subarray: str | None = _key("SUBARRAY")
    exp_type: str | None = _key("EXP_TYPE")
    bunit: str | None = _key("BUNIT", "SCI")
    pixar_sr: float | None = _key("PIXAR_SR", "SCI")
    pixar_a2: float | None = _key("PIXAR_A2", "SCI")
    ra_ref: float | None = _key("RA_REF", "SCI")
    dec_ref: float | None = _key("DEC_REF", "SCI")
    roll_ref: float | None = _key("ROLL_REF", "SCI")
    v3i_yang: float | None = _key("V3I_YANG", "SCI")
    vparity: int | None = _key("VPARITY", "SCI")
    s_region: str | None = _key("S_REGION", "SCI")
    program: str | None = _key("PROGRAM")
    target: str | None = _key("TARGNAME")
    date_obs: str | None = _key("DATE-OBS")
    exposure_time: float | None = _key("XPOSURE", "SCI")
    measurement_time: float | None = _key("TMEASURE")


@dataclass(frozen=True)
class Exposure:
    """One exposure in memory."""

    path: Path
    root: str  # file name without ``_calints.fits``; products are named after it
    exptype: str  # "science" or "psf"
    shape: tuple[int, int, int]  # (n, ny, nx) of the images
    stack: IntegrationStack | None  # values exactly as in the file; None where not read: see `load`
    area: np.ndarray | None  # (ny, nx) float32
    int_times: np.ndarray | None  # structured; the number of rows may differ from n
    primary_header: Header
    headers: dict[str, Header]  # of all extensions, by EXTNAME
    asdf_bytes: bytes | None  # contents of the ASDF extension
    meta: ExposureMeta

    def load(self) -> IntegrationStack:
        """Return the images, read now where they are not in memory.

        Raises
        ------
        ExposureError
            The file is gone or has changed.
        """
        if self.stack is not None:
            return self.stack
        stack = read_exposure(self.path, self.exptype).load()
        if stack.shape != self.shape:
            raise ExposureError(
                f"{self.path}: SCI has shape {stack.shape}, but had {self.shape} when the run began"
            )
        return stack


def read_exposure(path: str | Path, exptype: str, *, pixels: bool = True) -> Exposure:
    """Read a ``_calints`` or ``_cal`` file; `exptype` is "science" or "psf".

    Returns
    -------
    Exposure
        Without `pixels` everything is checked, and read but for the images. A 2-D image counts as
        one integration. Without DQ it is all zero, with a warning; an AREA of another shape is
        left out with a warning, for nothing is computed from it.

    Raises
    ------
    ExposureError
        No such file, not FITS, cut short; no SCI, or SCI that is not 2-D or 3-D or has no pixels;
        no ERR; ERR, DQ or VAR_* of another shape than SCI; a keyword of the wrong type.
    """
    exptype = exptype.strip().lower()
    if exptype not in ("science", "psf"):
        raise ExposureError(f"{path}: exptype is {exptype!r}, expected 'science' or 'psf'")
    return exposure_of(open_fits(path, ExposureError), exptype, pixels=pixels)


def exposure_of(file: FitsFile, exptype: str, *, pixels: bool) -> Exposure:
    """Return the exposure in a file that is open; as `read_exposure`."""
    sci = science_hdu(file)
    ny, nx = sci.shape[-2:]
    shape = (sci.shape[0] if len(sci.shape) == 3 else 1, ny, nx)
    companions = {name: _companion(file, name, sci) for name in _COMPANIONS}
    if companions["ERR"] is None:
        raise file.problem(
            f"has no ERR data (found: {file.names}), expected errors "
            f"of shape {sci.shape} as SCI has"
        )
    headers: dict[str, Header] = {}
    for hdu in file.hdus[1:]:
        headers.setdefault(hdu.name, hdu.header)
    return Exposure(
        path=file.path,
        root=exposure_root(file.path),
        exptype=exptype,
        shape=shape,
        stack=_read_stack(file, sci, companions, shape) if pixels else None,
        area=_read_area(file, (ny, nx)),
        int_times=_read_int_times(file, shape[0]),
        primary_header=file.hdus[0].header,
        headers=headers,
        asdf_bytes=_read_asdf(file),
        meta=_read_meta(file, sci),
    )


def read_meta(path: str | Path) -> ExposureMeta:
    """Read the headers of an exposure alone; raise ExposureError as `read_exposure`."""
    file = open_fits(path, ExposureError)
    return _read_meta(file, science_hdu(file))


def science_hdu(file: FitsFile) -> Hdu:
    """Return SCI, an image or a cube with pixels; raise ExposureError where there is none."""
    sci = file.find("SCI")
    if sci is None:
        raise file.problem(
            f"has no SCI extension (found: {file.names}), expected a _calints or _cal file"
        )
    if not sci.is_image:
        raise file.problem("SCI is a table, expected an image")
    if len(sci.shape) not in (2, 3):
        found = f"has {len(sci.shape)} axes {sci.shape}" if sci.shape else "is empty (NAXIS = 0)"
        raise file.problem(
            f"SCI {found}, expected (nints, ny, nx) or (ny, nx): a _calints or _cal file"
        )
    if sci.empty:
        raise file.problem(
            f"SCI has shape {sci.shape}, expected at least one pixel and one integration"
        )
    if min(sci.shape[-2:]) < 2:
        raise file.problem(
            f"SCI has images of shape {sci.shape[-2:]}, expected 2 x 2 pixels or more"
        )
    return sci


def _read_stack(file: FitsFile, sci: Hdu, companions: dict, shape: tuple) -> IntegrationStack:
    def read(hdu: Hdu | None) -> Any:
        return None if hdu is None else file.floats(hdu).reshape(shape)

    root, dq = exposure_root(file.path), companions["DQ"]
    if dq is None:
        log.warning("%s: has no DQ data; taking all pixels as good", file.path.name)
    return IntegrationStack(
        data=read(sci),
        err=read(companions["ERR"]),
        dq=np.zeros(shape, np.uint32) if dq is None else file.bits(dq).reshape(shape),
        sources=tuple(PlaneSource(root, i) for i in range(1, shape[0] + 1)),
        **{name: read(companions[name.upper()]) for name in VARIANCES},
    )


def _companion(file: FitsFile, name: str, sci: Hdu) -> Hdu | None:
    """Return the HDU called `name`, which must be like SCI; None where absent or empty."""
    hdu = file.find(name)
    if hdu is None or (hdu.is_image and hdu.empty):
        return None
    if not hdu.is_image:
        raise file.problem(f"{name} is a table, expected an image as SCI is")
    if hdu.shape != sci.shape:
        raise file.problem(f"{name} has shape {hdu.shape}, expected {sci.shape} as SCI has")
    return hdu


def _read_area(file: FitsFile, shape: tuple[int, int]) -> np.ndarray | None:
    hdu = file.find("AREA")
    if hdu is None or hdu.empty:
        return None
    if not hdu.is_image or hdu.shape != shape:
        text = "%s: leaving out AREA of shape %s, expected %s"
        log.warning(text, file.path.name, hdu.shape, shape)
        return None
    return file.floats(hdu)


def _read_int_times(file: FitsFile, nints: int) -> np.ndarray | None:
    hdu = file.find("INT_TIMES")
    if hdu is None or hdu.empty:
        return None
    table = file.table(hdu)
    if table is not None and len(table) < nints:
        text = "%s: INT_TIMES has %d rows for %d integrations"
        log.warning(text, file.path.name, len(table), nints)
    return table


def _read_asdf(file: FitsFile) -> bytes | None:
    """Return the ASDF file inside: one table cell of bytes, or in old files an image."""
    hdu = file.find("ASDF")
    if hdu is None or hdu.empty:
        return None
    if hdu.bitpix != 8:
        raise file.problem(f"ASDF has BITPIX {hdu.bitpix}, expected bytes")
    return file.raw_bytes(hdu)


def _read_meta(file: FitsFile, sci: Hdu) -> ExposureMeta:
    primary, values = file.hdus[0].header, {}
    for field in dataclasses.fields(ExposureMeta):
        home = field.metadata["home"]
        for header in (primary, sci.header) if home == "PRIMARY" else (sci.header, primary):
            value = _card(file, header, field.metadata["keyword"], str(field.type).split(" ")[0])
            if value is not None:
                values[field.name] = value
                break
    return ExposureMeta(**values)


def _card(file: FitsFile, header: Any, keyword: str, kind: str) -> Any:
    """Return a keyword's value as `kind`; None where absent or blank."""
    value = plain_value(header.get(keyword))
    if isinstance(value, str):
        value = value.strip() or None
    if value is None:
        return None
    if kind == "str":
        return str(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise file.problem(f"keyword {keyword} is {value!r}, expected a number")
    if kind == "int" and value != int(value):
        raise file.problem(f"keyword {keyword} is {value!r}, expected an integer")
    return int(value) if kind == "int" else float(value)
