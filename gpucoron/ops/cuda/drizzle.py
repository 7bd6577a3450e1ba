"""Launches of kernels/drizzle.cu: shares of a pixel map in lists by tiles, and sums over planes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpucoron.backend import cuda
from gpucoron.ops.drizzle_profiles import Profile

__all__ = ["TileShares", "add_planes", "sum_shares", "tile_shares"]

TILE = 16  # these three as in kernels/drizzle_planes.cuh
THREADS = TILE * TILE
ROOM = 2 * THREADS
_LANES = 32
_LIST_THREADS = 128
_MOST_VARIANCES = 3
MOST_AT_ONCE = 2**31  # input pixels of all planes of a launch: it counts them in 32 bits
_NO_TABLE = np.zeros(1)


class TileShares(NamedTuple):
    """Lists of shares in the order of tiles of the output; fields of `Overlaps`.

    Thread t of tile T, both counted along rows, looks after the output pixel in place t of the
    tile. That has ``counts[s]`` shares, s = 256 T + t; the e-th lies at ``pointers[s // 32] + 32 e
    + s % 32``. Row T of `needed` begins with the number of input pixels that fall on the tile, and
    lists them. Sources are counted along that list, or along the input where it has over ROOM.
    """

    pointers: Any
    sources: Any
    shares: Any
    counts: Any
    needed: Any


def tile_shares(
    pixel_map: Any,
    limits: np.ndarray,
    output_shape: tuple[int, int],
    kernel: str,
    pixfrac: float,
    drop: Profile | None,
) -> TileShares:
    """Compute the shares of a pixel map on the device; waits for it once, to learn their number."""
    cp = cuda.cupy()
    (in_ny, in_nx), (out_ny, out_nx) = pixel_map.shape[:2], output_shape
    if drop is None:
        drop = Profile(0, 0.5 * pixfrac, 1.0, 0.0, _NO_TABLE)
    given = (
        pixel_map,
        cp.asarray(limits),
        *map(np.int32, (in_ny, in_nx, out_ny, out_nx)),
        *map(np.float64, (drop.radius, drop.norm, drop.factor)),
        cp.asarray(drop.table),
        np.int32(drop.table.size),
    )
    name = kernel.rstrip("23").upper()
    grid = (-(-in_ny * in_nx // _LIST_THREADS),)
    tiles = -(-out_ny // TILE) * -(-out_nx // TILE)
    counts = cp.zeros(tiles * THREADS, np.int32)

    nothing = cp.empty(1, np.int64), counts, cp.empty(1, np.int32), cp.empty(1)
    cuda.kernel("drizzle", f"list_shares<{name}, false>")(
        grid, (_LIST_THREADS,), (*given, *nothing)
    )
    longest = counts.reshape(-1, _LANES).max(axis=1).astype(np.int64)
    ends = _LANES * cp.cumsum(longest)
    starts, size = ends - _LANES * longest, int(ends[-1])
    counts.fill(0)
    sources, shares = cp.empty(size, np.int32), cp.empty(size)
    needed = cp.empty((tiles, 1 + ROOM), np.int32)
    if size:
        cuda.kernel("drizzle", f"list_shares<{name}, true>")(
            grid, (_LIST_THREADS,), (*given, starts, counts, sources, shares)
        )
        cuda.kernel("drizzle", "order_shares")(
            (tiles,), (THREADS,), (starts, counts, np.int32(in_nx), sources, shares, needed)
        )
    return TileShares(starts, sources, shares, counts, needed)


def add_planes(
    geometry: Any,
    images: Any,
    weights: Any,
    variances: list,
    index: int,
    per_plane: np.ndarray,
    scale: float,
    first: int,
    sums: tuple,
) -> None:
    """Add planes (n, ny, nx) to running sums on the device; `weights` may be a broadcast array.

    `variances` has an entry for each of the sums, None where there is none; number `index` of them
    weighs, or, where that is negative, `per_plane` does. `first` counts the planes so far; `sums`
    are those of weight, image, variances' weights, variances, and the context.
    """
    if geometry.shares.size == 0:
        return
    cp = cuda.cupy()
    one_plane = weights.strides[0] == 0
    weights = cp.ascontiguousarray(weights[:1] if one_plane else weights)
    present = [k for k, variance in enumerate(variances) if variance is not None]
    present.sort(key=lambda k: k != index)  # the one that weighs comes first
    unused = [0] * (_MOST_VARIANCES - len(present))
    pixels = images.shape[1] * images.shape[2]
    launch = cuda.kernel("drizzle", f"add_planes<{len(present)}>")
    at_once = max(1, MOST_AT_ONCE // pixels)
    for start in range(0, images.shape[0], at_once):
        part = slice(start, start + at_once)
        planes = [cp.ascontiguousarray(variances[k][part]) for k in present]
        launch(
            (geometry.needed.shape[0],),
            (THREADS,),
            (
                geometry.pointers,
                geometry.counts,
                geometry.sources,
                geometry.shares,
                geometry.needed,
                images[part],
                weights if one_plane else weights[part],
                *planes,
                *(images for _ in unused),
                np.uint32(pixels),
                np.uint32(0 if one_plane else pixels),
                np.int32(images[part].shape[0]),
                cp.asarray(per_plane[part]),
                np.float64(scale),
                np.int32(index >= 0),
                np.int32(first + start),
                *map(np.int32, geometry.output_shape),
                *map(np.int32, present + unused),
                *sums,
            ),
        )


def sum_shares(geometry: Any, planes: Any, squared: bool) -> Any:
    """Sum planes (n, ny, nx) float64 over overlaps, with their shares or the squares of these."""
    cp = cuda.cupy()
    out = cp.zeros((len(planes), *geometry.output_shape))
    if geometry.shares.size == 0:
        return out
    cuda.kernel("drizzle", "sum_shares")(
        (geometry.needed.shape[0],),
        (THREADS,),
        (
            geometry.pointers,
            geometry.counts,
            geometry.sources,
            geometry.shares,
            geometry.needed,
            planes,
            np.int64(planes[0].size),
            np.int32(len(planes)),
            np.int32(squared),
            *map(np.int32, geometry.output_shape),
            out,
        ),
    )
    return out
