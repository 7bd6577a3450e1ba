"""The WCS of the output image from an ASDF file (``resample.output_wcs``)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.errors import GpucoronError, InputError, ParameterError
from gpucoron.io.asdf.guard import open_asdf
from gpucoron.io.files import read_input
from gpucoron.io.wcs.exposure import InputWcs, reason, unusable
from gpucoron.io.wcs.tan import ARCSEC2_PER_SR, MAX_SIDE_PX, OutputWcs, pair, tangent_plane

if TYPE_CHECKING:
    from gpucoron.io.exposures import ExposureMeta

__all__ = ["read_output_wcs"]

_PLANE_PX = 1e-6  # how well a tangent plane must reproduce the WCS
_LARGEST_FILE = 256 << 20  # bytes


def read_output_wcs(
    path: str,
    shape: tuple[int, int] | None,
    wcs: InputWcs,
    meta: ExposureMeta,
    input_shape: tuple[int, int],
) -> OutputWcs:
    """Read the WCS of the output image from an ASDF file; see `gpucoron.io.wcs.output_wcs`.

    `shape` None takes the file's. `wcs`, `meta` and `input_shape` are the first exposure's, whose
    pixel scale the output's is compared with.

    Raises
    ------
    ParameterError
        The file cannot be read, or has no TAN projection without distortion.
    """
    try:
        content = read_input(path, InputError, "an ASDF file with the output WCS", _LARGEST_FILE)
        with open_asdf(content) as tree:
            return _from_tree(path, tree, shape, wcs, meta, input_shape)
    except InputError as error:
        raise ParameterError(f"output_wcs {error}") from error
    except GpucoronError:
        raise
    except Exception as error:  # whatever gwcs and astropy make of transforms of all kinds
        raise ParameterError(f"output_wcs {path}: cannot be used: {reason(error)}") from error


def _from_tree(path, tree: Mapping[str, Any], shape, wcs, meta, input_shape) -> OutputWcs:
    custom: Any = tree.get("wcs")
    problem = unusable(custom)
    if problem:
        raise ParameterError(f"output_wcs {path}: {problem} under 'wcs', expected a GWCS in ICRS")
    plane = _as_plane(custom, path)
    scale = tree.get("pixel_scale")
    if scale is None and tree.get("pixel_area") is not None:
        scale = math.sqrt(tree["pixel_area"])
    if scale is None:
        scale = 3600.0 * math.sqrt(abs(np.linalg.det(plane.matrix())))
    nominal = meta.pixar_sr
    if nominal is None or nominal <= 0:
        nominal = wcs.mean_pixel_area(input_shape)
    box = custom.bounding_box
    if box is not None:
        x, y = box.bounding_box(order="F")
        box = pair(x), pair(y)
    return replace(
        plane,
        shape=shape or _shape_of(custom, tree, path),
        pixel_scale=float(scale),
        pixel_scale_ratio=float(scale) / math.sqrt(nominal * ARCSEC2_PER_SR),
        bounding_box=box,
    )


def _shape_of(custom, tree: Mapping[str, Any], path) -> tuple[int, int]:
    shape, box = custom.array_shape, custom.bounding_box
    if shape is None:
        shape = tree.get("array_shape")
    if shape is None and tree.get("pixel_shape") is not None:
        shape = tree["pixel_shape"][::-1]
    if shape is None and box is not None:
        shape = [limits[1] + 0.5 for limits in box.bounding_box(order="C")]
    if shape is None:
        raise ParameterError(
            f"output_wcs {path}: no array_shape, pixel_shape or bounding_box; give output_shape"
        )
    ny, nx = int(shape[0]), int(shape[1])
    if not 2 <= min(ny, nx) <= max(ny, nx) <= MAX_SIDE_PX:
        raise ParameterError(
            f"output_wcs {path}: its image has shape {ny, nx} (ny, nx), expected "
            f"2 to {MAX_SIDE_PX} pixels a side"
        )
    return ny, nx


def _as_plane(custom, path) -> OutputWcs:
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
    if not np.nanmax(np.abs(np.array(again) - (x, y))) < _PLANE_PX:
        raise ParameterError(f"output_wcs {path}: not a TAN projection without distortion")
    return plane


def _plane(crpix, crval, cdelt, pc) -> OutputWcs:
    across, up = pc
    return OutputWcs((1, 1), pair(crpix), pair(crval), pair(cdelt), (pair(across), pair(up)), 1.0)


def _fitted_plane(transform, path) -> OutputWcs:
    """Find the tangent plane behind a compound transform from where it points to."""
    models: Iterable[Any] = getattr(transform, "traverse_postorder", list)()
    poles = [m for m in models if type(m).__name__ == "RotateNative2Celestial"]
    if not poles:
        raise ParameterError(f"output_wcs {path}: expected a TAN projection of the sky")
    crval = (float(poles[-1].lon.value) % 360.0, float(poles[-1].lat.value))
    x, y = np.array([0.0, 1000.0, 0.0]), np.array([0.0, 0.0, 1000.0])
    ra, dec = transform(x, y)
    u, v = tangent_plane(ra, dec, *crval)
    matrix = np.array([[u[1] - u[0], u[2] - u[0]], [v[1] - v[0], v[2] - v[0]]]) / 1000.0
    crpix = -np.linalg.solve(matrix, [u[0], v[0]])
    scale = math.sqrt(abs(np.linalg.det(matrix)))
    return _plane(crpix, crval, (scale, scale), matrix / scale)
