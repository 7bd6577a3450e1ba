"""Device times: events round a call, and round every launch of our kernels inside it."""

import contextlib
import statistics
import time
from unittest import mock

from gpucoron.backend import cuda

_IDLE = """
extern "C" __global__ void idle(long long clocks) {
#ifdef __CUDA_ARCH__
    for (long long start = clock64(); clock64() - start < clocks;) {}
#endif
}
"""
CLOCKS = 2e9  # a second, about: the idle kernel need not be exact
LONGEST_IDLE = 0.3  # s
MOST_LAUNCHES = 250  # waiting in a stream, of the 1,000 or so that it takes


def record():
    """An event on the current stream."""
    event = cuda.cupy().cuda.Event()
    event.record()
    return event


def elapsed(start, stop):
    """Milliseconds between two events that are done."""
    return cuda.cupy().cuda.get_elapsed_time(start, stop)


def synchronize():
    cuda.cupy().cuda.runtime.deviceSynchronize()


def idle(seconds):
    """Keep the device busy, so that the host gets ahead and what follows runs without gaps."""
    import numpy as np

    kernel = cuda.cupy().RawKernel(_IDLE, "idle")
    kernel((1,), (1,), (np.int64(CLOCKS * min(seconds, LONGEST_IDLE)),))


@contextlib.contextmanager
def traced():
    """Record events round every launch of `cuda.Kernel`; gives a list of (label, start, stop)."""
    plain, launches = cuda.Kernel.__call__, []

    def launch(self, *args, **kwargs):
        start = record()
        plain(self, *args, **kwargs)
        launches.append((self._label, start, record()))

    with mock.patch.object(cuda.Kernel, "__call__", launch):
        yield launches


def totals(launches):
    """Launches and milliseconds of each kernel, longest first."""
    out = {}
    for label, start, stop in launches:
        row = out.setdefault(label, {"launches": 0, "ms": 0.0})
        row["launches"] += 1
        row["ms"] += elapsed(start, stop)
    return dict(sorted(out.items(), key=lambda item: -item[1]["ms"]))


def measure(call, sets, budget_s=0.4, most=50):
    """Time ``call(*arrays)`` on one set of inputs after another.

    Returns
    -------
    dict
        Milliseconds: `ms` and `min_ms` of the whole call, `kernels` of each kernel of ours in it
        (medians of one call's sum), `host_ms` until the call returns.
    """
    with traced() as launches:
        call(*sets[0])  # compiles, allocates, loads libraries
    synchronize()
    start = time.perf_counter()
    call(*sets[-1])
    host = time.perf_counter() - start
    synchronize()
    whole = time.perf_counter() - start
    repeats = max(5 if whole < budget_s else 2, min(most, int(budget_s / max(whole, 1e-6))))
    repeats = max(2, min(repeats, MOST_LAUNCHES // max(1, len(launches))))
    runs = []
    idle(1.3 * repeats * host + 1e-3)
    for k in range(repeats):
        with traced() as launches:
            start = record()
            call(*sets[k % len(sets)])
            runs.append((start, record(), launches))
    synchronize()
    whole = sorted(elapsed(start, stop) for start, stop, _ in runs)
    each = [totals(launches) for *_, launches in runs]
    kernels = {
        label: {
            "launches": row["launches"],
            "ms": statistics.median(e[label]["ms"] for e in each if label in e),
        }
        for label, row in each[0].items()
    }
    return {
        "ms": statistics.median(whole),
        "min_ms": whole[0],
        "max_ms": whole[-1],
        "host_ms": 1e3 * host,
        "repeats": repeats,
        "sets": len(sets),
        "kernels": kernels,
    }
