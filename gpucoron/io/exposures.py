"""Reading exposures: ``_calints`` cubes and ``_cal`` images."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.core.display import ArrayFields
from gpucoron.core.stack import VARIANCES, IntegrationStack, PlaneSource
from gpucoron.errors import ExposureError
from gpucoron.io.fits.headers import plain_value
from gpucoron.io.fits.reading import FitsFile, open_fits
from gpucoron.io.fits.walk import Hdu
from gpucoron.io.names import exposure_root, says_nothing

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = ["Exposure", "ExposureMeta", "exposure_of", "read_exposure", "read_meta", "science_hdu"]

log = logging.getLogger("gpucoron")

_NEEDED = ("ERR", "DQ")  # which must go with SCI; other companions are left out if they do not
_COMPANIONS = (*_NEEDED, *(name.upper() for name in VARIANCES))


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
    aperture: str | None = _key("APERNAME")
    corner_x: int | None = _key("SUBSTRT1")
    corner_y: int | None = _key("SUBSTRT2")
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
    visit_id: str | None = _key("VISIT_ID")
    target: str | None = _key("TARGNAME")
    date_obs: str | None = _key("DATE-OBS")
    exposure_time: float | None = _key("XPOSURE", "SCI")
    measurement_time: float | None = _key("TMEASURE")

    @property
    def weighing_time(self) -> float | None:
        """The measurement time, else the exposure time: what an exposure is weighted by."""
        return self.exposure_time if self.measurement_time is None else self.measurement_time


@dataclass(frozen=True, eq=False, repr=False)
class Exposure(ArrayFields):
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
    unused: tuple[str, ...] = ()  # ERR and VAR_* that tell nothing: `load` gives 0, and none

    @property
    def visit(self) -> str:
        """The visit's eleven digits (VISIT_ID), else what the file's name begins with."""
        return self.meta.visit_id or self.root.split("_")[0].removeprefix("jw")

    @property
    def shows_reference(self) -> bool:
        """Whether this is an exposure of a PSF reference star: a psf member, or IS_PSF is true."""
        return self.exptype == "psf" or self.primary_header.get("IS_PSF") is True

    def load(self) -> IntegrationStack:
        """Return the images, read now where they are not in memory.

        Raises
        ------
        ExposureError
            The file is gone or has changed.
        """
        stack = self.stack
        if stack is None:
            file = open_fits(self.path, ExposureError)
            stack = _read_stack(file, science_hdu(file))
        if stack.shape != self.shape:
            raise ExposureError(
                f"{self.path}: SCI has shape {stack.shape}, but had {self.shape} when the run began"
            )
        changes: dict[str, Any] = {name.lower(): None for name in self.unused}
        if "err" in changes:
            changes["err"] = np.zeros_like(stack.err)
        return stack.replace(**changes)


def read_exposure(path: str | Path, exptype: str | None = None, *, pixels: bool = True) -> Exposure:
    """Read a ``_calints`` or ``_cal`` file.

    Parameters
    ----------
    path : path
        FITS, also compressed (.gz, .fz).
    exptype : {"science", "psf"}, optional
        Whether it is an exposure of the target or of a reference star. Default: IS_PSF of its
        primary header.
    pixels : bool
        False leaves the images in the file.

    Returns
    -------
    Exposure
        Without `pixels` everything is checked, and read but for the images. A 2-D image counts as
        one integration. Without DQ it is all zero, with a warning; AREA and VAR_* that do not go
        with SCI, as after coadding or cropping by tools that leave them alone, are left out with
        a warning.

    Raises
    ------
    ExposureError
        No such file, not FITS, cut short; no SCI, or SCI that is not 2-D or 3-D or has no pixels;
        no ERR; ERR or DQ of another shape than SCI; a keyword of the wrong type; without `exptype`
        no IS_PSF.
    """
    exptype = (exposure_role(path) if exptype is None else exptype).strip().lower()
    if exptype not in ("science", "psf"):
        raise ExposureError(f"{path}: exptype is {exptype!r}, expected 'science' or 'psf'")
    return exposure_of(open_fits(path, ExposureError), exptype, pixels=pixels)


def exposure_role(path: str | Path) -> str:
    """Return "psf" or "science", as IS_PSF in the primary header of an exposure says.

    Raises
    ------
    ExposureError
        There is no such keyword, or the file cannot be read.
    """
    header = open_fits(path, ExposureError).hdus[0].header
    is_psf = header.get("IS_PSF")
    if not isinstance(is_psf, bool):
        raise ExposureError(
            f"{path}: IS_PSF is {'absent' if is_psf is None else repr(is_psf)}, expected T or F; "
            "say 'science' or 'psf' beside the path"
        )
    return "psf" if is_psf else "science"


def exposure_of(file: FitsFile, exptype: str, *, pixels: bool) -> Exposure:
    """Return the exposure in a file that is open; as `read_exposure`."""
    sci = science_hdu(file)
    shape = _stack_shape(sci)
    left_out = _companions(file, sci)[1]
    area, problem = _read_area(file, shape[1:])
    for what in [*left_out, *problem]:
        log.warning("%s: leaving out %s", file.path.name, what)
    headers: dict[str, Header] = {}
    for hdu in file.hdus[1:]:
        headers.setdefault(hdu.name, hdu.header)
    return Exposure(
        path=file.path,
        root=exposure_root(file.path),
        exptype=exptype,
        shape=shape,
        stack=_read_stack(file, sci) if pixels else None,
        area=area,
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


def _stack_shape(sci: Hdu) -> tuple[int, int, int]:
    n = sci.shape[0] if len(sci.shape) == 3 else 1
    return n, sci.shape[-2], sci.shape[-1]


def _read_stack(file: FitsFile, sci: Hdu) -> IntegrationStack:
    shape, companions = _stack_shape(sci), _companions(file, sci)[0]

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


def _companions(file: FitsFile, sci: Hdu) -> tuple[dict[str, Hdu | None], list[str]]:
    """Return the HDUs that must be like SCI, and in words those of VAR_* that are not.

    Those are None, as is what is absent or empty. A cube of one integration is like an image.
    Raises ExposureError where ERR is missing, or ERR or DQ are not like SCI.
    """
    found: dict[str, Hdu | None] = {}
    unlike: dict[str, list[str]] = {}
    for name in _COMPANIONS:
        hdu = file.find(name)
        found[name] = hdu = None if hdu is None or (hdu.is_image and hdu.empty) else hdu
        if hdu is None and name == "ERR":
            raise file.problem(
                f"has no ERR data (found: {file.names}), expected errors "
                f"of shape {sci.shape} as SCI has"
            )
        if hdu is None or (hdu.is_image and _without_ones(hdu.shape) == _without_ones(sci.shape)):
            continue
        if name in _NEEDED:
            what = f"has shape {hdu.shape}" if hdu.is_image else "is a table"
            raise file.problem(f"{name} {what}, expected {sci.shape} as SCI has")
        found[name] = None
        what = f"of shape {hdu.shape}" if hdu.is_image else "(a table)"
        unlike.setdefault(what, []).append(name)
    return found, [
        f"{', '.join(names)} {what}, expected {sci.shape} as SCI has"
        for what, names in unlike.items()
    ]


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an image or cube, that of its image if it has only one."""
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def _read_area(file: FitsFile, shape: tuple[int, int]) -> tuple[np.ndarray | None, list[str]]:
    """Return AREA, and in words why it is left out."""
    hdu = file.find("AREA")
    if hdu is None or hdu.empty:
        return None, []
    if not hdu.is_image or _without_ones(hdu.shape) != shape:
        return None, [f"AREA of shape {hdu.shape}, expected {shape}"]
    return file.floats(hdu).reshape(shape), []


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
    """Return a keyword's value as `kind`; None where it is absent or says nothing (N/A, NONE)."""
    value = plain_value(header.get(keyword))
    if isinstance(value, str):
        value = None if says_nothing(value) else value.strip()
    if value is None:
        return None
    if kind == "str":
        return str(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise file.problem(f"keyword {keyword} is {value!r}, expected a number")
    if kind == "int" and value != int(value):
        raise file.problem(f"keyword {keyword} is {value!r}, expected an integer")
    return int(value) if kind == "int" else float(value)
