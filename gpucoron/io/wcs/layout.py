"""Lay out the output image on the sky: scale, orientation, reference pixel, shape, outline."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpucoron.errors import ExposureError, ParameterError
from gpucoron.io.wcs.exposure import direction, sky_position
from gpucoron.io.wcs.from_file import read_output_wcs
from gpucoron.io.wcs.sregion import combine_regions, parse_region
from gpucoron.io.wcs.tan import MAX_SIDE_PX, Box, OutputWcs, Pair, pair, tangent_plane

if TYPE_CHECKING:
    from gpucoron.io.exposures import ExposureMeta
    from gpucoron.io.wcs.exposure import InputWcs

__all__ = ["check_outlines", "output_wcs", "region_distance"]

log = logging.getLogger(__name__)

_FAR_ARCMIN = 5.0
_SAME_PX = 0.05  # S_REGION has nine decimals, 1e-4 px
_LARGEST_RATIO = 1e6  # of output and input pixel scale, either way


def output_wcs(
    wcss: Sequence[InputWcs],
    metas: Sequence[ExposureMeta],
    shapes: Sequence[tuple[int, ...]],
    *,
    pixel_scale: float | None = None,
    pixel_scale_ratio: float = 1.0,
    rotation: float | None = None,
    crpix: Sequence[float] | None = None,
    crval: Sequence[float] | None = None,
    output_shape: Sequence[int] | None = None,
    output_wcs_file: str | None = None,
    by_s_region: bool = False,
) -> OutputWcs:
    """Lay out the image that combines exposures.

    Parameters
    ----------
    wcss, metas, shapes : sequences, one entry an exposure
        WCS, metadata and shape (..., ny, nx) of the exposures; the first sets scale and rotation.
    pixel_scale : float, arcsec
        Output scale; overrides `pixel_scale_ratio`.
    pixel_scale_ratio : float
        Output over input scale, the input's being that at RA_REF, DEC_REF.
    rotation : float, degrees
        Position angle of the y axis, east of north; None keeps the first exposure's orientation.
    crpix : (x, y)
        Reference pixel, counted from 0.
    crval : (ra, dec), degrees
        Its position; by default the middle of all footprints.
    output_shape : (nx, ny)
        Shape, x first as in the jwst package; by default what holds all footprints.
    output_wcs_file : str
        ASDF file with a WCS under ``wcs``, and perhaps ``pixel_scale``, ``pixel_area``,
        ``array_shape`` or ``pixel_shape``. The other parameters but `output_shape` are ignored.
    by_s_region : bool
        Lay out by S_REGION even where it is not the outline of the GWCS, as the jwst package does.

    Raises
    ------
    ParameterError
        A file that cannot be used, a CRVAL that is no position or far away, a shape of less
        than 2 or more than 50,000 pixels a side, or an image that no exposure overlaps.
    ExposureError
        A WCS cannot be evaluated.

    Notes
    -----
    CRVAL is the direction of the middle between least and greatest Cartesian coordinates of all
    corners of the exposures' outlines; the scale is the geometric mean of the x and y scales; PC
    follows ROLL_REF, V3I_YANG and VPARITY; CRPIX puts the least corner at 0, and the shape is the
    greatest, rounded. An outline is S_REGION, or if that lies elsewhere, the GWCS's bounding box.
    What an exposure lacks of these is taken from its GWCS, with a line in the log.
    """
    shape = None if output_shape is None else (int(output_shape[1]), int(output_shape[0]))
    images = [(shape[-2], shape[-1]) for shape in shapes]
    first = wcss[0], metas[0], images[0]
    by_exposure = _regions(wcss, metas, images, by_s_region)
    regions = [polygon for polygons in by_exposure for polygon in polygons]
    if output_wcs_file:
        layout = read_output_wcs(output_wcs_file, shape, *first)
    else:
        if shape is None:
            _check_near(wcss, by_exposure)
        scale, ratio = _scale(*first, pixel_scale, pixel_scale_ratio)
        pc = _orientation(*first, rotation)
        centre = _middle(np.vstack(regions)) if crval is None else pair(crval)
        layout = _place(regions, scale, ratio, pc, centre, crpix, shape)
    if not 1 / _LARGEST_RATIO <= layout.pixel_scale_ratio <= _LARGEST_RATIO:
        raise ParameterError(
            f"output pixels would have {layout.pixel_scale_ratio:g} times the side of the input's, "
            f"expected {1 / _LARGEST_RATIO:g} to {_LARGEST_RATIO:g} times; see pixel_scale"
        )
    region = combine_regions(regions, layout.box(), layout.sky_to_pixel, layout.pixel_to_sky)
    if region is None:
        raise ParameterError(
            f"the output image of {layout.shape[1]} x {layout.shape[0]} pixels with crpix "
            f"{layout.crpix} at crval {layout.crval} holds no pixel of any exposure, expected an "
            "overlap; see output_wcs, output_shape, crpix and crval"
        )
    return dataclasses.replace(layout, s_region=region)


def _place(regions, scale, ratio, pc, crval, crpix, shape) -> OutputWcs:
    """Choose reference pixel and shape so that all corners lie at 0 or above."""
    if not -90.0 <= crval[1] <= 90.0:
        raise ParameterError(f"crval is {crval}, expected a declination from -90 to 90 degrees")
    layout = OutputWcs((1, 1), (0.0, 0.0), crval, (scale, scale), pc, scale * 3600.0, ratio)
    corners = np.array(layout.sky_to_pixel(*np.vstack(regions).T))
    if not np.all(np.isfinite(corners)):
        raise ParameterError(f"crval is {crval}, expected a position less than 90 degrees away")
    crpix = pair(-corners.min(axis=1) if crpix is None else crpix)
    (x1, y1), (x2, y2) = corners.min(axis=1) + crpix, corners.max(axis=1) + crpix
    box = None
    if shape is None:
        shape = tuple(int(min(max(side, 0.0), 1e18) + 0.5) for side in (y2, x2))
    else:
        box = _clipped(x1, x2, shape[1]), _clipped(y1, y2, shape[0])
    if min(shape) < 2 or max(shape) > MAX_SIDE_PX:
        raise ParameterError(
            f"the output image would have shape {shape} (ny, nx), expected 2 to {MAX_SIDE_PX} "
            f"pixels a side; see output_shape, crpix, crval and pixel_scale"
        )
    return dataclasses.replace(layout, shape=shape, crpix=crpix, bounding_box=box)


def _clipped(low: float, high: float, n: int) -> Pair:
    return max(0, int(low + 0.5)) - 0.5, min(int(high + 0.5), n) - 0.5


def check_outlines(
    wcss: Sequence[InputWcs],
    metas: Sequence[ExposureMeta],
    shapes: Sequence[tuple[int, ...]],
    by_s_region: bool = False,
) -> None:
    """Raise ExposureError where exposures are too far apart for one image; as `output_wcs`."""
    _check_near(wcss, _regions(wcss, metas, [shape[-2:] for shape in shapes], by_s_region))


def _regions(wcss, metas, shapes, by_s_region) -> list[list[np.ndarray]]:
    """Return the polygons (n, 2) in degrees of every exposure."""
    regions = []
    for wcs, meta, shape in zip(wcss, metas, shapes, strict=True):
        polygons = parse_region(meta.s_region)
        if not polygons:
            log.warning(
                "%s: no polygon in S_REGION; its footprint is taken from the GWCS", wcs.where
            )
        if not (by_s_region and polygons):
            outline = wcs.footprint(shape)
            if not polygons and not np.all(np.isfinite(outline)):
                raise ExposureError(
                    f"{wcs.where}: the WCS gives no sky position at the corners of the image"
                )
            if np.all(np.isfinite(outline)) and region_distance(wcs, polygons, shape) > _SAME_PX:
                polygons = [outline]
        regions.append(polygons)
    return regions


def region_distance(wcs: InputWcs, polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> float:
    """Return how far S_REGION is from the outline of an image by its GWCS, in pixels.

    `polygons` are corners (n, 2) in degrees, from `parse_region`; infinite if there are none, or
    one is beyond 90 degrees. The outline is the nearest of two: the edges of the bounding box, or
    its corners in whole pixels, which calwebb_image2 writes.
    """
    import shapely

    distances = [math.inf]
    for whole_pixels in (False, True) if polygons else ():
        outline = wcs.footprint(shape, whole_pixels=whole_pixels)
        ra, dec = _middle(outline)
        planes = [
            np.column_stack(tangent_plane(p[:, 0], p[:, 1], ra, dec)) for p in (outline, *polygons)
        ]
        if all(np.all(np.isfinite(plane)) for plane in planes):
            own, *others = shapely.make_valid([shapely.Polygon(plane) for plane in planes])
            (x1, x2), (y1, y2) = wcs.box(shape)
            scale = math.sqrt(own.area / ((x2 - x1) * (y2 - y1)))
            apart = shapely.hausdorff_distance(own.boundary, shapely.union_all(others).boundary)
            distances.append(apart / scale if scale > 0 and math.isfinite(apart) else math.inf)
    return min(distances)


def _check_near(wcss, regions) -> None:
    """Raise where an exposure points elsewhere: an image that holds all would fill the memory."""
    middles = [_middle(np.vstack(polygons)) for polygons in regions]
    for wcs, polygons, middle in zip(wcss, regions, middles, strict=True):
        reach = 60.0 * float(np.max(_separation(*middle, *np.vstack(polygons).T)))
        if not reach <= 2 * _FAR_ARCMIN:
            raise ExposureError(
                f"{wcs.where}: its outline reaches {reach:.0f} arcmin "
                f"from its middle, expected at most {2 * _FAR_ARCMIN:g}"
            )
    for wcs, middle in zip(wcss[1:], middles[1:], strict=True):
        apart = 60.0 * float(_separation(*middles[0], *middle))
        if apart > _FAR_ARCMIN:
            raise ExposureError(
                f"{wcs.where}: points {apart:.1f} arcmin away from {wcss[0].where}, expected "
                f"science exposures within {_FAR_ARCMIN:g} arcmin"
            )


def _middle(corners: np.ndarray) -> Pair:
    """Direction of the middle between least and greatest Cartesian coordinates."""
    xyz = direction(*corners.T)
    ra, dec = sky_position((xyz.max(axis=1) + xyz.min(axis=1)) / 2.0)
    return float(ra), float(dec)


def _separation(ra1, dec1, ra2, dec2) -> np.ndarray:
    from astropy import units
    from astropy.coordinates import angular_separation

    angles = (value * units.deg for value in (ra1, dec1, ra2, dec2))
    return angular_separation(*angles).to_value(units.deg)


def _scale(wcs, meta, shape, pixel_scale, ratio) -> Pair:
    if pixel_scale is not None:
        degrees = pixel_scale / 3600.0
        return degrees, degrees / math.degrees(math.sqrt(wcs.mean_pixel_area(shape)))
    ra, dec = _neighbours(wcs, *_reference_pixel(wcs, meta, shape))
    steps = _separation(ra[0], dec[0], ra[1:], dec[1:])
    input_scale = float(np.sqrt(steps[0] * steps[1]))
    if not math.isfinite(input_scale) or input_scale <= 0:
        raise ExposureError(f"{wcs.where}: the WCS gives no pixel scale at its reference position")
    return input_scale * ratio, ratio


@functools.lru_cache(maxsize=64)  # asked for in inspection, planning and when the image is made
def _neighbours(wcs, x, y) -> tuple[np.ndarray, np.ndarray]:
    """Return RA and Dec of a pixel, the next one along x, and the next one along y."""
    return wcs.pixel_to_sky(np.array([x, x + 1, x]), np.array([y, y, y + 1]), everywhere=True)


@functools.lru_cache(maxsize=64)  # as above: the inverse of a GWCS takes 5 ms
def _pixel(wcs, ra, dec) -> Pair:
    """Return the pixel x, y of a sky position in degrees."""
    x, y = wcs.sky_to_pixel(ra, dec)
    return float(x), float(y)


def _reference_pixel(wcs, meta, shape) -> Pair:
    """Return the pixel of RA_REF, DEC_REF; the middle of the image where they are not known."""
    if meta.ra_ref is not None and meta.dec_ref is not None:
        x, y = _pixel(wcs, meta.ra_ref, meta.dec_ref)
        if math.isfinite(x) and math.isfinite(y):
            return x, y
    log.info("%s: no usable RA_REF, DEC_REF; pixel scale taken at the middle", wcs.where)
    return (shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0


def _orientation(wcs, meta, shape, rotation) -> Box:
    """Return the PC matrix; its parity is -1 where x points to the west, north being up."""
    known = (meta.roll_ref, meta.v3i_yang)
    if None not in known and meta.vparity in (1, -1):
        parity = int(meta.vparity)
        angle = math.radians(meta.roll_ref) - parity * math.radians(meta.v3i_yang)
    else:
        log.info("%s: no ROLL_REF, V3I_YANG, VPARITY; orientation taken from the GWCS", wcs.where)
        ra, dec = _neighbours(wcs, (shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0)
        (east_x, east_y), (north_x, north_y) = tangent_plane(ra[1:], dec[1:], ra[0], dec[0])
        parity = 1 if east_x * north_y - east_y * north_x > 0 else -1
        angle = math.atan2(east_y, north_y)
    if rotation is not None:
        angle = math.radians(rotation)
    c, s = math.cos(angle), math.sin(angle)
    return ((parity * c, s), (-parity * s, c))
