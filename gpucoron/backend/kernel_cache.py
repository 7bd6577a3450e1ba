"""Record of the kernels that CuPy has compiled for each GPU."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger("gpucoron")

_logged: list[bool] = []


def cache_folder() -> Path:
    """Return CuPy's cache folder."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache"))


def is_cached(cp: Any, source: str, options: tuple[str, ...], name: str, device: int) -> bool:
    """Return whether a kernel is compiled for a device by this compiler and CuPy."""
    mark = _mark(cp, source, options, name, device)
    return mark is not None and mark.exists()


def mark_cached(cp: Any, source: str, options: tuple[str, ...], name: str, device: int) -> None:
    """Record that a kernel is compiled; do nothing if the record cannot be written."""
    mark = _mark(cp, source, options, name, device)
    if mark is not None:
        with suppress(OSError):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def log_compiling(cp: Any, device: int) -> None:
    """Log, once per process, that kernels are compiled."""
    if _compiler(cp, device) is not None and not _logged:
        _logged.append(True)
        log.info("compiling CUDA kernels (once; kept in %s)", cache_folder())


def count_cached(
    cp: Any, kernels: list[tuple[str, str]], options: tuple[str, ...], device: int
) -> int:
    """Count how many of some (source, name) are compiled for a device."""
    return sum(is_cached(cp, source, options, name, device) for source, name in kernels)


def _mark(cp, source, options, name, device) -> Path | None:
    compiler = _compiler(cp, device)
    if compiler is None:
        return None
    words = "\0".join([*compiler, *options, name, source])
    return cache_folder() / "gpucoron" / hashlib.sha256(words.encode()).hexdigest()[:32]


@functools.cache
def _compiler(cp, device) -> tuple[str, ...] | None:
    """Versions on which compiled code depends; None if they are not known."""
    try:
        major, minor = cp.cuda.nvrtc.getVersion()
        facts = cp.cuda.runtime.getDeviceProperties(device)
        return (str(cp.__version__), f"NVRTC {major}.{minor}", f"{facts['major']}.{facts['minor']}")
    except Exception:  # no NVRTC, or no such device: whoever launches says so
        return None
