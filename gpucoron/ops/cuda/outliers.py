"""Launches of kernels/outliers.cu."""

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import listed_size
from gpucoron.ops.cuda.kriging import finest_correlation
from gpucoron.ops.cuda.median import c_type, geometry

_ROUND_BLOCKS, _ROUND_WARPS = 1024, 4
_LIST_BLOCKS = 256


class _Suspects:
    """Candidates on the device: their list, and which pixels may speak for others."""

    def __init__(self, shape):
        size = listed_size(shape)
        cp = cuda.cupy()
        self.shape, self.size = shape, size
        self.witness = cp.empty(size, np.uint8)
        self.list = cp.empty(size, np.uint32)  # room for all: nobody waits to hear how many
        self.counts = cp.zeros(2, np.uint32)  # were good pixels met; candidates

    def test(self, images, base, err, snr, rounds):
        """Run all rounds; those after the last change return at once."""
        cp = cuda.cupy()
        n, ny, nx = self.shape
        kernel = cuda.kernel("outliers", f"sharp_round<{c_type(images.dtype)}>")
        changed = cp.zeros(rounds, np.int32)
        blocks = min(-(-self.size // _ROUND_WARPS), _ROUND_BLOCKS)
        for k in range(rounds):
            kernel(
                (blocks,),
                (32 * _ROUND_WARPS,),
                (
                    images,
                    base,
                    err,
                    finest_correlation(),
                    np.int32(ny),
                    np.int32(nx),
                    np.float64(snr),
                    np.int32(k),
                    self.list,
                    self.counts,
                    self.witness,
                    changed,
                ),
            )


def sharp_outliers(difference, err, candidates, usable, snr, rounds):
    """Which candidates stay so."""
    cp = cuda.cupy()
    difference, err, candidates, usable = map(
        cp.ascontiguousarray, (difference, err, candidates, usable)
    )
    out = candidates.copy()
    if not out.size:
        return out
    suspects = _Suspects(out.shape)
    name = c_type(difference.dtype)
    cuda.kernel("outliers", f"list_candidates<{name}>")(
        (-(-out.size // 256),),
        (256,),
        (
            difference,
            candidates,
            usable,
            np.int64(out.size),
            suspects.witness,
            suspects.list,
            suspects.counts,
        ),
    )
    base = cp.zeros(out.shape[1:], difference.dtype)
    suspects.test(difference, base, err, snr, rounds)
    cuda.kernel("outliers", "name_guilty")(
        (_LIST_BLOCKS,),
        (256,),
        (suspects.list, suspects.counts, suspects.witness, np.int32(rounds), out),
    )
    return out


def flag_outliers(data, err, dq, variances, snr, bits, enters, neighbours, rounds):
    """Flag an exposure; `bits` keep a pixel out of the median where `enters` is "good"."""
    cp = cuda.cupy()
    data, err, dq, *variances = map(cp.ascontiguousarray, (data, err, dq, *variances))
    shape, dtype = data.shape, data.dtype
    n, n_pixels = shape[0], shape[1] * shape[2]
    planes = [cp.empty_like(a) for a in (data, err, *variances)]
    dq_out, median = cp.empty_like(dq), cp.empty(shape[1:], dtype)
    flagged = cp.zeros(n, np.int32)
    if n_pixels == 0:
        return (*planes[:2], dq_out, planes[2:], median, flagged)
    suspects = _Suspects(shape if neighbours else (1,))
    missing = [cp.empty(1, dtype)] * (3 - len(variances))
    _, template, grid, block = geometry(n, n_pixels, dtype)
    if template.count(",") == 1:
        template += ", 0"
    kernel = cuda.kernel("outliers", f"detect<{template}>")
    for rest in range(2 if enters == "good" else 1):
        kernel(
            grid,
            block,
            (
                data,
                err,
                dq,
                *variances,
                *missing,
                np.int32(len(variances)),
                np.int32(n),
                np.int64(n_pixels),
                np.uint32(bits if enters == "good" else 0),
                np.uint32(enters == "none"),
                np.int32(rest),
                dtype.type(snr),
                np.int32(neighbours),
                median,
                planes[0],
                planes[1],
                dq_out,
                *planes[2:],
                *missing,
                suspects.witness,
                suspects.list,
                suspects.counts,
                flagged,
            ),
        )
    if neighbours:
        suspects.test(data, median, err, snr, rounds)
        cuda.kernel("outliers", f"strike<{c_type(dtype)}>")(
            (_LIST_BLOCKS,),
            (256,),
            (
                suspects.list,
                suspects.counts,
                suspects.witness,
                np.int32(rounds),
                np.int64(n_pixels),
                np.int32(len(variances)),
                *planes[:2],
                dq_out,
                *planes[2:],
                *missing,
                flagged,
            ),
        )
    return (*planes[:2], dq_out, planes[2:], median, flagged)
