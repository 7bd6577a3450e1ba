"""CUDA through CuPy: kernels from ``kernels/*.cu``, arrays, errors."""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple

from gpucoron.backend import kernel_cache
from gpucoron.backend.device import import_cupy, lives_on_gpu, on_gpu
from gpucoron.errors import DeviceError, DeviceMemoryError, InputError

OPTIONS = ("-std=c++17",)

_CUPY = ("cupy", "cupy_backends", "cupyx", "cuda")  # and cuda.pathfinder, which finds libraries
_PLAIN_SHARED = 48 * 1024  # a block gets more only after it was asked for
_INCLUDE = re.compile(r'\s*#\s*include\s+"([\w./]+)"\s*')
_INSTANTIATE = re.compile(r"//\s*instantiate:\s*(.+?)\s*")
_LIBRARY = re.compile(r"\blib\w+\.so\b|\.dll\b")
_MEMORY = re.compile(r"OutOfMemory|out of memory|MemoryAllocation|OUT_OF_MEMORY|ALLOC_FAILED")


def cupy() -> Any:
    """Return the CuPy module, imported at the first call; raise DeviceError if it is missing."""
    try:
        return import_cupy()
    except ImportError as problem:
        missing = problem.name == "cupy"
        what = "is not installed" if missing else f"does not load ({_one_line(problem)})"
        raise DeviceError(
            f"CuPy {what}; pip install 'gpucoron[cuda13]' or 'gpucoron[cuda12]'"
        ) from problem


def cupyx(name: str = "cupyx") -> Any:
    """Return the package cupyx, or a module of it: ``cupyx("cupyx.scipy.fft")``."""
    cupy()
    return importlib.import_module(name)


def array_namespace(*arrays) -> Any:
    """Return the array namespace of the arrays, NumPy or CuPy; None is ignored.

    Raises
    ------
    TypeError
        Host and device arrays are mixed.
    """
    if on_gpu(*arrays):
        return cupy()
    import numpy

    return numpy


def as_device_arrays(*arrays) -> tuple:
    """Convert arrays on a GPU to CuPy arrays, without copies; return others unchanged.

    Arrays on a GPU are those with ``__cuda_array_interface__`` or a DLPack on a CUDA device.

    Raises
    ------
    InputError
        A device array lies on another device than the current one.
    """
    return tuple(_as_cupy(a) if lives_on_gpu(a) else a for a in arrays)


def _as_cupy(array):
    cp = cupy()
    if not isinstance(array, cp.ndarray):
        named = hasattr(array, "__cuda_array_interface__")
        array = cp.asarray(array) if named else cp.from_dlpack(array)
    current = cp.cuda.runtime.getDevice()
    if array.device.id != current:
        raise InputError(
            f"an array lies on device {array.device.id}, but the current device is {current}; "
            f"work inside `with cupy.cuda.Device({array.device.id})`"
        )
    return array


@contextlib.contextmanager
def errors(where: str):
    """Convert CUDA errors in a block to DeviceError: one line that begins with `where`.

    Raises
    ------
    DeviceMemoryError
        The device's memory did not suffice.
    DeviceError
        Any other failure of CuPy, a CUDA library, the driver or the compiler.
    """
    try:
        yield
    except Exception as problem:  # CuPy's classes cannot be named without importing it
        text = _one_line(problem)
        if isinstance(problem, ImportError) and _LIBRARY.search(text):  # loaded when first needed
            raise DeviceError(
                f"{where}: {text}; pip install 'gpucoron[cuda13-ctk]' brings CUDA's libraries"
            ) from problem
        from_cupy = type(problem).__module__.partition(".")[0] in _CUPY
        if not from_cupy and not text.startswith("CuPy failed to load"):
            raise
        if _MEMORY.search(f"{type(problem).__name__} {text}"):
            raise DeviceMemoryError(f"{where}: the GPU's memory is full ({text})") from problem
        raise DeviceError(f"{where}: {text}") from problem


