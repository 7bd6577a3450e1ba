"""Drizzle: combine images from distorted pixel grids on one regular grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucoron.backend import cuda
from gpucoron.errors import InputError
from gpucoron.ops.drizzle_options import (
    CONTEXT_BITS,
    KERNELS,
    check_kernel,
    check_shape,
    fill_value,
)
from gpucoron.ops.drizzle_overlaps import Overlaps, overlaps, sum_shares, weighted_sums

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
