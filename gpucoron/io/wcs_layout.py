"""Where the output image lies on the sky: `gpucoron.io.wcs.output_wcs` step by step."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import numpy as np

from gpucoron.errors import ExposureError, GpucoronError, InputError, ParameterError
from gpucoron.io.asdf_guard import opened
from gpucoron.io.files import read_input
from gpucoron.io.sregion import combine_regions, parse_region
from gpucoron.io.tan import ARCSEC2_PER_SR, OutputWcs, tangent_plane

__all__ = ["check_outlines", "check_request", "combined_region", "from_file", "from_inputs"]

log = logging.getLogger(__name__)

BOUNDARY_STEP_PX = 15
PLANE_PX = 1e-6
FAR_ARCMIN = 5.0
MAX_SIDE_PX = 50_000
_LARGEST_FILE = 256 << 20


class Request(NamedTuple):
    """What the user asked of the output WCS, checked."""

    pixel_scale: float | None
    ratio: float
    rotation: float | None
    crpix: tuple[float, float] | None
    crval: tuple[float, float] | None
    shape: tuple[int, int] | None  # (ny, nx)


def check_request(
    *, pixel_scale, pixel_scale_ratio, rotation, crpix, crval, output_shape
) -> Request:
    """Check the parameters of the output WCS; `ParameterError` names the first that is wrong."""
    scale = None if pixel_scale is None else _number("pixel_scale", pixel_scale, positive=True)
    ratio = 1.0
    if pixel_scale_ratio is not None:
        ratio = _number("pixel_scale_ratio", pixel_scale_ratio, positive=True)
    angle = None if rotation is None else _number("rotation", rotation)
    crpix, crval = _pair("crpix", crpix), _pair("crval", crval)
    if crval is not None and not -90.0 <= crval[1] <= 90.0:
        raise ParameterError(f"crval is {crval}, expected a declination from -90 to 90 degrees")
    shape = _pair("output_shape", output_shape)
    if shape is not None:
        if any(n != int(n) or n < 2 for n in shape):
            raise ParameterError(
                f"output_shape is {output_shape}, expected two integers (nx, ny) of at least 2"
            )
        shape = (int(shape[1]), int(shape[0]))
    return Request(scale, ratio, angle, crpix, crval, shape)


def _number(name, value, positive=False):
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (positive and number <= 0):
        kind = "a positive number" if positive else "a number"
        raise ParameterError(f"{name} is {value!r}, expected {kind}")
    return number


def _pair(name, value):
    if value is None:
        return None
    try:
        pair = list(value)
    except TypeError:
        pair = []
    if len(pair) != 2:
        raise ParameterError(f"{name} is {value!r}, expected two numbers")
    if pair == [None, None]:
        return None
    return _number(name, pair[0]), _number(name, pair[1])


def from_inputs(wcss, metas, shapes, request: Request) -> OutputWcs:
    """Lay out the image that holds all exposures."""
    by_exposure = _regions(wcss, metas, shapes)
    if request.shape is None:
        _check_near(wcss, by_exposure)
    regions = [polygon for own in by_exposure for polygon in own]
    scale, ratio = _scale(wcss[0], metas[0], shapes[0], request)
    pc = _orientation(wcss[0], metas[0], shapes[0], request.rotation)
    crval = request.crval or _middle(np.vstack(regions))
    return _place(regions, scale, ratio, pc, crval, request.crpix, request.shape)


def _place(regions, scale, ratio, pc, crval, crpix, shape):
    """Choose reference pixel and shape so that all corners lie at 0 or above."""
    offset_free = OutputWcs((1, 1), (0.0, 0.0), crval, (scale, scale), pc, scale * 3600.0, ratio)
    corners = np.array(offset_free.sky_to_pixel(*np.vstack(regions).T))
    if not np.all(np.isfinite(corners)):
        raise ParameterError(f"crval is {crval}, expected a position less than 90 degrees away")
    if crpix is None:
        crpix = tuple(-corners.min(axis=1))
    low, high = corners.min(axis=1) + crpix, corners.max(axis=1) + crpix
    box = None
    if shape is None:
        shape = (int(high[1] + 0.5), int(high[0] + 0.5))
    else:
        box = tuple(
            (max(0, int(a + 0.5)) - 0.5, min(int(b + 0.5), n) - 0.5)
            for a, b, n in zip(low, high, shape[::-1], strict=True)
        )
    if min(shape) < 2 or max(shape) > MAX_SIDE_PX:
        raise ParameterError(
            f"the output image would have shape {shape} (ny, nx), expected 2 to {MAX_SIDE_PX} "
            f"pixels a side; see crpix, crval and pixel_scale"
        )
    return OutputWcs(
        shape,
        (float(crpix[0]), float(crpix[1])),
        crval,
        (scale, scale),
        pc,
        scale * 3600.0,
        ratio,
        box,
    )


def check_outlines(wcss, metas, shapes) -> None:
    """Raise where an exposure's outline is no telescope's, or far from the first one's."""
    _check_near(wcss, _regions(wcss, metas, shapes))


