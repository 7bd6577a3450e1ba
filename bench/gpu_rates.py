"""What the device gives at best: copying, float64 products, transfers, launches."""

import statistics

import numpy as np
from gpu_timing import elapsed, measure, record, synchronize

from gpucoron.backend import cuda

MB = 2**20


def rates(tiny=False):
    """Measure them all, GB/s (1e9) and TFLOP/s; 0 where the device has no clock."""
    cp = cuda.cupy()
    size, n, host = (MB, 64, MB) if tiny else (1024 * MB, 4096, 256 * MB)
    copy = copying(size)
    matrix = cp.asarray(np.random.default_rng(0).normal(size=(n, n)))
    product = measure(lambda: cp.matmul(matrix, matrix), [()])
    out = {
        "copy_GB_s": per(2 * size, copy["ms"]),
        "copy": copy,
        "float64_product_TFLOP_s": per(2 * n**3, product["ms"]) / 1e3,
        "product": product,
        "empty_events_us": 1e3 * gap(),
    }
    values, pinned = np.ones(host // 8), pinned_ones(host // 8)
    for name, array in (("pageable", values), ("pinned", pinned)):
        there = cp.empty(host // 8)
        up = measure(lambda array=array, there=there: there.set(array), [()], most=8)
        down = measure(lambda array=array, there=there: there.get(out=array), [()], most=8)
        out[f"upload_{name}_GB_s"] = per(host, up["ms"])
        out[f"download_{name}_GB_s"] = per(host, down["ms"])
    return out


def copying(size):
    """Copy an array to another one."""
    cp = cuda.cupy()
    a, b = cp.asarray(np.random.default_rng(0).normal(size=size // 8)), cp.empty(size // 8)
    return measure(lambda: cp.copyto(b, a), [()])


def per(amount, ms):
    """1e9 of something a second; 0 where no time was measured."""
    return amount / ms / 1e6 if ms > 0 else 0.0


def pinned_ones(n):
    import cupyx

    array = cupyx.empty_pinned(n, np.float64)
    array[:] = 1
    return array


def gap():
    """Milliseconds between two events with nothing between them: part of every time below."""
    pairs = [(record(), record()) for _ in range(50)]
    synchronize()
    return statistics.median(elapsed(*pair) for pair in pairs)
