"""Choose and describe the CPU or GPU of a run; tell where an array is."""

from __future__ import annotations

import functools
import os
import platform
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpucoron.backend.caches import cupy_cache
from gpucoron.backend.proof import proof
from gpucoron.errors import DeviceError, UsageError, one_line

_UNPROVEN = "the GPU code of this version is not proven on a GPU; --device 0 uses it all the same"
_DEV, _NODES = Path("/dev"), ("nvidia[0-9]*", "dxg", "nvhost-gpu")  # of a PC, WSL, Jetson
_NO_NODE = "there is no NVIDIA GPU here (no /dev/nvidia0)"
_INSTALL = "pip install 'gpucoron[cuda13]' or 'gpucoron[cuda12]'"
_NUMBERS = re.compile(r" *[0-9]+ *(, *[0-9]+ *)*")
_DLPACK_CUDA = (2, 13)  # kDLCUDA and kDLCUDAManaged of dlpack.h
_PROBE = 'extern "C" __global__ void gpucoron_probe(int *x) { *x = 40 + 2; }'


@dataclass(frozen=True)
class Device:
    """A CPU, a GPU, or several GPUs."""

    kind: str  # "cpu" or "gpu"
    index: int | None  # CUDA's number of the GPU; None for the CPU
    name: str  # model, as the system names it
    description: str  # one line: model, memory, threads or compute capability
    reason: str = ""  # why it was chosen
    others: tuple[int, ...] = ()  # GPUs that share the work with this one
    capability: str = ""  # compute capability, as "9.0"; empty for the CPU

    @property
    def indices(self) -> tuple[int, ...]:
        """CUDA device numbers; empty for the CPU."""
        return () if self.index is None else (self.index, *self.others)

    @property
    def label(self) -> str:
        """The name of the device for ``--device``: ``"cpu"``, ``"0"``, ``"0,1"``."""
        return "cpu" if self.index is None else ",".join(map(str, self.indices))

    def __str__(self) -> str:
        return self.label


def choose_device(
    spec: str | int | Device = "auto",
    predict: Callable[[], tuple[float, float]] | None = None,
) -> Device:
    """Return the device for a run.

    Parameters
    ----------
    spec : str, int or Device
        ``"cpu"``; the number of a CUDA device, or several with commas between, which share the
        work; or ``"auto"``. A Device is returned as it is.
    predict : callable, optional
        For ``"auto"``: returns the seconds that the run is expected to take on a GPU and on the
        CPU.

    Raises
    ------
    UsageError
        `spec` is none of these.
    DeviceError
        The GPU asked for is not there, or cannot be used. Nothing falls back to the CPU.

    Notes
    -----
    ``"auto"`` takes the first GPU where the GPU code is proven (`gpucoron.backend.proof`) on its
    compute capability, it is usable, and expected to be faster; else the CPU.
    """
    if isinstance(spec, Device):
        return spec
    text = str(spec).strip().lower()
    if text == "cpu":
        return replace(cpu_device(), reason="asked for")
    if text == "auto":
        return _automatic(predict)
    numbers = text.replace(" ", "").split(",")
    if isinstance(spec, bool) or not _NUMBERS.fullmatch(text):
        raise UsageError(
            f"device is {spec!r}; expected auto, cpu, or the number of a CUDA device "
            "(0, 1, ...; 0,1 for both)"
        )
    if len(set(map(int, numbers))) < len(numbers):
        raise UsageError(f"device is {spec!r}, which names a device twice")
    first, *others = (_asked_for(int(number)) for number in numbers)
    if not others:
        return first
    together = f"{first.description}, with device {', '.join(d.label for d in others)}"
    return replace(first, description=together, others=tuple(d.index for d in others))  # type: ignore[misc]


def is_open(spec: str | int | Device) -> bool:
    """Return whether the device is to be chosen later: by CuPy, or when the array sizes are known.

    Where this is False, `choose_device` says in no time what it will be, or what is wrong.
    """
    text = str(spec).strip().lower()
    if isinstance(spec, (Device, bool)) or not _may_have_gpu():
        return False
    return proof() is not None if text == "auto" else bool(_NUMBERS.fullmatch(text))


def _automatic(predict) -> Device:
    cpu, proven = cpu_device(), proof()
    if proven is None:
        return replace(cpu, reason=_UNPROVEN)
    times = ""
    if predict is not None and _may_have_gpu():  # CuPy is not imported for a run that is too short
        on_gpu_s, on_cpu_s = predict()
        if on_cpu_s <= on_gpu_s:
            return replace(
                cpu, reason=f"auto: predicted {on_cpu_s:.1f} s against {on_gpu_s:.1f} s on a GPU"
            )
        times = f": predicted {on_gpu_s:.1f} s against {on_cpu_s:.1f} s on the CPU"
    gpus, problem = find_gpus(0)
    if not gpus:
        return replace(cpu, reason=problem)
    if gpus[0].capability != proven.capability:
        reason = (
            f"the GPU code is proven on compute capability {proven.capability}, and device 0 has "
            f"{gpus[0].capability}; --device 0 uses it all the same"
        )
        return replace(cpu, reason=reason)
    return replace(gpus[0], reason=f"auto{times}" if times else "the first usable GPU")


def _asked_for(index: int) -> Device:
    gpus, problem = find_gpus(index)
    if gpus:
        return replace(gpus[0], reason="asked for")
    if "not installed" in problem:
        problem = f"{problem} ({_INSTALL})"
    raise DeviceError(f"device {index} cannot be used: {problem}; use --device cpu or auto")


