"""The WCS of a science exposure: checked against its headers, and made to fit its image.

Tools that cut, pad or recentre images write CRPIX anew and leave the GWCS, SUBSIZE and S_REGION as
they were; tools that correct the GWCS leave the headers; tools that know FITS only lose the GWCS.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gpucoron.errors import ExposureError
from gpucoron.io.asdf.extension import write_asdf
from gpucoron.io.fits.headers import number_pair
from gpucoron.io.second_process import in_second_process
from gpucoron.io.wcs import InputWcs, find_wcs, header_wcs, read_wcs, region_distance
from gpucoron.io.wcs.sregion import parse_region
from gpucoron.io.wcs.tan import Pair

if TYPE_CHECKING:
    from gpucoron.io.exposures import Exposure

__all__ = ["settle_wcs"]

log = logging.getLogger("gpucoron")

_APART_PX = 1.0  # between two WCSs of one image
_AROUND_PX = (
    100.0  # reach of the comparison around CRPIX, where a TAN without SIP is good to 0.1 px
)
_WHOLE_PX = 0.05  # a cut this near to whole pixels is one of whole pixels
_RECENTRED_PX = 3.0  # that CRPIX may have been moved besides a cut


def settle_wcs(
    exposure: Exposure, by_s_region: bool = False, odd: dict[str, list[str]] | None = None
) -> Exposure:
    """Return a science exposure whose ASDF extension has the WCS of its image.

    It is the same exposure if its own WCS is used. Otherwise the extension is replaced: where
    it has no GWCS, by one made of the FITS WCS in the header of SCI; where the image was cut or
    padded, by one whose GWCS is shifted by the change of CRPIX. Both give a warning, as do
    S_REGION and a FITS WCS that are more than 1 px from the GWCS.

    `by_s_region` says, for the warning, that the output image is laid out by S_REGION. `odd` takes
    what the warning would say of a GWCS, and the file's name, in place of the warning, so that one
    line can name all files of which it is true.

    Raises
    ------
    ExposureError
        There is neither a GWCS nor a FITS WCS that can be used.
    """
    needed = {name: header for name, header in exposure.headers.items() if name == "SCI"}
    lean = replace(exposure, stack=None, area=None, int_times=None, headers=needed)
    settled, notes = in_second_process(_settled, lean, by_s_region)
    if notes and odd is not None:
        odd.setdefault("; ".join(notes), []).append(exposure.path.name)
    elif notes:
        log.warning("%s: %s", exposure.path.name, "; ".join(notes))
    same = settled == exposure.asdf_bytes
    return exposure if same else replace(exposure, asdf_bytes=settled)


def _settled(exposure: Exposure, by_s_region: bool) -> tuple[bytes | None, list[str]]:
    """Return the ASDF extension with the WCS of an exposure's image, and what is odd about it."""
    name, header = exposure.path.name, exposure.headers["SCI"]
    own = find_wcs(exposure.asdf_bytes, name)
    if own is None:
        return _from_header(exposure).asdf_bytes, []
    try:
        fits = header_wcs(header, exposure.shape, name)
    except ExposureError:  # another projection than this program reads; the GWCS is what counts
        fits = None
    offsets = _offsets(own, fits, number_pair(header, "CRPIX1", "CRPIX2"))
    resized, origin = _resized(exposure, own, offsets)
    notes = [resized] if resized else []
    if origin is not None:
        exposure = _shifted(exposure, own, origin)
        offsets = None if offsets is None else offsets - origin
    notes += _header_differs(offsets)
    if by_s_region or origin is None:  # that of an image that was cut is the whole image's
        notes += _region_differs(exposure, by_s_region)
    return exposure.asdf_bytes, notes


def _header_differs(offsets: np.ndarray | None) -> Iterator[str]:
    """Say how far the FITS WCS is from the GWCS, from `_offsets`, if it is more than 1 px."""
    if offsets is not None and not np.all(np.hypot(*offsets.T) <= _APART_PX):
        yield (
            f"the FITS WCS of its header (CRPIX, CRVAL, CD) is {np.max(np.hypot(*offsets.T)):.3g} "
            "px from the GWCS, which is used"
        )


def _region_differs(exposure: Exposure, by_s_region: bool) -> Iterator[str]:
    """Say how far S_REGION is from the outline of the GWCS, if it is more than 1 px."""
    wcs = read_wcs(exposure.asdf_bytes, exposure.path.name)
    apart = region_distance(wcs, parse_region(exposure.meta.s_region), exposure.shape[1:])
    if exposure.meta.s_region and apart > _APART_PX:
        used = "S_REGION, as the jwst package does" if by_s_region else "the GWCS"
        yield (
            f"S_REGION is {apart:.3g} px from the outline of the GWCS; the output image is laid "
            f"out by {used}"
        )


def _from_header(exposure: Exposure) -> Exposure:
    """Return the exposure with a GWCS made of its FITS WCS, with a warning."""
    name, what = exposure.path.name, "no ASDF extension, so no WCS"
    if exposure.asdf_bytes:
        what = "no WCS in the ASDF extension (meta.wcs)"
    try:
        made = header_wcs(exposure.headers["SCI"], exposure.shape, name)
        problem = "no FITS WCS in the header of SCI (CTYPE1, CTYPE2)"
    except ExposureError as error:
        made, problem = None, str(error).removeprefix(f"{name}: ")
    if made is None:
        raise ExposureError(
            f"{name}: {what}, and {problem}; expected a GWCS from assign_wcs (calwebb_image2), or "
            "--set resample.skip=true for all products but i2d"
        )
    kind = str(exposure.headers["SCI"]["CTYPE1"]).partition("-")[2].strip("-")
    log.warning("%s: %s; the FITS WCS in the header of SCI (%s) is used", name, what, kind)
    return replace(exposure, asdf_bytes=write_asdf({"meta": {"wcs": made.gwcs}}))


