"""Drizzle: combine images from distorted pixel grids on one regular grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucoron.backend import cuda
from gpucoron.errors import InputError
from gpucoron.ops.cpu.drizzle_scan import scan_limits
from gpucoron.ops.drizzle_options import (
    CONTEXT_BITS,
    KERNELS,
    check_kernel,
    check_shape,
    fill_value,
)
from gpucoron.ops.drizzle_profiles import SEPARABLE, profile

__all__ = [
    "KERNELS",
    "Drizzle",
    "DrizzledImage",
    "Overlaps",
    "fill_value",
    "overlaps",
    "sum_shares",
    "weighted_sums",
]

N_VARIANCES = 3


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


@dataclass(frozen=True)
class DrizzledImage:
    """The result of a drizzle; all arrays (ny, nx), on the device of the inputs.

    `data` float32 weighted mean, `fillval` where nothing fell; `weight` float32; `context`
    (nplanes, ny, nx) int32, bit k % 32 of plane k // 32 telling that input k took part;
    `variances`, three entries, each float32 (NaN where nothing fell) or None where no input had it.
    """

    data: Any
    weight: Any
    context: Any
    variances: tuple[Any, Any, Any]


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


class Drizzle:
    """Accumulates images by drizzle: set up once, add images, get the result at any time.

    The first images decide whether its sums are kept on the host or on a GPU.

    Parameters
    ----------
    output_shape : (ny, nx)
        Shape of the output image.
    kernel, pixfrac, pixel_scale_ratio
        See `overlaps`.
    fillval : str, float or None
        Value of output pixels that nothing falls into; "NAN", "INDEF", "" and None mean NaN.
    n_inputs : int
        Number of images expected; only a hint for the size of the context.

    Raises
    ------
    ParameterError
        A value outside what is described.

    Examples
    --------
    Planes of one exposure that share a pixel map, all CuPy arrays here (NumPy does the same)::

        drizzle = Drizzle((400, 400), kernel="square", pixfrac=0.8)
        geometry = drizzle.overlaps(pixel_map)  # once for each map
        drizzle.add(images, geometry, weights, variances=(poisson, read_noise, flat))
        result = drizzle.result()  # data, weight, context, variances
    """

    def __init__(
        self,
        output_shape: tuple[int, int],
        *,
        kernel: str = "square",
        pixfrac: float = 1.0,
        pixel_scale_ratio: float | None = None,
        fillval: str | float | None = "NAN",
        n_inputs: int = 1,
    ):
        self.output_shape = check_shape(output_shape)
        self.kernel, self.pixfrac, self.pixel_scale_ratio = check_kernel(
            kernel, pixfrac, pixel_scale_ratio
        )
        self.fillval = fill_value(fillval)
        self.n_added = 0
        self._n_inputs = n_inputs
        self._sums: Any = None
        self._has_variance = np.zeros(N_VARIANCES, dtype=bool)

    def overlaps(self, pixel_map: Any) -> Overlaps:
        """Return the geometry of a pixel map for this drizzle, to be given to `add` repeatedly."""
        return overlaps(
            pixel_map,
            self.output_shape,
            kernel=self.kernel,
            pixfrac=self.pixfrac,
            pixel_scale_ratio=self.pixel_scale_ratio,
        )

    def add(
        self,
        images: Any,
        geometry: Any | Overlaps,
        weights: Any | None = None,
        *,
        variances: Sequence[Any | None] = (),
        weigh_variances: int | Sequence[float] | np.ndarray = 1,
        scale: float = 1.0,
    ) -> None:
        """Add images that share one pixel map.

        Parameters
        ----------
        images : (n, ny, nx) or (ny, nx) floating array
            The images; used as float32.
        geometry : (ny, nx, 2) float64 array or Overlaps
            The pixel map, or what `overlaps` made of it.
        weights : like images, or (ny, nx), or None
            Weight of every input pixel; None means 1. A pixel of weight 0 is not read, so it may
            be NaN.
        variances : up to three arrays like images, or None
            Their square roots are drizzled image by image with the same weights and squared, and
            the results V are combined over images as ``sum(u^2 V) / sum(u)^2``.
        weigh_variances : int or (n,) array
            What u is: an index into `variances`, whose resampled inverse is taken, or one number
            for each image.
        scale : float
            Factor on the images; its square applies to the variances.

        Raises
        ------
        InputError
            Shapes that do not fit together.
        TypeError
            Arrays, or these and earlier ones, on host and GPU mixed.

        Notes
        -----
        Sums are double precision and in the order of the input, whatever the number of threads.
        On a GPU planes are added before input pixels, so that results differ from the CPU's by
        rounding. Nothing waits for the device.

        The drizzle library keeps a running mean in single precision; it differs by its rounding,
        about 1e-7 of the value per thousand overlaps.
        """
        images, weights, *variances = cuda.as_device_arrays(images, weights, *variances)
        xp = cuda.array_namespace(images, weights, *variances)
        images = xp.ascontiguousarray(_planes(xp, images, "images"))
        if not isinstance(geometry, Overlaps):
            geometry = self.overlaps(geometry)
        cuda.array_namespace(images, geometry.shares)  # on the same device, or TypeError
        self._check_geometry(geometry, images)
        weights = xp.ones(1) if weights is None else weights
        weights = _planes(xp, weights, "weights", images.shape)
        if len(variances) > N_VARIANCES:
            raise InputError(f"{len(variances)} variances given, expected {N_VARIANCES} at most")
        arrays = [None] * N_VARIANCES
        for k, variance in enumerate(variances):
            if variance is not None:
                arrays[k] = _planes(xp, variance, f"variance {k}", images.shape)
        has_variance = np.array([a is not None for a in arrays])
        index, per_plane = _variance_weight(weigh_variances, has_variance, images.shape[0])
        sums = self._allocate_sums(xp, self.n_added + images.shape[0])
        if xp is np:
            from gpucoron.ops.cpu.drizzle_planes import add_planes
        else:
            from gpucoron.ops.cuda.drizzle import add_planes
        add_planes(
            geometry, images, weights, arrays, index, per_plane, float(scale), self.n_added, sums
        )
        self.n_added += images.shape[0]
        self._has_variance |= has_variance

    def reached(self) -> Any:
        """Return which output pixels an image of positive weight falls into: (ny, nx) bool."""
        if self._sums is None:
            self._allocate_sums(np, 0)
        return (self._sums[-1] != 0).any(axis=0)

    def result(self) -> DrizzledImage:
        """Return the outcome so far; more may be added afterwards."""
        if self._sums is None:
            self._allocate_sums(np, 0)
        weight, image, var_weight, var, context = self._sums
        xp = cuda.array_namespace(weight)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            data = xp.where(weight != 0, image / weight, self.fillval).astype(np.float32)
            variances = [
                (var[k] / var_weight[k] / var_weight[k]).astype(np.float32)
                if has_variance
                else None
                for k, has_variance in enumerate(self._has_variance)
            ]
        context = context[: _layers(self.n_added)].view(np.int32).copy()
        return DrizzledImage(data, weight.astype(np.float32), context, tuple(variances))  # type: ignore[arg-type]

    def _allocate_sums(self, xp, n):
        """Sums of weight, image, variances' weights and variances, and the context of n inputs."""
        one, many = self.output_shape, (N_VARIANCES, *self.output_shape)
        if self._sums is None:
            context = xp.zeros((_layers(self._n_inputs), *one), dtype=np.uint32)
            self._sums = xp.zeros(one), xp.zeros(one), xp.zeros(many), xp.zeros(many), context
        *sums, context = self._sums
        cuda.array_namespace(sums[0], xp.empty(0))  # on the same device, or TypeError
        missing = _layers(n) - context.shape[0]
        if missing > 0:
            more = xp.zeros((missing, *one), dtype=np.uint32)
            self._sums = *sums, xp.concatenate([context, more])
        return self._sums

    def _check_geometry(self, geometry, images):
        given, wanted = (
            (x.output_shape, x.kernel, x.pixfrac, x.pixel_scale_ratio) for x in (geometry, self)
        )
        if given != wanted:
            raise InputError(
                "the overlaps are for output shape, kernel, pixfrac and pixel_scale_ratio "
                f"{given}, expected {wanted}"
            )
        if tuple(geometry.input_shape) != images.shape[1:]:
            raise InputError(
                f"the pixel map is for images of shape {tuple(geometry.input_shape)}, "
                f"but the images have {images.shape[1:]}"
            )