def _regions(wcss, metas, shapes):
    """Corners on the sky, polygons for every exposure."""
    regions = []
    for wcs, meta, shape in zip(wcss, metas, shapes, strict=True):
        polygons = parse_region(meta.s_region)
        if not polygons:
            log.warning(
                "%s: no polygon in S_REGION; its footprint is taken from the GWCS", wcs.where
            )
            polygons = [wcs.footprint(shape)]
            if not np.all(np.isfinite(polygons[0])):
                raise ExposureError(
                    f"{wcs.where}: the WCS gives no sky position at the corners of the image"
                )
        regions.append(polygons)
    return regions


def _check_near(wcss, regions):
    """Raise where an exposure points elsewhere: an image that holds all would fill the memory."""
    middles = [_middle(np.vstack(own)) for own in regions]
    for wcs, own, middle in zip(wcss, regions, middles, strict=True):
        reach = 60.0 * float(np.max(_separation(*middle, *np.vstack(own).T)))
        if not reach <= 2 * FAR_ARCMIN:
            raise ExposureError(
                f"{wcs.where}: its outline (S_REGION) reaches {reach:.0f} arcmin "
                f"from its middle, expected at most {2 * FAR_ARCMIN:g}"
            )
    for wcs, middle in zip(wcss[1:], middles[1:], strict=True):
        apart = float(_separation(*middles[0], *middle)) * 60.0
        if apart > FAR_ARCMIN:
            raise ExposureError(
                f"{wcs.where}: points {apart:.1f} arcmin away from {wcss[0].where}, expected "
                f"science exposures within {FAR_ARCMIN:g} arcmin"
            )


