"""Fill bad pixels as jwst does, in raster order: the preset's fill."""

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.backend.device import on_gpu
from gpucoron.ops.bad_pixels import check_images

__all__ = ["fill_bad_pixels_raster"]


def fill_bad_pixels_raster(images, bad, flagged, box=3, zero=None):
    """Fill bad pixels exactly as jwst's align_refs does (``preset="jwst"``).

    Parameters
    ----------
    images : (n, ny, nx) float32 or float64
        The integrations; never changed.
    bad : (n, ny, nx) bool
        Pixels to replace: flagged ones and NaNs.
    flagged : (n, ny, nx) bool
        Pixels whose DQ forbids their use as a neighbour. A NaN that no flag marks becomes usable
        once it is filled, because the array changes while it is scanned.
    box : int, pixels
        Side of the box.
    zero : (n, ny, nx) bool, optional
        Pixels set to 0 beforehand (MIRI, outside the field).

    Returns
    -------
    (n, ny, nx), dtype of `images`
        Row 0 and column 0 get 0 where bad, for the negative start of their box makes it empty; so
        does a pixel with no good neighbour.

    Raises
    ------
    InputError
        Arrays that do not fit each other.
    ParameterError
        A negative `box`.
    TypeError
        Host and device arrays are mixed.

    Notes
    -----
    Each pixel waits for those before it. So this runs on the host: arrays on a GPU are copied
    there, and the result back.
    """
    images, bad, flagged, zero = cuda.as_device_arrays(images, bad, flagged, zero)
    check_images(images, bad, box, zero, smallest=0)
    if on_gpu(images, bad, flagged, zero):
        on_host = (None if a is None else to_host(a) for a in (images, bad, flagged, zero))
        images, bad, flagged, zero = on_host
        return cuda.cupy().asarray(fill_bad_pixels_raster(images, bad, flagged, box, zero))
    from gpucoron.ops.cpu.bad_pixels import raster_fill

    out = np.array(images, copy=True)
    if zero is not None:
        out[zero] = 0
        bad = bad & ~zero
    raster_fill(out, np.ascontiguousarray(bad), np.ascontiguousarray(flagged), int(box) // 2)
    return out
