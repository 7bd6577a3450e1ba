"""NVRTC through ctypes: the compiler that CuPy uses, without CuPy and without a driver."""

import contextlib
import ctypes
import functools
import hashlib
import json
import math
import os
import re
import sysconfig
from pathlib import Path

#: What CuPy 14 appends to the options of a RawModule.
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")

_PLACES = ("nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12")
_REPORT = re.compile(
    r"Compiling entry function '(\w+)' for '\w+'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers([^\n]*)",
    re.S,
)
_SHARED = re.compile(r"(\d+) bytes smem")
_ENTRY = re.compile(r"\.entry (\w+)\(.*?\)\s*((?:\.\w+ [\d, ]+\s*)*)\{", re.S)
_MOST_THREADS = re.compile(r"\.maxntid ([\d, ]+)")
_CACHE = Path(__file__).parents[2] / "build" / "nvrtc"


class NvrtcError(Exception):
    """What the compiler says."""


@functools.cache
def find() -> Path | None:
    """Return the library of the wheel nvidia-cuda-nvrtc, if it is installed."""
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for place in _PLACES:
            if (Path(folder) / place).is_file():
                return Path(folder) / place
    return None


@functools.cache
def _library():
    path = find()
    for builtins in path.parent.glob("libnvrtc-builtins.so.*"):  # it does not look there by itself
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(path))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _check(status, log=""):
    if status:
        raise NvrtcError(f"{_library().nvrtcGetErrorString(status).decode()}\n{log}")


def _text(program, what) -> bytes:
    library, size = _library(), ctypes.c_size_t()
    _check(getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(library, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def compile_kernels(source, arch, names=(), options=("-std=c++17",)) -> dict:
    """Compile as CuPy would for a compute capability such as 90; tell what each kernel uses.

    `names` are name expressions; `options` come before CuPy's own. Returns ``"log"``: the
    compiler's, without ptxas's; ``"kernels"``: name expression -> dict of registers, threads (the
    launch bound; 1024 without), and bytes of stack, spills, shared. What compiled once is
    remembered by the hash of all that matters, in ``build/nvrtc``.
    """
    options = [*options, *CUPY_OPTIONS, f"-arch=sm_{arch}", "--ptxas-options=-v"]
    return _kept(_compile, source, names, options)


def ptx(source, arch, names=(), options=("-std=c++17",)) -> str:
    """Compile as CuPy would, for a virtual architecture; return the PTX of all kernels named.

    It is remembered as `compile_kernels` does.
    """
    return _kept(_ptx, source, names, [*options, *CUPY_OPTIONS, f"-arch=compute_{arch}"])


def _kept(make, source, names, options):
    key = "\0".join([version(), Path(__file__).read_text(), *options, *names, source])
    kept = _CACHE / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    result = make(source, names, options)
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(result))
    partial.replace(kept)
    return result


@functools.cache
def version() -> str:
    """Return NVRTC's, as "13.0"."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def _compile(source, names, options):
    with _program(source, names, options) as (program, log):
        used = _resources(log, _text(program, "PTX").decode())
        said = [line for line in log.splitlines() if not line.startswith(("ptxas info", "    "))]
        return {
            "log": "\n".join(said),
            "kernels": {name: used[_lowered(program, name)] for name in names},
        }


def _ptx(source, names, options):
    with _program(source, names, options) as (program, _):
        return _text(program, "PTX").rstrip(b"\0").decode()


@contextlib.contextmanager
def _program(source, names, options):
    library, program = _library(), ctypes.c_void_p()
    given = source.encode(), b"kernels.cu", 0, None, None
    _check(library.nvrtcCreateProgram(ctypes.byref(program), *given))
    try:
        for name in names:
            _check(library.nvrtcAddNameExpression(program, name.encode()))
        array = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        status = library.nvrtcCompileProgram(program, len(options), array)
        log = _text(program, "ProgramLog").rstrip(b"\0").decode()
        _check(status, log)
        yield program, log
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _lowered(program, name):
    result = ctypes.c_char_p()
    _check(_library().nvrtcGetLoweredName(program, name.encode(), ctypes.byref(result)))
    return result.value.decode()


def _resources(log, ptx):
    bounds = {name: _MOST_THREADS.search(rest) for name, rest in _ENTRY.findall(ptx)}
    found = {}
    for name, stack, stores, loads, registers, rest in _REPORT.findall(log):
        shared, bound = _SHARED.search(rest), bounds[name]
        found[name] = {
            "registers": int(registers),
            "stack": int(stack),
            "spills": int(stores) + int(loads),
            "shared": int(shared[1]) if shared else 0,
            "threads": math.prod(map(int, bound[1].split(","))) if bound else 1024,
        }
    return found
