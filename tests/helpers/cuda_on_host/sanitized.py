"""Kernels under the address and undefined-behaviour sanitizers: a memory checker for the CPU.

The address sanitizer must be loaded before Python is, so the work is done in a process of its own:
``python -m tests.helpers.cuda_on_host.sanitized module:function argument ...``
calls the function there.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.cuda_on_host import build

ROOT = Path(__file__).parents[3]


def call(function, *args, timeout=300):
    """Call ``"module:function"`` with strings under the sanitizers; return what the process said.

    Returns
    -------
    str
        Empty where all went well, else the report of a sanitizer or a traceback.
    """
    found = subprocess.run(
        [build.COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    environment = {
        **os.environ,
        "LD_PRELOAD": found.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "OPENBLAS_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.helpers.cuda_on_host.sanitized", function, *args]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, timeout=timeout, capture_output=True, text=True
    )
    return "" if done.returncode == 0 else done.stderr or f"exit status {done.returncode}"


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    getattr(importlib.import_module(module), name)(*sys.argv[2:])
