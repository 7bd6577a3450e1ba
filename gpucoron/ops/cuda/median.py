"""Launches of kernels/median.cu, and the geometry that outliers.cu shares with it."""

from typing import NamedTuple

import numpy as np

from gpucoron.backend import cuda

_COLUMN_THREADS = 128
_COLUMNS = {"float": (4, 8, 16, 32, 64), "double": (4, 8, 16, 32)}
_TILES = {  # values that a thread holds in registers, and warps
    "float": ((32, 1), (64, 1), (64, 2), (64, 4), (64, 8)),
    "double": ((16, 1), (32, 1), (32, 2), (32, 4), (32, 8)),
}
_READ_AGAIN = (0, 8)
_SECTOR = 32  # bytes of neighbouring pixels that a tile is wide


class Geometry(NamedTuple):
    """Which instantiation serves a stack, and its launch."""

    kind: str  # "column" or "tile"
    template: str
    grid: tuple[int]
    block: tuple[int]


def geometry(n: int, n_pixels: int, dtype: np.dtype) -> Geometry:
    """Choose how the pixels of n integrations are shared among threads."""
    name = c_type(dtype)
    most = next((most for most in _COLUMNS[name] if n <= most), None)
    if most is not None:
        blocks = -(-n_pixels // _COLUMN_THREADS)
        return Geometry("column", f"{name}, {most}", (blocks,), (_COLUMN_THREADS,))
    size = dtype.itemsize  # a warp's lanes on one pixel, too: 32 / (_SECTOR / size)
    held, warps = next(((h, w) for h, w in _TILES[name] if n <= h * w * size), _READ_AGAIN)
    tiles = -(-n_pixels * size // _SECTOR)
    return Geometry("tile", f"{name}, {held}, {warps}", (tiles,), (32 * warps,))


def c_type(dtype: np.dtype) -> str:
    """Return what C++ calls a floating dtype."""
    return {"f": "float", "d": "double"}[dtype.char]


def column_median(images, good):
    """Median over axis 0, on the device; `good` is None where all pixels are."""
    cp = cuda.cupy()
    n, ny, nx = images.shape
    out = cp.empty((ny, nx), images.dtype)
    if out.size == 0:
        return out
    masked = good is not None
    if not masked:
        good = cp.empty(1, np.bool_)
    kind, template, grid, block = geometry(n, out.size, images.dtype)
    cuda.kernel("median", f"{kind}_median<{template}>")(
        grid,
        block,
        (
            cp.ascontiguousarray(images),
            cp.ascontiguousarray(good, np.bool_),
            np.int32(masked),
            np.int32(n),
            np.int64(out.size),
            out,
        ),
    )
    return out
