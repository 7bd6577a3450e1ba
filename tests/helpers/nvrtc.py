"""NVRTC, the compiler that CuPy uses, through CuPy and without a driver."""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
from pathlib import Path

#: What CuPy 14 appends to the options of a RawModule.
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")

_REPORT = re.compile(
    r"Compiling entry function '(\w+)' for '\w+'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers",
    re.S,
)
_ENTRY = re.compile(r"\.entry (\w+)\(.*?\)\s*((?:\.\w+ [\d, ]+\s*)*)\{", re.S)
_MOST_THREADS = re.compile(r"\.maxntid ([\d, ]+)")
_CACHE = Path(__file__).parents[2] / "build" / "nvrtc"


class NvrtcError(Exception):
    """What the compiler says."""


@functools.cache
def find() -> bool:
    """Tell whether CuPy and the library are there."""
    try:
        return bool(_nvrtc().getVersion())
    except Exception:  # CuPy's, for whatever is missing
        return False


def _nvrtc():
    from cupy_backends.cuda.libs import nvrtc  # not from cupy, which may be an emulated one

    return nvrtc


def compile_kernels(source, arch, names=(), options=("-std=c++17",)) -> dict:
    """Compile as CuPy would for a compute capability such as 90; tell what each kernel uses.

    `names` are name expressions; `options` come before CuPy's own. Returns ``"log"``: the
    compiler's, without ptxas's; ``"kernels"``: name expression -> dict of registers, threads (the
    launch bound; 1024 without), and bytes of stack and spills. What compiled once is
    remembered by the hash of all that matters, in ``build/nvrtc``.
    """
    options = [*options, *CUPY_OPTIONS, f"-arch=sm_{arch}", "--ptxas-options=-v"]
    key = "\0".join([version(), Path(__file__).read_text(), *options, *names, source])
    kept = _CACHE / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    result = _compile(source, names, options)
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(result))
    partial.replace(kept)
    return result


def version() -> str:
    """Return NVRTC's, as "13.0"."""
    return ".".join(map(str, _nvrtc().getVersion()))


def _compile(source, names, options):
    with _program(source, names, options) as (program, log):
        used = _resources(log, _nvrtc().getPTX(program).decode())
        said = [line for line in log.splitlines() if not line.startswith(("ptxas info", "    "))]
        lowered = {name: _nvrtc().getLoweredName(program, name) for name in names}
        return {"log": "\n".join(said), "kernels": {name: used[lowered[name]] for name in names}}


@contextlib.contextmanager
def _program(source, names, options):
    library = _nvrtc()
    program = library.createProgram(source, "kernels.cu", (), ())
    try:
        for name in names:
            library.addNameExpression(program, name)
        try:
            library.compileProgram(program, options)
        except library.NVRTCError as error:
            raise NvrtcError(f"{error}\n{library.getProgramLog(program)}") from None
        yield program, library.getProgramLog(program).rstrip("\0")
    finally:
        library.destroyProgram(program)


def _resources(log, ptx):
    bounds = {name: _MOST_THREADS.search(rest) for name, rest in _ENTRY.findall(ptx)}
    found = {}
    for name, stack, stores, loads, registers in _REPORT.findall(log):
        bound = bounds[name]
        found[name] = {
            "registers": int(registers),
            "stack": int(stack),
            "spills": int(stores) + int(loads),
            "threads": math.prod(map(int, bound[1].split(","))) if bound else 1024,
        }
    return found
