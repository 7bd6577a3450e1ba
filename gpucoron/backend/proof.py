"""The proof that this version's CUDA code gives the CPU's results on a real GPU."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

from gpucoron import __version__

#: Written by ``bench/bench_gpu.py prove``; tests/bench/test_proof.py sees that it fits the code.
FILE = Path(__file__).with_name("gpu_proof.json")


class Proof(NamedTuple):
    """A passed comparison of all products and all kernels."""

    card: str  # on which GPU
    capability: str  # its compute capability, as "9.0"
    date: str  # ISO 8601


@functools.cache
def proof() -> Proof | None:
    """Return the proof for this version, or None.

    Until there is one, ``--device auto`` takes the CPU.
    """
    try:
        stored = json.loads(FILE.read_text(encoding="utf-8"))
        if stored["version"] != __version__:
            return None
        return Proof(*(str(stored[name]) for name in Proof._fields))
    except (OSError, ValueError, KeyError, TypeError):
        return None
