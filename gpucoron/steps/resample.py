"""resample: combine all PSF-subtracted integrations in one image."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpucoron.backend import cuda
from gpucoron.core.stack import VARIANCES, IntegrationStack
from gpucoron.errors import InputError, ParameterError
from gpucoron.ops.dq import DO_NOT_USE, NON_SCIENCE
from gpucoron.ops.drizzle import Drizzle, DrizzledImage, Overlaps
from gpucoron.ops.drizzle_weights import pixel_weights
from gpucoron.steps.boxes import scatter_variance
from gpucoron.steps.combined_noise import CombinedNoise, Window
from gpucoron.steps.resampled_image import ResampledImage

__all__ = ["ResampledImage", "fixed_weights", "plane_weights", "resample"]

log = logging.getLogger(__name__)

WEIGHT_TYPES = ("ivm", "exptime")
ERR_SOURCES = ("auto", "var")
READ_NOISE = VARIANCES.index("var_rnoise")
BAD = np.uint32(DO_NOT_USE | NON_SCIENCE)
PLANES_AT_ONCE = 16
GPU_PIXELS_AT_ONCE = 2**24  # of planes, whose weights exist at a time: every launch has a cost


def resample(
    stacks: Sequence[IntegrationStack],
    pixel_maps: Sequence[np.ndarray],
    output_shape: tuple[int, int],
    *,
    pixel_scale_ratio: float | None = 1.0,
    exposure_times: Sequence[float] | None = None,
    pixfrac: float = 1.0,
    kernel: str = "square",
    fillval: str | float | None = "NAN",
    weight_type: str = "ivm",
    weight_without_read_noise: float = 1.0,
    err_from: str = "auto",
    center: tuple[float, float] | None = None,
    known: dict[int, Any] | None = None,
) -> ResampledImage:
    """Combine every integration of every exposure in one image by drizzle.

    Parameters
    ----------
    stacks : sequence of IntegrationStack
        One for each exposure, in MJy/sr. The result lives where they do, on the host or a GPU.
    pixel_maps : sequence of (ny, nx, 2) float64 arrays
        One for each exposure: output x, y (0-based pixels) of its pixels, NaN where there is none.
        Those of stacks on a GPU may lie on the host.
        Exposures that share a WCS should share the array itself; its geometry is then done once.
    output_shape : (ny, nx)
        Shape of the output image.
    pixel_scale_ratio : float
        Output over input pixel scale; variances are divided by its square, and turbo, gaussian and
        lanczos drops have their size by it. None counts as 1.
    exposure_times : sequence of float, s
        One for each exposure (the measurement time where known); needed for ``exptime`` weights.
    pixfrac : float
        Linear fraction of a pixel that its drop covers, 0 to 1; lanczos ignores it.
    kernel : {"square", "point", "turbo", "gaussian", "lanczos2", "lanczos3"}
        Shape of the drop; see `gpucoron.ops.drizzle.overlaps`.
    fillval : str, float or None
        `data` where nothing falls: a number, or "NAN" or "INDEF".
    weight_type : {"ivm", "exptime"}
        Weight of a pixel: the inverse of its read-noise variance, or its exposure's time.
    weight_without_read_noise : float, (MJy/sr)^-2
        With ``ivm`` the weight of the pixels of an exposure without VAR_RNOISE: 1, as jwst has it,
        or what makes it like the others, such as the median of their weights.
    err_from : {"auto", "var"}
        "auto": `err` is the scatter of an output pixel, from the variances of its input pixels
        (ERR squared where an exposure has none) and what PSF subtraction adds to them
        (`gpucoron.steps.combined_noise`). "var": jwst's rule for the variances, which neglects that
        drops cover parts of pixels; `err` is the square root of their sum, all NaN without any.
    center : (x, y), optional
        Output pixel, from 0, of the star, to which references were aligned. Default: not known;
        exposures then count as independent also where they share references.
    known : dict, optional
        Keeps the overlaps of the maps, by the `id` of these: given to calls that differ in
        nothing but `stacks`, such as those for several numbers of KL modes, they are computed once.

    Returns
    -------
    ResampledImage

    Raises
    ------
    ParameterError
        A parameter outside what is described.
    InputError
        No exposure, or numbers or shapes of exposures, maps and times that differ.

    Notes
    -----
    Pixels with DO_NOT_USE or NON_SCIENCE, a SCI that is not finite, or a NaN in ERR or a VAR_* have
    weight 0; so have, with ``ivm``, those whose VAR_RNOISE or its inverse is negative, 0, infinite
    or denormal. Without VAR_RNOISE the ``ivm`` weight is `weight_without_read_noise`, with one
    warning. With ``err_from="var"`` and V(k, i) the square of the drizzled root of variance k of
    integration i, variance k is ``sum(u_i^2 V(k, i)) / sum(u_i)^2 / pixel_scale_ratio^2``, where u
    is 1 / V(read noise, i) for ``ivm`` and the exposure time for ``exptime``.

    Sums are in double precision where the jwst package's are in single; the results differ by about
    1e-7 of the value. With ``err_from="var"`` nothing else differs for finite input. Lanczos has
    negative weights: next to bad pixels and at the edge `wht` can come close to 0 or below, and
    `data` is nothing but noise there; where it is not above 0, `dq` has DO_NOT_USE.

    References
    ----------
    Fruchter and Hook 2002, PASP 114, 144; the weights of the variances are those of stcal 1.20.
    """
    times = _check(stacks, pixel_maps, exposure_times, weight_type, err_from)
    ratio = _check_ratio(pixel_scale_ratio)
    options: dict[str, Any] = {"kernel": kernel, "pixfrac": pixfrac, "pixel_scale_ratio": ratio}
    n_inputs = sum(len(stack) for stack in stacks)
    drizzle = Drizzle(output_shape, fillval=fillval, n_inputs=n_inputs, **options)
    science = Drizzle(output_shape, n_inputs=len(stacks), **options)
    if drizzle.pixfrac != float(pixfrac):
        log.warning("resample: kernel %s takes no pixfrac; %s counts as 1", kernel, pixfrac)
    noise = None if err_from == "var" else CombinedNoise(drizzle.output_shape, center)
    fixed = fixed_weights(stacks, times, weight_without_read_noise)
    _report(stacks, weight_type, err_from, weight_without_read_noise)
    geometries: dict[int, Any] = {} if known is None else known
    for k, (stack, pixel_map) in enumerate(zip(stacks, pixel_maps, strict=True)):
        name = id(pixel_map)
        xp = cuda.array_namespace(stack.data)
        if name not in geometries:
            geometries[name] = _geometry(drizzle, noise, pixel_map, xp)
        geometry, window = geometries[name]
        at_once = PLANES_AT_ONCE
        if xp is not np:
            at_once = max(1, GPU_PIXELS_AT_ONCE // (stack.shape[1] * stack.shape[2]))
        if noise is not None:
            noise.start(stack)
        for start in range(0, len(stack), at_once):
            part = stack.planes(slice(start, start + at_once))
            _add(drizzle, part, geometry, fixed[k], noise)
        in_field = ((stack.dq & np.uint32(NON_SCIENCE)) == 0).any(axis=0).astype(np.float32)
        science.add(in_field, geometry, in_field)
        if noise is not None:
            noise.finish(stack, pixel_map, geometry, window)
        if known is None and all(id(later) != name for later in pixel_maps[k + 1 :]):
            del geometries[name]
    in_field = science.reached()
    del science
    image = (
        _with_own_errors(drizzle.result(), ratio)
        if noise is None
        else _with_noise(drizzle.result(), noise)
    )
    return dataclasses.replace(image, dq=_flags(image, in_field))


def _geometry(
    drizzle: Drizzle, noise: CombinedNoise | None, pixel_map: Any, xp: Any
) -> tuple[Overlaps, Window | None]:
    """Return the overlaps of a pixel map, and those about the star, where errors are propagated."""
    geometry = drizzle.overlaps(pixel_map if xp is np else xp.asarray(pixel_map))
    return geometry, None if noise is None else noise.window_of(pixel_map, geometry)


def fixed_weights(
    stacks: Sequence[IntegrationStack], times: Sequence[float] | None, without_read_noise: float
) -> list[float | None]:
    """Return the weight of all pixels of each exposure; None where their read noise decides.

    Parameters
    ----------
    stacks : sequence of IntegrationStack
    times : sequence of float, s, or None
        Exposure times, where they are the weights.
    without_read_noise : float
        The weight of an exposure without VAR_RNOISE, as `weight_without_read_noise` of `resample`.
    """
    if times is not None:
        return list(times)
    return [without_read_noise if s.var_rnoise is None else None for s in stacks]


def plane_weights(stack: IntegrationStack, weight: float | None) -> Any:
    """Return the weights of the pixels of an exposure in the combined image.

    Parameters
    ----------
    stack : IntegrationStack
    weight : float or None
        From `fixed_weights`.

    Returns
    -------
    (n, ny, nx) float32
        0 where a pixel takes no part; see `resample`.
    """
    return pixel_weights(
        stack.data,
        stack.err,
        stack.dq,
        [getattr(stack, name) for name in VARIANCES],
        BAD,
        READ_NOISE if weight is None else None,
        1.0 if weight is None else weight,
    )


def _add(
    drizzle: Drizzle,
    stack: IntegrationStack,
    geometry: Overlaps,
    weight: float | None,
    noise: CombinedNoise | None,
) -> None:
    """Add planes of one exposure; `weight` is None for weights from the read noise."""
    weights = plane_weights(stack, weight)
    if noise is not None:
        drizzle.add(stack.data, geometry, weights)
        noise.add(stack, weights)
        return
    variances = [getattr(stack, name) for name in VARIANCES]
    weigh_variances = READ_NOISE if weight is None else np.full(len(stack), float(weight))
    drizzle.add(stack.data, geometry, weights, variances=variances, weigh_variances=weigh_variances)


def _flags(image: ResampledImage, in_field: np.ndarray) -> np.ndarray:
    """Return DQ of the combined image; `in_field` tells where science pixels fall."""
    good = (image.con != 0).any(axis=0) & (image.wht > 0)
    xp = cuda.array_namespace(image.wht)
    return xp.where(good, np.uint32(0), xp.where(in_field, np.uint32(DO_NOT_USE), BAD))


def _with_noise(image: DrizzledImage, noise: CombinedNoise) -> ResampledImage:
    """Return the image with its propagated errors; where none are known, with its own scatter."""
    xp, planes = cuda.array_namespace(image.data), noise.result(image.data)
    err, unknown = planes.err, xp.isfinite(image.data) & (image.weight > 0) & ~(planes.err > 0)
    if bool(unknown.any()):
        scatter = xp.where(xp.isfinite(planes.err) | unknown, image.data, np.nan)[None]
        err = xp.where(unknown, xp.sqrt(scatter_variance(scatter)[0]), err)
        log.warning(
            "resample: no error is known of %.2g %% of the pixels of i2d (no ERR or VAR_* above "
            "0); their ERR is the scatter of the image around them",
            100.0 * float(unknown.mean()),
        )
    nothing = xp.full(image.data.shape, np.nan, dtype=np.float32)
    return ResampledImage(
        image.data,
        err,
        image.weight,
        image.context,
        **{name: planes.own.get(name, nothing) for name in VARIANCES},
        var_ref=planes.var_ref,
        var_speckle=planes.var_speckle,
        correlation=planes.correlation,
        speckle_correlation=planes.speckle_correlation,
    )


def _with_own_errors(image: DrizzledImage, ratio: float) -> ResampledImage:
    """Scale jwst's variances to the output pixel and derive ERR."""
    xp = cuda.array_namespace(image.data)
    scale = np.float32(1.0 / ratio**2)
    nothing = xp.full(image.data.shape, np.nan, dtype=np.float32)
    variances = [nothing.copy() if v is None else v * scale for v in image.variances]
    together = xp.stack(variances)
    known = ~xp.isnan(together).all(axis=0)
    err = xp.where(known, xp.sqrt(xp.nansum(together, axis=0)), np.float32(np.nan))
    return ResampledImage(
        image.data,
        err.astype(np.float32),
        image.weight,
        image.context,
        **dict(zip(VARIANCES, variances, strict=True)),
    )