def _may_have_gpu() -> bool:
    """Return whether there may be a GPU; asking CUDA takes half a second."""
    return (
        sys.platform != "linux"
        or "cupy" in sys.modules
        or any(next(_DEV.glob(node), None) for node in _NODES)
    )


def describe_devices() -> list[Device]:
    """Return the CPU and every usable GPU."""
    return [cpu_device(), *find_gpus()[0]]


@functools.cache
def find_gpus(index: int | None = None) -> tuple[tuple[Device, ...], str]:
    """Find usable GPUs: CuPy imports, sees devices, and a small kernel compiles and runs.

    Returns them, and what was missing where there are none. With an `index` only this one is looked
    at: on the others no context is made.
    """
    if not _may_have_gpu():
        return (), _NO_NODE
    try:
        cupy = import_cupy()
    except ImportError as problem:
        missing = problem.name == "cupy"
        return (), "CuPy is not installed" if missing else f"CuPy fails ({one_line(problem)})"
    cupy_cache()
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as problem:  # CuPy's own classes cannot be named without CuPy
        return (), f"CuPy finds no CUDA device ({one_line(problem)})"
    if count == 0:
        return (), "CuPy finds no CUDA device"
    if index is not None and index >= count:
        return (), "there are only " + ", ".join(map(str, range(count)))
    try:
        wanted = range(count) if index is None else (index,)
        return tuple(_describe_gpu(cupy, index) for index in wanted), ""
    except Exception as problem:  # anything from a missing NVRTC to a driver that is too old
        return (), f"CUDA does not work here ({one_line(problem)})"


def import_cupy() -> Any:
    """Import CuPy, set up for a short start unless the caller has imported it already."""
    ours = "cupy" not in sys.modules
    import cupy

    if ours:  # CUB's kernels for sums and the like take 3 s each to compile at their first use
        with suppress(AttributeError):  # not part of CuPy's documented interface
            cupy._core.set_reduction_accelerators([])
    return cupy


def _describe_gpu(cupy, index: int) -> Device:
    with cupy.cuda.Device(index):
        answer = cupy.zeros(1, dtype="int32")
        cupy.RawKernel(_PROBE, "gpucoron_probe")((1,), (1,), (answer,))
        if int(answer[0]) != 42:
            raise DeviceError(f"a trial kernel gives a wrong result on device {index}")
    facts = cupy.cuda.runtime.getDeviceProperties(index)
    name = facts["name"].decode() if isinstance(facts["name"], bytes) else str(facts["name"])
    capability = f"{facts['major']}.{facts['minor']}"
    size = f"{facts['totalGlobalMem'] / 2**30:.0f} GiB"
    return Device(
        "gpu",
        index,
        name,
        f"{name}, {size}, compute capability {capability}",
        capability=capability,
    )


@functools.cache
def cpu_device() -> Device:
    """Describe the CPU."""
    name = platform.processor() or platform.machine()
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    threads = cpu_threads()
    return Device(
        "cpu",
        None,
        name,
        f"{name}, {threads} thread{'s'[: threads != 1]}, {memory()[0] / 2**30:.1f} GiB",
    )


def cpu_threads() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> tuple[int, int]:
    """Return total and free memory for this process, in bytes.

    The limit of a container (cgroup) counts where it is below the machine's memory.
    """
    total, free = _system_memory()
    limit, used = (_read(f"/sys/fs/cgroup/memory.{k}").strip() for k in ("max", "current"))
    if limit.isdecimal() and used.isdecimal() and int(limit) < total:
        total = int(limit)
        free = min(free, max(total - int(used), 0))
    return total, free


def _system_memory() -> tuple[int, int]:
    """Return total and available memory of the machine, in bytes."""
    kib = dict(re.findall(r"(\w+): *([0-9]+) kB", _read("/proc/meminfo")))
    if {"MemTotal", "MemAvailable"} <= kib.keys():
        return 1024 * int(kib["MemTotal"]), 1024 * int(kib["MemAvailable"])
    import psutil  # macOS, Windows

    found = psutil.virtual_memory()
    return found.total, found.available


def peak_memory() -> int:
    """Return the most memory that this process has used so far, in bytes.

    On Linux from /proc: what `resource` says there begins with the memory of the parent process.
    """
    if found := re.search(r"VmHWM:\s*(\d+) kB", _read("/proc/self/status")):
        return 1024 * int(found[1])
    if sys.platform != "win32":
        with suppress(ImportError):
            import resource

            unit = 1 if sys.platform == "darwin" else 1024
            return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    import psutil

    used = psutil.Process().memory_info()
    return getattr(used, "peak_wset", used.rss)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def on_gpu(*arrays) -> bool:
    """Return whether all arrays that are not None are on a GPU, as `lives_on_gpu` tells.

    Raises
    ------
    TypeError
        Host and device arrays are mixed.
    """
    where = {lives_on_gpu(a) for a in arrays if a is not None}
    if len(where) > 1:
        raise TypeError("arrays on the host and on a GPU are mixed; move them to one device first")
    return where == {True}


def lives_on_gpu(array: Any) -> bool:
    """Return whether an object has ``__cuda_array_interface__`` or a DLPack on a CUDA device."""
    if hasattr(array, "__cuda_array_interface__"):
        return True
    where = getattr(array, "__dlpack_device__", None)
    return where is not None and where()[0] in _DLPACK_CUDA
