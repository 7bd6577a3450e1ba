"""The star in headers: where those of an exposure have it, and the keywords that products get."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.core.star import SOURCES, CombinedStar, StarPositions
from gpucoron.core.star_flux import StarFlux
from gpucoron.errors import ExposureError, GpucoronError, OutputError
from gpucoron.io.files import SameFiles, check_folder, check_replaceable, output_error
from gpucoron.io.fits.headers import number_pair, set_keyword
from gpucoron.io.wcs import read_wcs
from gpucoron.io.wcs.tan import ARCSEC2_PER_SR, tangent_plane

if TYPE_CHECKING:
    from astropy.io.fits import Header

    from gpucoron.io.exposures import Exposure
    from gpucoron.io.wcs import InputWcs

__all__ = [
    "STAR_KEYWORDS",
    "copy_with_star",
    "expected_star",
    "read_star",
    "offsets_from",
    "set_star",
    "target_pixel",
    "target_position",
]

#: All that `set_star` sets or removes in SCI, with their comments.
STAR_KEYWORDS = {
    "STARCENX": "[pix] star, x from 1",
    "STARCENY": "[pix] star, y from 1",
    "STARERRX": "[pix] standard deviation of STARCENX",
    "STARERRY": "[pix] standard deviation of STARCENY",
    "STARXYCV": "[pix2] covariance of STARCENX, STARCENY",
    "STARSRC": "where the position is from",
    "MASKCENX": "[pix] coronagraph mask, x from 1",
    "MASKCENY": "[pix] coronagraph mask, y from 1",
    "STARFLUX": "[Jy] flux density of the star, no mask",
    "STARFERR": "[Jy] standard deviation of STARFLUX",
    "STARFSRC": "where STARFLUX is from",
}
_LONGEST = 68  # characters of a value in a header
_COMBINED_KEYWORDS = {
    "STARRA": "[deg] star, RA by the GWCSs",
    "STARDEC": "[deg] star, Dec by the GWCSs",
    "STARDRA": "[arcsec] star - TARG_RA, times cos(Dec)",
    "STARDDEC": "[arcsec] star - TARG_DEC",
    "STARSPRD": "[arcsec] the exposures' stars, by GWCSs",
    "CENTERBY": "exposures combined about STAR or by WCS",
}


def expected_star(exposure: Exposure) -> tuple[tuple[float, float], str] | None:
    """Return where the headers of an exposure have the star, and which keywords say so.

    Returns
    -------
    ((x, y), keywords) or None
        Pixels of SCI counted from 1: STARCENX, STARCENY, which spaceKLIP writes; else CRPIX, where
        target acquisition puts the star to some hundredths of an arcsec; else where the GWCS has
        RA_REF, DEC_REF. None where there is none of these. The target's coordinates are less
        accurate, because of guide-star errors and proper motion.
    """
    header = exposure.headers.get("SCI", {})
    for names in (("STARCENX", "STARCENY"), ("CRPIX1", "CRPIX2")):
        if found := number_pair(header, *names):
            return found, ", ".join(names)
    meta = exposure.meta
    with suppress(GpucoronError):  # resample, which needs the WCS, reports what is wrong with it
        if meta.ra_ref is not None and meta.dec_ref is not None:
            wcs = read_wcs(exposure.asdf_bytes, exposure.path.name)
            x, y = (float(v) + 1 for v in wcs.sky_to_pixel(meta.ra_ref, meta.dec_ref))
            if math.isfinite(x) and math.isfinite(y):
                return (x, y), "RA_REF, DEC_REF"
    return None


def offsets_from(
    exposure: Exposure, star: tuple[float, float]
) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """Return how far all pixels of an exposure are from the star, by its GWCS.

    Parameters
    ----------
    exposure : Exposure
    star : (x, y), pixels of SCI counted from 1

    Returns
    -------
    ((ny, nx), (ny, nx)) float64, float
        Offsets east and north on the plane tangent at the star, and the side of a pixel; arcsec.

    Raises
    ------
    ExposureError
        There is no WCS, or it has no position for the star.
    """
    wcs = read_wcs(exposure.asdf_bytes, exposure.path.name)
    return _offsets(wcs, (star[0] - 1, star[1] - 1), exposure.shape[1:])


@functools.lru_cache(maxsize=8)  # asked for before the work and in it
def _offsets(wcs: InputWcs, star: tuple[float, float], shape: tuple[int, int]):
    y, x = np.indices(shape, dtype=np.float64)
    origin = [float(angle) for angle in wcs.pixel_to_sky(*star, everywhere=True)]
    if not all(map(math.isfinite, origin)):
        raise ExposureError(
            f"{wcs.where}: the WCS has no sky position for the star at pixel "
            f"{star[0] + 1:g}, {star[1] + 1:g}"
        )
    ra, dec = wcs.pixel_to_sky(x, y, everywhere=True)
    offsets = 3600.0 * np.array(tangent_plane(ra, dec, *origin))
    offsets.flags.writeable = False
    return tuple(offsets), math.sqrt(wcs.mean_pixel_area(shape) * ARCSEC2_PER_SR)


def target_position(exposure: Exposure) -> tuple[float, float] | None:
    """Return TARG_RA and TARG_DEC in degrees; None where either is missing."""
    return number_pair(exposure.primary_header, "TARG_RA", "TARG_DEC")


def target_pixel(exposure: Exposure) -> tuple[float, float] | None:
    """Return where the GWCS has the target of TARG_RA, TARG_DEC, pixels counted from 1; or None."""
    target = target_position(exposure)
    if target is None:
        return None
    try:
        x, y = read_wcs(exposure.asdf_bytes, exposure.path.name).sky_to_pixel(*target)
    except GpucoronError:  # a reference needs no WCS otherwise
        return None
    place = float(x) + 1, float(y) + 1
    return place if all(map(math.isfinite, place)) else None


def read_star(header: Header, positions: np.ndarray | None, n: int) -> StarPositions | None:
    """Return the position of the star from psfsub; None where it does not have a measured one.

    Parameters
    ----------
    header : Header
        Of SCI.
    positions : structured array, optional
        The table POSITIONS, by which integrations differ.
    n : int
        Number of integrations.

    Returns
    -------
    StarPositions or None
        With the error of the mean for every integration.
    """
    place, error = (number_pair(header, f"{k}X", f"{k}Y") for k in ("STARCEN", "STARERR"))
    source = str(header.get("STARSRC", "wcs"))
    if place is None or error is None or source == "wcs" or source not in SOURCES:
        return None
    away = np.zeros((2, n))
    if positions is not None:
        away = np.stack([positions["x"][:n], positions["y"][:n]])
        away = away - np.nan_to_num(np.nanmean(away, axis=1, keepdims=True))
    x, y = (np.full(n, value) + shift for value, shift in zip(place, away, strict=True))
    x_err, y_err = (np.where(np.isnan(x), np.nan, value) for value in error)
    mask = number_pair(header, "MASKCENX", "MASKCENY")
    cov, _ = number_pair(header, "STARXYCV", "STARXYCV") or (0.0, 0.0)
    return StarPositions(
        x, y, x_err, y_err, source, mask, flux=_flux(header), xy_cov=np.full(n, cov)
    )


def _flux(header: Header) -> StarFlux | None:
    """Return the star's flux density from a product's header; None where it has none."""
    jy, error = (header.get(name) for name in ("STARFLUX", "STARFERR"))
    if not isinstance(jy, float):
        return None
    sigma = error if isinstance(error, float) else math.nan
    return StarFlux(jy, sigma, str(header.get("STARFSRC", "")))


def set_star(header: Header, star: StarPositions | CombinedStar | None) -> None:
    """Set the star's keywords in a product's header of SCI; remove those that are not known.

    An exposure's are means over its integrations; a combined image has its position on the sky,
    too. None leaves the header alone.
    """
    if star is None:
        return
    if isinstance(star, CombinedStar):
        known = dict([*_known(star.position), *_known_combined(star)])
    else:
        known = dict(_known(star))
    for keyword, comment in (STAR_KEYWORDS | _COMBINED_KEYWORDS).items():
        if keyword in known:
            set_keyword(header, keyword, known[keyword], comment, hdu="SCI")
        else:
            header.remove(keyword, ignore_missing=True, remove_all=True)


def copy_with_star(path: Path, folder: Path, star: StarPositions, overwrite: bool = True) -> Path:
    """Copy a product of an exposure with the star's keywords in SCI; return the copy.

    Raises
    ------
    OutputError
        The copy cannot be written, or would replace `path`, or a file without `overwrite`.
    """
    from astropy.io import fits

    target = folder / path.name
    check_folder(folder, [target.name])
    check_replaceable(target, overwrite)
    if target in SameFiles([path]):
        raise OutputError(f"{target} would replace what is copied; choose another folder")
    try:
        with fits.open(path, do_not_scale_image_data=True) as hdus:
            set_star(hdus["SCI"].header, star)
            hdus.writeto(target, checksum=True, overwrite=True)
    except OSError as problem:
        raise output_error(target, problem) from problem
    return target


def _known(star: StarPositions) -> Iterator[tuple[str, Any]]:
    mask = star.mask or (math.nan, math.nan)
    for name, pair in (("STARCEN", star.mean), ("STARERR", star.mean_error), ("MASKCEN", mask)):
        if all(map(math.isfinite, pair)):
            yield from zip((f"{name}X", f"{name}Y"), _rounded(pair), strict=True)
    if all(map(math.isfinite, star.mean_error)):
        yield "STARXYCV", float(f"{star.mean_xy_cov:.6g}")
    if all(map(math.isfinite, star.mean)):
        yield "STARSRC", star.source
    if star.flux is not None:
        yield "STARFLUX", star.flux.jy
        if math.isfinite(star.flux.error_jy):
            yield "STARFERR", star.flux.error_jy
        yield "STARFSRC", star.flux.source[:_LONGEST]


def _known_combined(star: CombinedStar) -> Iterator[tuple[str, Any]]:
    yield from zip(("STARRA", "STARDEC"), star.radec, strict=True)
    if star.from_target is not None:
        yield from zip(("STARDRA", "STARDDEC"), _rounded(star.from_target), strict=True)
    yield "STARSPRD", _rounded([star.spread])[0]
    yield "CENTERBY", star.center.upper()


def _rounded(values: Sequence[float]) -> list[float]:
    """Round pixels or arcsec to a millionth, which is less than any error."""
    return [round(value, 6) for value in values]