def _middle(corners):
    """Direction of the middle between least and greatest Cartesian coordinates."""
    ra, dec = np.deg2rad(corners).T
    xyz = np.array([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
    x, y, z = (xyz.max(axis=1) + xyz.min(axis=1)) / 2.0
    ra, dec = np.rad2deg([np.arctan2(y, x), np.arctan2(z, np.hypot(x, y))])
    return float(ra % 360.0), float(dec)


def _separation(ra1, dec1, ra2, dec2):
    """Angle between positions, all in degrees.

    Vincenty's formula in the order in which astropy, and so the jwst package, evaluates it: that
    alone decides the last digits of CDELT.
    """
    delta = np.deg2rad(np.subtract(ra2, ra1))
    sin1, cos1 = np.sin(np.deg2rad(dec1)), np.cos(np.deg2rad(dec1))
    sin2, cos2 = np.sin(np.deg2rad(dec2)), np.cos(np.deg2rad(dec2))
    across = np.hypot(cos2 * np.sin(delta), cos1 * sin2 - sin1 * cos2 * np.cos(delta))
    return np.rad2deg(np.arctan2(across, sin1 * sin2 + cos1 * cos2 * np.cos(delta)))


def _scale(wcs, meta, shape, request):
    """Output scale in degrees, and its ratio to the input's."""
    if request.pixel_scale is not None:
        degrees = request.pixel_scale / 3600.0
        return degrees, degrees / math.degrees(math.sqrt(mean_pixel_area(wcs, shape)))
    x, y = _reference_pixel(wcs, meta, shape)
    ra, dec = wcs.pixel_to_sky(np.array([x, x + 1, x]), np.array([y, y, y + 1]), everywhere=True)
    steps = _separation(ra[0], dec[0], ra[1:], dec[1:])
    input_scale = float(np.sqrt(steps[0] * steps[1]))
    if not math.isfinite(input_scale) or input_scale <= 0:
        raise ExposureError(f"{wcs.where}: the WCS gives no pixel scale at its reference position")
    return input_scale * request.ratio, request.ratio


def _reference_pixel(wcs, meta, shape):
    """Pixel of RA_REF, DEC_REF; the middle of the image where they are not known."""
    if meta.ra_ref is not None and meta.dec_ref is not None:
        x, y = wcs.sky_to_pixel(meta.ra_ref, meta.dec_ref)
        if math.isfinite(x) and math.isfinite(y):
            return float(x), float(y)
    log.info("%s: no usable RA_REF, DEC_REF; pixel scale taken at the middle", wcs.where)
    return (shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0


def _orientation(wcs, meta, shape, rotation):
    """PC matrix from the position angle of the y axis and the handedness."""
    angle, parity = _y_axis(wcs, meta, shape)
    if rotation is not None:
        angle = math.radians(rotation)
    c, s = math.cos(angle), math.sin(angle)
    return ((parity * c, s), (-parity * s, c))


def _y_axis(wcs, meta, shape):
    """Position angle (rad) of the y axis and parity (-1: x points to the west, north being up)."""
    known = (meta.roll_ref, meta.v3i_yang)
    if None not in known and meta.vparity in (1, -1):
        parity = int(meta.vparity)
        return math.radians(meta.roll_ref) - parity * math.radians(meta.v3i_yang), parity
    log.info("%s: no ROLL_REF, V3I_YANG, VPARITY; orientation taken from the GWCS", wcs.where)
    x, y = (shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0
    ra, dec = wcs.pixel_to_sky(np.array([x, x + 1, x]), np.array([y, y, y + 1]), everywhere=True)
    (east_x, east_y), (north_x, north_y) = tangent_plane(ra[1:], dec[1:], ra[0], dec[0])
    parity = 1 if east_x * north_y - east_y * north_x > 0 else -1
    return math.atan2(east_y, north_y), parity


def mean_pixel_area(wcs, shape: tuple[int, int]) -> float:
    """Mean area (sr) of the pixels of an exposure, from the outline of its bounding box.

    The outline, a point at least every 15 pixels, is laid on an equal-area plane.
    """
    ny, nx = shape
    (x1, x2), (y1, y2) = wcs.box(shape)
    x1, x2 = max(0, int(x1 + 0.5)), min(nx - 1, int(x2 - 0.5))
    y1, y2 = max(0, int(y1 + 0.5)), min(ny - 1, int(y2 - 0.5))
    step_x = max(2, -(-(x2 - x1) // BOUNDARY_STEP_PX))
    step_y = max(2, -(-(y2 - y1) // BOUNDARY_STEP_PX))
    xs, ys = np.linspace(x1, x2, step_x + 1), np.linspace(y1, y2, step_y + 1)
    x = np.concatenate([xs[:-1], np.full(step_y, x2), xs[:0:-1], np.full(step_y, x1)])
    y = np.concatenate([np.full(step_x, y1), ys[:-1], np.full(step_x, y2), ys[:0:-1]])
    ra, dec = wcs.pixel_to_sky(x.astype(float), y.astype(float), everywhere=True)
    ra0, dec0 = wcs.pixel_to_sky((x1 + x2) / 2.0, (y1 + y2) / 2.0, everywhere=True)
    u, v = np.deg2rad(tangent_plane(ra, dec, float(ra0), float(dec0)))
    radius = np.hypot(u, v)
    squeeze = 2.0 * np.sin(0.5 * np.arctan(radius)) / np.where(radius > 0, radius, 1.0)
    u, v = u * squeeze, v * squeeze
    area = 0.5 * abs(float(np.sum(u * np.roll(v, -1) - v * np.roll(u, -1))))
    if not math.isfinite(area) or area <= 0:
        raise ExposureError(f"{wcs.where}: the WCS gives no pixel area")
    return area / ((x2 - x1) * (y2 - y1))


def from_file(path, shape, wcs, meta, input_shape) -> OutputWcs:
    """Take the output WCS from an ASDF file."""
    try:
        tree = _read_tree(path)
    except InputError as error:
        raise ParameterError(f"output_wcs {error}") from error
    try:
        return _from_tree(path, tree, shape, wcs, meta, input_shape)
    except GpucoronError:
        raise
    except Exception as error:  # whatever gwcs and astropy make of transforms of all kinds
        reason = str(error).strip().split("\n")[0][:200]
        raise ParameterError(
            f"output_wcs {path}: cannot be used: {type(error).__name__}: {reason}"
        ) from error


def _from_tree(path, tree, shape, wcs, meta, input_shape) -> OutputWcs:
    custom = tree["wcs"]
    plane = _as_plane(custom, path)
    shape = shape or _shape_of(custom, tree, path)
    scale = tree.get("pixel_scale")
    if scale is None and tree.get("pixel_area") is not None:
        scale = math.sqrt(tree["pixel_area"])
    if scale is None:
        scale = 3600.0 * math.sqrt(abs(np.linalg.det(plane._matrix())))
    nominal = meta.pixar_sr
    if nominal is None or nominal <= 0:
        nominal = mean_pixel_area(wcs, input_shape)
    ratio = float(scale) / math.sqrt(nominal * ARCSEC2_PER_SR)
    box = None
    if custom.bounding_box is not None:
        box = tuple(tuple(map(float, b)) for b in custom.bounding_box.bounding_box(order="F"))
    return OutputWcs(
        shape, plane.crpix, plane.crval, plane.cdelt, plane.pc, float(scale), ratio, box
    )


def _read_tree(path):
    content = read_input(path, InputError, "an ASDF file with the output WCS", _LARGEST_FILE)
    try:
        with opened(content) as tree:
            if hasattr(tree.get("wcs"), "forward_transform"):
                return tree
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ParameterError(
            f"output_wcs {path}: cannot be read as ASDF: {type(error).__name__}: {reason}"
        ) from error
    raise ParameterError(f"output_wcs {path}: no GWCS under 'wcs'")


def _shape_of(custom, tree, path):
    shape = custom.array_shape
    if shape is None and tree.get("array_shape") is not None:
        shape = tree["array_shape"]
    if shape is None and tree.get("pixel_shape") is not None:
        shape = tree["pixel_shape"][::-1]
    if shape is None and custom.bounding_box is not None:
        shape = [int(limits[1] + 0.5) for limits in custom.bounding_box.bounding_box(order="C")]
    if shape is None:
        raise ParameterError(
            f"output_wcs {path}: no array_shape, pixel_shape or bounding_box; give output_shape"
        )
    shape = (int(shape[0]), int(shape[1]))
    if not 2 <= min(shape) <= max(shape) <= MAX_SIDE_PX:
        raise ParameterError(
            f"output_wcs {path}: its image has shape {shape} (ny, nx), expected "
            f"2 to {MAX_SIDE_PX} pixels a side"
        )
    return shape


def _as_plane(custom, path):
    """Express a GWCS as a tangent plane; `ParameterError` where it is not one."""
    from gwcs import FITSImagingWCSTransform

    transform = custom.forward_transform
    if isinstance(transform, FITSImagingWCSTransform):
        crpix, crval, cdelt, pc = (
            np.asarray(getattr(transform, name).value, dtype=np.float64)
            for name in ("crpix", "crval", "cdelt", "pc")
        )
        plane = _plane(crpix, crval, cdelt, pc)
    else:
        plane = _fitted_plane(transform, path)
    x, y = np.meshgrid(np.linspace(-100, 2000, 5), np.linspace(-100, 2000, 5))
    again = plane.sky_to_pixel(*custom(x, y, with_bounding_box=False))
    if not np.nanmax(np.abs(np.array(again) - (x, y))) < PLANE_PX:
        raise ParameterError(f"output_wcs {path}: not a TAN projection without distortion")
    return plane


def _plane(crpix, crval, cdelt, pc):
    as_tuple = tuple(tuple(float(v) for v in row) for row in pc)
    return OutputWcs(
        (1, 1),
        tuple(map(float, crpix)),
        tuple(map(float, crval)),
        tuple(map(float, cdelt)),
        as_tuple,
        1.0,
    )


def _fitted_plane(transform, path):
    """Find the tangent plane behind a compound transform from where it points to."""
    poles = [
        m
        for m in getattr(transform, "traverse_postorder", list)()
        if type(m).__name__ == "RotateNative2Celestial"
    ]
    if not poles:
        raise ParameterError(f"output_wcs {path}: expected a TAN projection of the sky")
    crval = (float(poles[-1].lon.value) % 360.0, float(poles[-1].lat.value))
    x, y = np.array([0.0, 1000.0, 0.0]), np.array([0.0, 0.0, 1000.0])
    u, v = tangent_plane(*transform(x, y), *crval)
    matrix = np.array([[u[1] - u[0], u[2] - u[0]], [v[1] - v[0], v[2] - v[0]]]) / 1000.0
    crpix = -np.linalg.solve(matrix, [u[0], v[0]])
    scale = math.sqrt(abs(np.linalg.det(matrix)))
    return _plane(crpix, crval, (scale, scale), matrix / scale)


def combined_region(layout: OutputWcs, wcss, metas, shapes) -> str | None:
    """S_REGION of the output: what the exposures cover of it."""
    regions = []
    for wcs, meta, shape in zip(wcss, metas, shapes, strict=True):
        regions += parse_region(meta.s_region) or [wcs.footprint(shape)]
    region = combine_regions(regions, layout.box(), layout.sky_to_pixel, layout.pixel_to_sky)
    if region is None:
        log.warning("no exposure overlaps the output image; it gets no S_REGION")
    return region
