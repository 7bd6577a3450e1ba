"""Kernels under the address and undefined-behaviour sanitizers: a memory checker for the CPU.

The address sanitizer must be loaded before Python is, so the work is done in a process of its own:
``python -m tests.helpers.cuda_on_host.sanitized module:function argument ...``
calls the function there.
"""

import importlib
import sys
from pathlib import Path

from tests.helpers.cuda_on_host import build
from tests.helpers.processes import python, run

ROOT = Path(__file__).parents[3]


def call(function, *args):
    """Call ``"module:function"`` with strings under the sanitizers; return their complaint."""
    variables = {
        "LD_PRELOAD": run(build.COMPILER, "-print-file-name=libasan.so").stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        **dict.fromkeys(("OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"),
    }
    words = ("-m", "tests.helpers.cuda_on_host.sanitized", function, *args)
    done = python(*words, cwd=ROOT, **variables)
    return "" if done.returncode == 0 else done.stderr or f"exit status {done.returncode}"


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    getattr(importlib.import_module(module), name)(*sys.argv[2:])
