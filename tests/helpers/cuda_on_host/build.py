"""Kernels compiled for the CPU by g++, kept by the hash of everything that went in."""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path(__file__).parents[3] / "build" / "cuda_on_host"
COMPILER = shutil.which(os.environ.get("CXX", "g++")) if sys.platform == "linux" else None
NO_COMPILER = "no g++ on Linux to compile the kernels for the CPU"
KEPT_DAYS = 3

FLAGS = (
    "-std=c++20 -O2 -g1 -fPIC -fvisibility=hidden -fno-strict-aliasing -Wall -Werror "
    "-Wno-unknown-pragmas -Wno-unused-function -Wno-unused-variable "
    "-Wno-unused-but-set-variable -Wno-psabi"
).split()
PLAIN = ("-ffp-contract=off",)
SANITIZED = (
    *PLAIN,
    *"-fsanitize=address,undefined,float-cast-overflow -fno-sanitize=object-size".split(),
    *"-fno-sanitize-recover=all -fno-omit-frame-pointer -O0".split(),
    "-w",  # the other builds tell of warnings
)
#: A float32 kernel that computes in double without saying so.
NO_STRAY_DOUBLE = ("-Wdouble-promotion",)


class BuildError(Exception):
    """What g++ says."""


@functools.cache
def contracting() -> tuple[str, ...]:
    """Flags for a*b + c in one rounding, as nvcc does it; PLAIN where this CPU cannot."""
    has_fma = re.search(r"^flags\b.*\bfma\b", Path("/proc/cpuinfo").read_text(), re.M)
    return ("-mfma", "-ffp-contract=fast") if has_fma else PLAIN


def translation_unit(source, names):
    """The kernel's source between the shim and the table of what it exports.

    An unnamed namespace makes everything local: unused code costs nothing, and shared arrays are
    plain statics that the address sanitizer surrounds with red zones.
    """
    exports = (f"CUDA_ON_HOST_EXPORT({k}, {name})" for k, name in enumerate(names))
    return "\n".join(
        ['#include "cuda_on_host.h"', "namespace {", source, "}", '#line 1 "exports"', *exports, ""]
    )


def library(stem, source, names, flags=PLAIN) -> ctypes.CDLL:
    """Compile a source with its instantiations, and load it."""
    scheduler = _compiled("scheduler", (HERE / "scheduler.cpp").read_text(), ("-c",), ".o")
    text = translation_unit(source, names)
    return ctypes.CDLL(str(_compiled(stem, text, ("-shared", *flags), ".so", scheduler)))


def check(stem, source, names, flags) -> None:
    """Only look for warnings."""
    _run([*_command(flags), "-fsyntax-only", "-"], translation_unit(source, names))


def _command(flags):
    return [COMPILER, *FLAGS, *flags, f"-I{HERE}", "-x", "c++"]


def _compiled(stem, text, flags, suffix, *objects):
    headers = "".join(path.read_text() for path in sorted(HERE.glob("*.h")))
    command = _command(flags)
    parts = (_version(), *command, *map(str, objects), headers, text)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    made = CACHE / f"{stem}-{key}{suffix}"
    if not made.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with open(made.with_suffix(".lock"), "w") as lock:  # one of several test processes compiles
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                partial = made.with_suffix(".partial")
                link = ["-x", "none", *map(str, objects)] if objects else []
                _run([*command, "-", *link, "-o", str(partial)], text)
                partial.replace(made)
                _forget_old()
    os.utime(made)
    return made


def _forget_old():
    for path in CACHE.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if time.time() - path.stat().st_mtime > KEPT_DAYS * 86400:
                path.unlink()


def _run(command, text):
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(done.stderr)


@functools.cache
def _version():
    return subprocess.run([COMPILER, "--version"], capture_output=True, text=True).stdout