def _one_line(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    wrong = [line for line in lines if ": error: " in line]  # in a compiler's log, after warnings
    return (wrong or lines or [type(problem).__name__])[0]


class Kernels(NamedTuple):
    """The source of one .cu file, ready for compilation."""

    source: str
    names: tuple[str, ...]


def kernel_files() -> list[Path]:
    """Return every .cu file, sorted by name."""
    return sorted(_folder().glob("*.cu"))


def all_kernels() -> list[tuple[str, str]]:
    """Return (file, name) of every kernel, as `kernel` takes them."""
    return [(path.stem, name) for path in kernel_files() for name in read_kernels(path.stem).names]


@functools.cache
def _folder() -> Path:
    installed = Path(__file__).parents[1] / "_kernels"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "kernels"


@functools.cache
def read_kernels(file: str) -> Kernels:
    """Read a .cu file (by its stem in ``kernels/``) with its local includes pasted in.

    The names are those of its lines ``// instantiate: name<...>``. CuPy caches compiled kernels
    under a hash of the source that it is given, which does not see included files: an edit of
    ``common.cuh`` would go unnoticed.
    """
    source = paste_includes(_folder() / f"{file}.cu")
    lines = (_INSTANTIATE.fullmatch(line.strip()) for line in source.splitlines())
    return Kernels(source, tuple(line[1] for line in lines if line))


def paste_includes(path: Path) -> str:
    """Return the text of `path` with every local ``#include`` replaced by the file, once each."""
    seen = set()

    def paste(path):
        seen.add(path)
        out = [f'#line 1 "{path.name}"']
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            include = _INCLUDE.fullmatch(line)
            if not include:
                out.append("" if line.strip() == "#pragma once" else line)
                continue
            included = (path.parent / include[1]).resolve()
            if included not in seen:
                out += paste(included)
            out.append(f'#line {number + 1} "{path.name}"')
        return out

    return "\n".join([*paste(path.resolve()), ""])


def kernel(file: str, name: str) -> Kernel:
    """Return a kernel; it is compiled at its first launch and cached on disk by CuPy.

    Parameters
    ----------
    file : str
        Stem of the file in ``kernels/``, e.g. ``"median"``.
    name : str
        One of the name expressions that the file declares, e.g. ``"column_median<float, 32>"``.
    """
    return _kernel(cupy(), file, name)


@functools.cache
def _kernel(cp, file, name):
    source, names = read_kernels(file)
    if name not in names:
        raise ValueError(f"{file}.cu does not declare {name!r}; it declares {', '.join(names)}")
    return Kernel(cp, f"{file}.cu, {name}", source, name)


class Kernel:
    """One instantiation of a kernel, compiled separately; made by `kernel`."""

    def __init__(self, cp, label: str, source: str, name: str):
        self._cp, self._label, self._source, self._name = cp, label, source, name
        self._module = cp.RawModule(code=source, options=OPTIONS, name_expressions=(name,))
        self._functions: dict[int, Any] = {}

    def __call__(self, grid: tuple, block: tuple, args: tuple, shared_mem: int = 0) -> None:
        """Launch on the current device and stream.

        Parameters
        ----------
        grid, block : tuple of int
            Blocks, and threads in a block: 1 to 3 numbers, x first.
        args : tuple
            CuPy arrays, C-contiguous, and NumPy scalars of exactly the parameter's type.
        shared_mem : int, bytes
            Dynamic shared memory of a block; more than 48 KiB is asked for.

        Raises
        ------
        DeviceError
            The kernel does not compile, or cannot be launched.
        """
        with errors(self._label):
            function = self._function()
            if shared_mem > _PLAIN_SHARED and shared_mem > function.max_dynamic_shared_size_bytes:
                function.max_dynamic_shared_size_bytes = shared_mem
            function(grid, block, args, shared_mem=shared_mem)

    def compile(self) -> None:
        """Compile for the current device, or load it from CuPy's cache."""
        with errors(self._label):
            self._function()

    def _function(self):
        device = self._cp.cuda.runtime.getDevice()
        function = self._functions.get(device)
        if function is None:  # a CuPy function belongs to the device it was looked up on
            key = self._cp, self._source, OPTIONS, self._name, device
            cached = kernel_cache.is_cached(*key)
            if not cached:
                kernel_cache.log_compiling(self._cp, device)
            function = self._module.get_function(self._name)
            if not cached:
                kernel_cache.mark_cached(*key)
            self._functions[device] = function
        return function