def _planes(xp, array, name, shape=None):
    """As native float32 (n, ny, nx); contiguous but for what is broadcast to `shape`."""
    array = xp.asarray(array, dtype=np.float32)
    if shape is None and array.ndim == 2:
        array = array[None]
    if shape is None and array.ndim != 3:
        raise InputError(f"{name}: shape {array.shape}, expected (ny, nx) or (n, ny, nx)")
    try:
        return array if shape is None else xp.broadcast_to(array, shape)
    except ValueError:
        raise InputError(f"{name}: shape {array.shape} does not fit images of {shape}") from None


def _variance_weight(weigh, has_variance, n):
    """Index of the variance that weighs (-1 for none), and a number for each plane."""
    if np.ndim(weigh) == 0:
        index = int(weigh)
        if not 0 <= index < N_VARIANCES:
            raise InputError(f"weigh_variances is {weigh!r}, expected 0 to {N_VARIANCES - 1}")
        return (index if has_variance[index] else -1), np.ones(n)
    numbers = np.ascontiguousarray(weigh, dtype=np.float64)
    if numbers.shape != (n,):
        raise InputError(f"weigh_variances has shape {numbers.shape}, expected one number, or {n}")
    return -1, numbers


def _layers(n):
    return max(n - 1, 0) // CONTEXT_BITS + 1
