"""Launches of kernels/outliers.cu."""

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import listed_size
from gpucoron.ops.cuda.kriging import finest_correlation
from gpucoron.ops.cuda.median import c_type, geometry
from gpucoron.ops.outlier_suspects import (
    FACTORS,
    suspected_outliers,
    usable_pixels,
)

_ROUND_BLOCKS, _ROUND_WARPS = 1024, 4
_LIST_BLOCKS = 256


class _Suspects:
    """Suspects on the device: their list, and what is known of every pixel."""

    def __init__(self, shape):
        size = listed_size(shape)
        cp = cuda.cupy()
        self.shape, self.size = shape, size
        self.state = cp.empty(size, np.uint8)
        self.list = cp.empty(size, np.uint32)  # room for all: nobody waits to hear how many
        self.counts = cp.zeros(2, np.uint32)  # were good pixels met; suspects

    def mark(self, usable, suspects):
        """Write down which pixels take part, and which are suspects."""
        cuda.kernel("outliers", "mark_suspects")(
            (-(-self.size // 256),), (256,), (usable, suspects, np.int64(self.size), self.state)
        )

    def test(self, data, err, snr, cutoff):
        """List the suspects and run all rounds; those after the last change return at once."""
        cp = cuda.cupy()
        n, ny, nx = self.shape
        cuda.kernel("outliers", "list_suspects")(
            (-(-self.size // 256),),
            (256,),
            (self.state, np.int64(self.size), *map(np.int32, self.shape), self.list, self.counts),
        )
        kernel = cuda.kernel("outliers", f"test_suspects<{c_type(data.dtype)}>")
        changed = cp.zeros(len(FACTORS), np.int32)
        blocks = min(-(-self.size // _ROUND_WARPS), _ROUND_BLOCKS)
        for k, factor in enumerate(FACTORS):
            kernel(
                (blocks,),
                (32 * _ROUND_WARPS,),
                (
                    data,
                    err,
                    finest_correlation(cutoff),
                    np.int32(n),
                    np.int32(ny),
                    np.int32(nx),
                    np.float64(factor * snr),
                    np.float64(FACTORS[-1] * snr),
                    np.int32(k),
                    np.int32(k > 1 and FACTORS[k - 1] == factor),
                    self.list,
                    self.counts,
                    self.state,
                    changed,
                ),
            )


def unpredicted_outliers(data, err, usable, suspects, snr, cutoff):
    """Which suspects, and pixels next to them, are outliers."""
    cp = cuda.cupy()
    data, err, usable, suspects = map(cp.ascontiguousarray, (data, err, usable, suspects))
    out = cp.zeros(data.shape, bool)
    if not out.size:
        return out
    found = _Suspects(out.shape)
    found.mark(usable, suspects)
    found.test(data, err, snr, cutoff)
    cuda.kernel("outliers", "write_outliers")(
        (_LIST_BLOCKS,),
        (256,),
        (found.list, found.counts, found.state, np.int32(len(FACTORS)), out),
    )
    return out


def flag_outliers(data, err, dq, variances, snr, bits, enters, neighbours, cutoff):
    """Flag an exposure; `bits` keep a pixel out of the median where `enters` is "good"."""
    cp = cuda.cupy()
    data, err, dq, *variances = map(cp.ascontiguousarray, (data, err, dq, *variances))
    planes = [cp.empty_like(a) for a in (data, err, *variances)]
    dq_out, median = cp.empty_like(dq), cp.empty(data.shape[1:], data.dtype)
    flagged = cp.zeros(len(data), np.int32)
    if median.size:
        suspects = _Suspects(data.shape if neighbours else (1,))
        stack, outputs = (data, err, dq, *variances), (median, planes, dq_out, flagged)
        _detect(stack, outputs, suspects, snr, bits, enters, neighbours)
        if neighbours:
            if len(data) <= 2:
                usable = usable_pixels(data, err, dq)
                suspects.mark(usable, suspected_outliers(data, err, median, usable, snr))
            suspects.test(data, err, snr, cutoff)
            _flag_listed(suspects, planes, dq_out, flagged)
    return (*planes[:2], dq_out, planes[2:], median, flagged)


def _detect(stack, outputs, suspects, snr, bits, enters, neighbours):
    """Launch the median and the threshold: outliers are flagged, or suspects marked."""
    data, err, dq, *variances = stack
    median, planes, dq_out, flagged = outputs
    dtype, n, n_pixels = data.dtype, len(data), median.size
    missing = _missing(variances, dtype)
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
                suspects.state,
                suspects.counts,
                flagged,
            ),
        )


def _flag_listed(suspects, planes, dq, flagged):
    """Flag the outliers of the list, and make them NaN."""
    dtype, n_variances = planes[0].dtype, len(planes) - 2
    cuda.kernel("outliers", f"flag_listed<{c_type(dtype)}>")(
        (_LIST_BLOCKS,),
        (256,),
        (
            suspects.list,
            suspects.counts,
            suspects.state,
            np.int32(len(FACTORS)),
            np.int64(planes[0][0].size),
            np.int32(n_variances),
            *planes[:2],
            dq,
            *planes[2:],
            *_missing(planes[2:], dtype),
            flagged,
        ),
    )


def _missing(variances, dtype):
    """Return arrays in place of variances that are not there: pointers must not be null."""
    return [cuda.cupy().empty(1, dtype)] * (3 - len(variances))
