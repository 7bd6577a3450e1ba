"""Run the cases of one .cu file on the emulated GPU; see kernel_cases.py."""

import os
import re
import signal
import sys
import time

import numpy as np

from gpucoron.backend import cuda
from tests.helpers import device_fixture
from tests.helpers.cuda_on_host import build
from tests.helpers.kernel_cases import CASES

NOTICED, UNNOTICED, UNREACHED = 0, 1, 2
ORDERS = [("forward", 0), ("backward", 0), *(("shuffled", seed) for seed in range(4))]
_LINE = re.compile(r'#line (\d+) "(.+)"')
_BARRIER = re.compile(r"\b__sync(threads|threads_\w+|warp)\s*\(")


def each_case(file, flags=None, order="forward", seed=0, without=("", 0)):
    """Run the cases of a file one after another; yield the emulation and what each returns."""
    with device_fixture.emulated(order, seed=seed, flags=flags) as device:
        device.emulation.without = without
        for function in CASES[file]:
            yield device.emulation, device.get(function(device))


def sanitized(file):
    """For a process with the sanitizers."""
    for _ in each_case(file, build.SANITIZED):
        pass


def barriers(file):
    """List (file, line) of every barrier in a source with its includes.

    Not those with a comment ``// untested: why``: one that lanes could not pass out of order here,
    but that their memory needs on a GPU.
    """
    found, name, number = [], "", 0
    for line in cuda.read_kernels(file).source.splitlines():
        if marker := _LINE.match(line):
            number, name = int(marker[1]), marker[2]
            continue
        code, _, comment = line.partition("//")
        if _BARRIER.search(code) and "untested: " not in comment:
            found.append((name, number))
        number += 1
    return found


def unnoticed(file):
    """List the barriers without which every result is the same, in every order tried.

    Each trial has a process of its own: without a barrier a kernel may do anything.
    """
    left = barriers(file)
    for order, seed in ORDERS:
        if not left:
            break
        start = time.perf_counter()
        right = [result for _, result in each_case(file, build.PLAIN, order, seed)]
        limit = 1 + 3 * (time.perf_counter() - start)
        tried = {barrier: _without(file, barrier, order, seed, right, limit) for barrier in left}
        left = [barrier for barrier, status in tried.items() if status == UNNOTICED]
    return left


def _without(file, barrier, order, seed, right, limit):
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_REAL, limit)
        status = UNREACHED
        try:
            cases = each_case(file, build.PLAIN, order, seed, barrier)
            for (emulation, got), wanted in zip(cases, right, strict=True):
                if not _equal(got, wanted):
                    os._exit(NOTICED)
                if emulation.left_out:
                    status = UNNOTICED
        except Exception:  # a barrier that others wait at, an index from shared memory
            status = NOTICED
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else NOTICED


def _equal(got, right):
    if isinstance(right, (list, tuple)):
        return all(map(_equal, got, right))
    if isinstance(right, dict):
        return all(_equal(got[key], right[key]) for key in right)
    return np.array_equal(got, right, equal_nan=np.asarray(right).dtype.kind in "fc")


if __name__ == "__main__":
    for name, line in unnoticed(sys.argv[1]):
        print(f"{name}:{line}")