def _has_variance(stack: IntegrationStack) -> bool:
    return any(getattr(stack, name) is not None for name in VARIANCES)


def _report(
    stacks: Sequence[IntegrationStack],
    weight_type: str,
    err_from: str,
    weight: float,
) -> None:
    without = [stack for stack in stacks if stack.var_rnoise is None]
    if weight_type == "ivm" and without:
        names = [stack.sources[0].exposure for stack in without if stack.sources]
        log.warning(
            "resample: %d of %d exposures without VAR_RNOISE; the weight of their pixels is %s%s",
            len(without),
            len(stacks),
            "1" if weight == 1 else "the median of the others'",
            f" ({', '.join(names)})" if len(without) < len(stacks) and names else "",
        )
    if not any(map(_has_variance, stacks)):
        if err_from == "var":
            log.warning("resample: no VAR_* in any exposure; ERR is NaN everywhere")
        else:
            log.info("resample: no VAR_* in any exposure; their ERR counts instead")


def _check(
    stacks: Sequence[IntegrationStack],
    pixel_maps: Sequence[np.ndarray],
    exposure_times: Sequence[float] | None,
    weight_type: str,
    err_from: str,
) -> list[float] | None:
    """Check all but what `Drizzle` checks; the exposure times where the weights need them."""
    if weight_type not in WEIGHT_TYPES:
        raise ParameterError(f"weight_type is {weight_type!r}, expected 'ivm' or 'exptime'")
    if err_from not in ERR_SOURCES:
        raise ParameterError(f"err_from is {err_from!r}, expected 'auto' or 'var'")
    if not stacks:
        raise InputError("resample got no exposure, expected at least one")
    if len(pixel_maps) != len(stacks):
        raise InputError(f"{len(pixel_maps)} pixel maps given for {len(stacks)} exposures")
    for k, (stack, pixel_map) in enumerate(zip(stacks, pixel_maps, strict=True)):
        if tuple(np.shape(pixel_map)) != (*stack.shape[1:], 2):
            raise InputError(
                f"pixel map {k} has shape {np.shape(pixel_map)}, "
                f"expected {(*stack.shape[1:], 2)} for its exposure"
            )
    if weight_type == "ivm":
        return None
    times = list(exposure_times or ())
    if len(times) != len(stacks):
        raise InputError(
            f"weight_type 'exptime' needs a time for each of {len(stacks)} exposures, "
            f"got {len(times)}"
        )
    for k, time in enumerate(times):
        if time is None or not np.isfinite(time) or time <= 0:
            raise InputError(
                f"exposure {k} has exposure time {time!r}, expected seconds above 0 for "
                f"weight_type 'exptime'"
            )
    return times


def _check_ratio(ratio: Any) -> float:
    value = 1.0 if ratio is None else ratio
    try:
        value = float(value)
    except (TypeError, ValueError):
        value = np.nan
    if not (np.isfinite(value) and value > 0):
        raise ParameterError(f"pixel_scale_ratio is {ratio!r}, expected a number above 0")
    return value
