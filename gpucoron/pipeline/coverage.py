"""What of the science exposures will be in the combined image, and whether their stars coincide."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.backend import cuda
from gpucoron.errors import InputError
from gpucoron.ops.dq import DO_NOT_USE, NON_SCIENCE

if TYPE_CHECKING:
    from gpucoron.core.stack import IntegrationStack
    from gpucoron.io.exposures import Exposure
    from gpucoron.pipeline.product_context import ProductContext
    from gpucoron.steps.resample import ResampledImage

__all__ = ["check_filled", "compare_stars", "report_outside"]

log = logging.getLogger("gpucoron")

_LOST = 0.01  # of an exposure's good pixels that may lie outside of the output image


def compare_stars(product: ProductContext) -> None:
    """Warn where the stars of the exposures will not land on each other, by GWCS and fits."""
    from gpucoron.io.exposure_wcs import compare_stars as compare

    science, fits = product.inputs.science, product.result.fits
    if not all(e.root in fits for e in science):
        return  # not aligned, or the fits of an earlier run were not kept
    shifts = [_mean_shifts(fits[e.root]) for e in science]
    exposures, moved = [], []
    for exposure, shift in zip(science, shifts, strict=True):
        both = shifts[0].keys() & shift.keys()
        if both:
            away = np.array([np.subtract(shifts[0][j], shift[j]) for j in both])
            middle = np.median(away, axis=0)
            scatter = 1.4826 * float(np.median(np.hypot(*(away - middle).T)))
            exposures.append(exposure)
            moved.append((tuple(middle), scatter / np.sqrt(len(away))))
    if exposures and exposures[0] is science[0]:
        compare(exposures, moved)


def _mean_shifts(table: np.ndarray) -> dict[int, np.ndarray]:
    """Return x, y of the star in each reference minus that in the exposure, of fits that are good.

    References that did not converge for some integration are left out.
    """
    found = {}
    for plane in np.unique(table["ref_plane"]):
        rows = table[table["ref_plane"] == plane]
        if np.all(rows["status"] == 0):
            found[int(plane)] = np.array([rows["x"].mean(), rows["y"].mean()])
    return found


def report_outside(
    exposures: Sequence[Exposure],
    images: Sequence[IntegrationStack],
    maps: Sequence[Any],
    shape: tuple[int, int],
) -> None:
    """Warn where many good pixels of an exposure lie outside of the output image.

    `maps` are the pixel maps (ny, nx, 2), on the device of the images; `shape` is the output's.
    """
    bad = np.uint32(DO_NOT_USE | NON_SCIENCE)
    for exposure, stack, pixel_map in zip(exposures, images, maps, strict=True):
        xp = cuda.array_namespace(stack.data)
        good = (((stack.dq & bad) == 0) & xp.isfinite(stack.data)).any(axis=0)
        x, y = pixel_map[..., 0], pixel_map[..., 1]
        inside = (x > -0.5) & (x < shape[1] - 0.5) & (y > -0.5) & (y < shape[0] - 0.5)
        lost, total = int((good & ~inside).sum()), int(good.sum())
        if lost > _LOST * total:
            log.warning(
                "%s: %d of %d good pixels (%.1f %%) lie outside of the output image or of the "
                "bounding box of its WCS, so i2d is without them",
                exposure.path.name,
                lost,
                total,
                100 * lost / total,
            )


def check_filled(name: str, image: ResampledImage) -> None:
    """Raise InputError where no pixel contributes to the combined image of product `name`."""
    if not bool((image.con != 0).any()):
        raise InputError(
            f"{name}: i2d would be empty: no pixel of the science exposures lies in the output "
            "image with a weight above 0"
        )
