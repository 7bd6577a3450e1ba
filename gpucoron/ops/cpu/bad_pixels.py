"""Box medians for the CPU, compiled by numba."""

import numpy as np
from numba import njit

from gpucoron.backend.parallel import over_rows
from gpucoron.ops.cpu.median import middle


def box_medians(image, usable, y, x, half):
    """Median of the usable pixels round each of the given ones; the box doubles while empty.

    In double for any type: rounded, the mean of two float32 is the same. It compiles once.
    """
    out = np.empty(y.size)
    over_rows(
        _box_medians,
        y.size,
        np.ascontiguousarray(image, dtype=np.float64),
        np.ascontiguousarray(usable),
        np.ascontiguousarray(y),
        np.ascontiguousarray(x),
        half,
        out,
    )
    return out.astype(image.dtype)


@njit(cache=True, nogil=True)
def _box_medians(first, stop, image, usable, y, x, half, out):
    ny, nx = image.shape
    for i in range(first, stop):
        reach = max(half, 1)
        found = False
        while not found:
            y0, y1 = max(0, y[i] - reach), min(ny, y[i] + reach + 1)
            x0, x1 = max(0, x[i] - reach), min(nx, x[i] + reach + 1)
            buffer = np.empty((y1 - y0) * (x1 - x0))
            count = np.int64(0)  # a literal would compile `middle` once more
            for v in range(y0, y1):
                for u in range(x0, x1):
                    if usable[v, u]:
                        buffer[count] = image[v, u]
                        count += 1
            if count > 0:
                out[i] = middle(buffer, count)
                found = True
            elif reach > ny + nx:
                out[i] = np.nan
                found = True
            reach *= 2


@njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _window(centre, half, size):
    """Where Python's slice [centre - half : centre + half + 1] starts and stops."""
    start = centre - half
    if start < 0:
        start = max(0, start + size)
    return start, min(size, centre + half + 1)


def raster_fill(images, bad, flagged, half):
    """Replace bad pixels in place, row by row, each from the array as it then stands."""
    over_rows(_raster_fill, len(images), images, bad, flagged, half)


@njit(cache=True, nogil=True)
def _raster_fill(first, stop, images, bad, flagged, half):
    _, ny, nx = images.shape
    for k in range(first, stop):
        buffer = np.empty((2 * half + 1) ** 2, images.dtype)
        for y in range(ny):
            y0, y1 = _window(y, half, ny)
            for x in range(nx):
                if not bad[k, y, x]:
                    continue
                x0, x1 = _window(x, half, nx)
                count = np.int64(0)  # a literal would compile `middle` once more
                for v in range(y0, y1):
                    for u in range(x0, x1):
                        if np.isfinite(images[k, v, u]) and not flagged[k, v, u]:
                            buffer[count] = images[k, v, u]
                            count += 1
                if count > 0:
                    images[k, y, x] = middle(buffer, count)
                else:
                    images[k, y, x] = 0
