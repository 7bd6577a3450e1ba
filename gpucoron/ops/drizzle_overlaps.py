"""Overlaps of input with output pixels, by which drizzle shares out light, and sums over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucoron.backend import cuda
from gpucoron.errors import InputError
from gpucoron.ops.cpu.drizzle_scan import scan_limits
from gpucoron.ops.drizzle_options import check_kernel, check_shape
from gpucoron.ops.drizzle_profiles import SEPARABLE, profile

__all__ = ["Overlaps", "overlaps", "sum_shares", "weighted_sums"]


@dataclass(frozen=True)
class Overlaps:
    """Overlaps of output pixels with input pixels for one pixel map.

    Rows of a sparse matrix in compressed form: output pixel k receives from input pixels
    ``sources[pointers[k]:pointers[k + 1]]`` the shares `shares` of their weight, in raster order.
    `pixel_scale_ratio` is what was asked for; None also for kernels that do not need it. On a GPU
    rows lie otherwise, with `counts` and `needed` beside them: `TileShares` in ops/cuda/drizzle.py.
    """

    input_shape: tuple[int, int]
    output_shape: tuple[int, int]
    kernel: str
    pixfrac: float
    pixel_scale_ratio: float | None
    pointers: Any
    sources: Any
    shares: Any
    counts: Any = None
    needed: Any = None


def overlaps(
    pixel_map: Any,
    output_shape: tuple[int, int],
    *,
    kernel: str = "square",
    pixfrac: float = 1.0,
    pixel_scale_ratio: float | None = None,
) -> Overlaps:
    """Compute the overlaps of input pixels with output pixels.

    Parameters
    ----------
    pixel_map : (ny, nx, 2) float64
        Output position x, y (0-based pixels) of every input pixel's centre; NaN where it has none.
        On the device where the images will be.
    output_shape : (ny, nx)
        Shape of the output image.
    kernel : {"square", "point", "turbo", "gaussian", "lanczos2", "lanczos3"}
        Shape of the drop: the input pixel's quadrilateral; its centre alone; a square along the
        output's axes; a gaussian; Lanczos's function with 2 or 3 lobes, which is negative in part.
    pixfrac : float
        Linear fraction of the input pixel that the drop covers (the gaussian's FWHM), 0 to 1.
        Lanczos ignores it. At 0.001 and below every kernel becomes the point kernel.
    pixel_scale_ratio : float or None
        Output over input pixel scale, for the size of turbo, gaussian and lanczos drops; None
        measures it in the map (the median over the pixels).

    Returns
    -------
    Overlaps

    Raises
    ------
    ParameterError
        Unknown kernel, `pixfrac` or `pixel_scale_ratio` out of range, or an output shape that is
        not two positive integers.
    InputError
        A pixel map that is not (ny, nx, 2) with at least 2 x 2 pixels.

    Notes
    -----
    With ``square`` the corners of a pixel are interpolated bilinearly between the centres in the
    map and extrapolated at its edge; a pixel with a NaN among the centres it needs is left out.
    Areas are those of the quadrilateral clipped by the output pixel, divided by the quadrilateral's
    own, so an input pixel's weight is handed out completely as long as it lies inside the output.
    ``point`` and ``turbo`` do that too. The shares of ``gaussian`` and ``lanczos`` do not add up to
    1, so they conserve flux only nearly; formulas in ``gpucoron/ops/drizzle_profiles.py``. Input
    pixels of which more than about half lies beyond the output's edge are left out, as the drizzle
    library does. Costs about one drizzle of one image, and 12 bytes an overlap; at equal pixel
    scales 1 a pixel with ``point``, 4 with ``turbo``, 5 with ``square``, 12, 16 and 36 with the
    others, and as many more as output pixels are smaller.

    A map on a GPU is copied to the host once, where the outline of the visible part is found. The
    shares have the bits of the CPU's (but for the exponential of ``gaussian``), in the same order.

    References
    ----------
    Fruchter and Hook 2002, PASP 114, 144, sections 4 and 5. Duchon 1979, J. Appl. Meteorol. 18,
    1016 (Lanczos's function as a filter).
    """
    kernel, pixfrac, ratio = check_kernel(kernel, pixfrac, pixel_scale_ratio)
    output_shape = check_shape(output_shape)
    (pixel_map,) = cuda.as_device_arrays(pixel_map)
    xp = cuda.array_namespace(pixel_map)
    pixel_map = xp.ascontiguousarray(pixel_map, dtype=np.float64)
    if pixel_map.ndim != 3 or pixel_map.shape[2] != 2 or min(pixel_map.shape[:2]) < 2:
        raise InputError(
            f"the pixel map has shape {pixel_map.shape}, expected (ny, nx, 2) with ny, nx >= 2"
        )
    on_host = pixel_map if xp is np else xp.asnumpy(pixel_map)
    limits = scan_limits(on_host, output_shape)
    drop = None
    if kernel in SEPARABLE:
        drop = profile(kernel, pixfrac, ratio or _scale_ratio(on_host))
    shares: Sequence[Any]
    if xp is not np:
        from gpucoron.ops.cuda.drizzle import tile_shares

        shares = tile_shares(pixel_map, limits, output_shape, kernel, pixfrac, drop)
    elif drop:
        from gpucoron.ops.cpu.drizzle_separable import separable_shares

        shares = separable_shares(pixel_map, limits, output_shape, drop)
    else:
        from gpucoron.ops.cpu.drizzle import area_shares

        shares = area_shares(pixel_map, limits, output_shape, kernel, pixfrac)
    return Overlaps(pixel_map.shape[:2], output_shape, kernel, pixfrac, ratio, *shares)


def sum_shares(geometry: Overlaps, planes: Any, squared: bool = False) -> Any:
    """Sum planes over the overlaps of every output pixel.

    Parameters
    ----------
    geometry : Overlaps
        Of the planes' pixel map.
    planes : (n, ny, nx) float64
        On the host or a GPU, where the overlaps are.
    squared : bool
        Multiply by the squares of the shares, as variances are summed.

    Returns
    -------
    (n, output ny, output nx) float64
        ``sum_i a(o, i) plane(i)`` with the shares a, or their squares.

    Raises
    ------
    InputError
        Planes of another shape than the pixel map.
    """
    xp = cuda.array_namespace(planes, geometry.shares)
    planes = xp.ascontiguousarray(planes, dtype=np.float64)
    if planes.ndim != 3 or planes.shape[1:] != tuple(geometry.input_shape):
        raise InputError(
            f"the planes have shape {planes.shape}, expected (n, "
            f"{', '.join(map(str, geometry.input_shape))}) as the pixel map"
        )
    if xp is np:
        from gpucoron.ops.cpu.drizzle_sums import sum_shares as add
    else:
        from gpucoron.ops.cuda.drizzle import sum_shares as add
    return add(geometry, planes, squared)


def weighted_sums(weights: Any, planes: Sequence[Any]) -> Any:
    """Sum weights over images, and their squares times each of some planes.

    Parameters
    ----------
    weights : (n, ny, nx) float32
    planes : sequence of (n, ny, nx) floating
        Used as float32; values that are not finite count as 0.

    Returns
    -------
    (1 + len(planes), ny, nx) float64
        ``sum_k w_k``, then ``sum_k w_k^2 plane_k`` of each plane.
    """
    xp = cuda.array_namespace(weights, *planes)
    if xp is np:
        from gpucoron.ops.cpu.drizzle_sums import weighted_sums as add

        return add(weights, planes)
    wide = weights.astype(np.float64)
    sums = [wide.sum(axis=0)]
    for plane in planes:
        sums.append((wide * wide * xp.where(xp.isfinite(plane), plane, 0)).sum(axis=0))
    return xp.stack(sums)


def _scale_ratio(pixel_map):
    """Output over input pixel scale: the median of what each pixel's neighbours say."""
    dy, dx = pixel_map[1:, :-1] - pixel_map[:-1, :-1], pixel_map[:-1, 1:] - pixel_map[:-1, :-1]
    areas = np.abs(dx[..., 0] * dy[..., 1] - dx[..., 1] * dy[..., 0])
    areas = areas[np.isfinite(areas) & (areas > 0)]
    return 1.0 / math.sqrt(np.median(areas)) if areas.size else 1.0
