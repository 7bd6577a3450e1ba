"""What of the science exposures will be in the combined image."""

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
    from gpucoron.steps.resample import ResampledImage

__all__ = ["check_filled", "report_outside"]

log = logging.getLogger("gpucoron")

_LOST = 0.01  # of an exposure's good pixels that may lie outside of the output image


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
