"""How long a GPU takes to start: what a process waits for before, and at, its first kernels.

As a program it does that in this process, and prints the seconds of each stage as JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def stages():
    """Yield (name, seconds) of each stage, in a process that has not seen CuPy yet."""
    start = time.perf_counter()

    def lap():
        nonlocal start
        now = time.perf_counter()
        seconds, start = now - start, now
        return seconds

    from gpucoron.backend import cuda
    from gpucoron.backend.device import find_gpus

    yield "gpucoron", lap()
    cp = cuda.cupy()
    yield "import cupy", lap()
    find_gpus()
    yield "find_gpus", lap()
    a = cp.ones((64, 64))
    yield "first array", lap()
    (a + a).sum().get()
    yield "add and sum", lap()
    spectrum = cp.fft.rfft2(a)
    yield "cuFFT", lap()
    cuda.cupyx("cupyx.scipy.fft").irfft2(spectrum, s=a.shape).get()
    yield "cuFFT back", lap()
    cp.matmul(a, a).get()
    yield "cuBLAS", lap()
    cp.linalg.eigh(cp.eye(8))[0].get()
    yield "cuSOLVER", lap()
    from gpucoron.ops.median import median

    median(cp.ones((5, 8, 8), "f4"), cp.ones((5, 8, 8), bool)).get()
    yield "a kernel of ours", lap()


def in_processes(repeats=1):
    """Seconds of each stage, with compiled kernels kept from before and with none."""
    out = {}
    for name in ("warm", "cold"):
        runs = []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as empty:
                environment = dict(
                    os.environ,
                    PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                )
                if name == "cold":
                    environment["CUPY_CACHE_DIR"] = empty
                begun = time.perf_counter()
                said = subprocess.run(
                    [sys.executable, __file__],
                    env=environment,
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
                runs.append(
                    {**json.loads(said.splitlines()[-1]), "process": time.perf_counter() - begun}
                )
        out[name] = min(runs, key=lambda run: run["process"])
    return out


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.stdout.write(json.dumps(dict(stages())) + "\n")