def _offsets(own: InputWcs, fits: InputWcs | None, crpix: Pair | None) -> np.ndarray | None:
    """Return (5, 2): x, y by the GWCS minus those by the FITS WCS, at CRPIX and around it.

    The same sky positions are compared. None where the exposure has no FITS WCS to compare with;
    infinite where the GWCS has no pixel at such a position.
    """
    if fits is None or crpix is None:
        return None
    x = crpix[0] - 1 + _AROUND_PX * np.array([0, 1, -1, 0, 0])
    y = crpix[1] - 1 + _AROUND_PX * np.array([0, 0, 0, 1, -1])
    found = np.array(own.sky_to_pixel(*fits.pixel_to_sky(x, y, everywhere=True)))
    return np.where(np.isfinite(found), found - (x, y), np.inf).T


def _resized(
    exposure: Exposure, own: InputWcs, offsets: np.ndarray | None
) -> tuple[str, np.ndarray | None]:
    """Judge whether an image was cut out of, or padded around, that of the GWCS.

    Returns
    -------
    text : str
        For the warning; empty where the image has the size of its subarray.
    origin : (2,) array or None
        x, y in pixels of the GWCS of the image's first pixel; None where the GWCS is to be used
        as it is.
    """
    size = np.array(exposure.shape[:0:-1])  # nx, ny
    box = own.full_box()
    extent = None
    if box is not None and np.all(np.isfinite(box)):
        extent = np.round(np.diff(box)[:, 0])
    subarray = number_pair(exposure.primary_header, "SUBSIZE1", "SUBSIZE2")
    whole = size if subarray is None or min(subarray) < 1 else np.array(subarray)
    if np.all(whole == size) and extent is not None:
        whole = extent  # SUBSIZE is missing, or was changed with the image
    origin = _origin(exposure, whole - size, offsets)
    if np.all(whole == size):
        return "", None
    if whole is extent and np.all(extent <= size) and (origin is None or max(abs(origin)) < 1):
        return "", None  # a bounding box may leave out borders of an image that is whole
    text = "the image is {} x {} pixels, not {:g} x {:g} (SUBSIZE1, SUBSIZE2 or the GWCS)"
    text = text.format(size[0], size[1], whole[0], whole[1])
    if extent is not None and np.all(extent == size):
        return f"{text}; the GWCS is for an image of this size and is used as it is", None
    if origin is None:
        return (
            f"{text}, and CRPIX1, CRPIX2 do not tell where it was cut or padded; the GWCS is used "
            "as it is, so that sky positions may be wrong",
            None,
        )
    text += f"; by CRPIX1, CRPIX2 it begins at x, y = {origin[0]:g}, {origin[1]:g} of that"
    if not np.any(origin):
        return f"{text}, and the GWCS is used as it is", None
    return f"{text}, and the GWCS is shifted accordingly", origin


def _origin(exposure: Exposure, lost: np.ndarray, offsets: np.ndarray | None) -> np.ndarray | None:
    """Return where an image begins in the one that it was cut from; None where that is unknown.

    It is the offset at CRPIX, if that lies between 0 and the pixels `lost` along both axes
    (negative: added); CROP_SHIFTX and CROP_SHIFTY of spaceKLIP, if the offset is near them.
    """
    if offsets is None or not np.all(np.isfinite(offsets[0])):
        return None
    origin = offsets[0]
    cut = number_pair(exposure.headers["SCI"], "CROP_SHIFTX", "CROP_SHIFTY")
    if cut is not None and np.all(np.abs(origin - cut) <= _RECENTRED_PX):
        origin = np.array(cut)
    elif np.all(np.abs(origin - np.round(origin)) < _WHOLE_PX):
        origin = np.round(origin) + 0.0  # no negative zeros
    low, high = np.minimum(lost, 0) - _WHOLE_PX, np.maximum(lost, 0) + _WHOLE_PX
    return origin if np.all((low <= origin) & (origin <= high)) else None


def _shifted(exposure: Exposure, own: InputWcs, origin: np.ndarray) -> Exposure:
    """Return the exposure with a GWCS that counts pixels from `origin` of the present one."""
    import gwcs
    from astropy.modeling.models import Shift

    first, *others = own.gwcs.pipeline
    shift = Shift(float(origin[0])) & Shift(float(origin[1]))
    shifted = gwcs.WCS([gwcs.Step(first.frame, shift | first.transform), *others])
    ny, nx = exposure.shape[1:]
    limits = own.full_box() or ((-np.inf, np.inf), (-np.inf, np.inf))
    shifted.bounding_box = tuple(
        (max(-0.5, low - start), min(n - 0.5, high - start))
        for (low, high), start, n in zip(limits, map(float, origin), (nx, ny), strict=True)
    )
    return replace(exposure, asdf_bytes=write_asdf({"meta": {"wcs": shifted}}))
