"""A module that passes for CuPy: NumPy's functions on device arrays, kernels on the CPU.

A name or a keyword that the real CuPy does not have is an error here, too; so the real one must be
installed, though it needs no GPU for that.
"""

import contextlib
import functools
import importlib
import re
import threading
import types

import numpy as np
import scipy.fft

from tests.cuda_on_host import build
from tests.cuda_on_host.arrays import DeviceArray, Memory, on_device, unwrap, wrap
from tests.cuda_on_host.launcher import MOST_SHARED, PLAIN_SHARED, HostModule, LaunchError

_DECLARED = re.compile(r"^\s*//\s*instantiate:\s*(.+?)\s*$", re.M)
_FROM_HOST = ("array", "asarray", "ascontiguousarray")
_EMPTY = ("empty", "empty_like")
MEMORY = 80 * 2**30
DEVICES = 2


class OutOfMemoryError(MemoryError):
    """As CuPy's."""

    def __init__(self, size, total, limit=0):
        super().__init__(f"Out of memory allocating {size} bytes (allocated so far: {total} bytes, "
                         f"limit set to: {limit} bytes).")


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""


OutOfMemoryError.__module__ = CUDARuntimeError.__module__ = LaunchError.__module__ = "cupy.emulated"


class Namespace(types.ModuleType):
    """`cupy`, `cupy.fft` or `cupy.linalg`: what is not given here is taken from NumPy."""

    def __init__(self, name, real, host):
        super().__init__(name)
        self._real, self._host = real, host

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if not hasattr(self._real, name):
            raise AttributeError(f"{self.__name__} has no attribute {name!r}")
        if not hasattr(self._host, name):
            raise NotImplementedError(f"{self.__name__}.{name} is not emulated")
        value, real = getattr(self._host, name), getattr(self._real, name)
        if callable(value) and not isinstance(value, type):
            function = on_device(f"{self.__name__}.{name}", value, real)
            for method in ("at", "reduce", "accumulate", "outer"):
                if isinstance(value, np.ufunc) and hasattr(real, method):
                    setattr(function, method, on_device(f"{name}.{method}", getattr(value, method),
                                                        getattr(real, method)))
            value = function
        setattr(self, name, value)
        return value


class Emulation:
    """The emulated module and what can be set and counted on it.

    Attributes
    ----------
    cupy : Namespace
        The module.
    modules : dict
        What is to stand in `sys.modules` for "cupy" and "cupyx".
    order, seed : str, int
        In which order threads run: "forward", "backward" or "shuffled".
    flags : tuple of str
        For g++.
    without : tuple of str and int
        File and line of a barrier to leave out; `left_out` is not 0 once it was.
    launches : list of tuple
        (file, name, grid, block) of every launch so far.
    uploads, downloads : int, bytes
        Copied from and to the host so far.
    memory : Memory
        What device arrays take.
    """

    def __init__(self):
        self._thread = threading.local()
        self.libraries = {}  # source -> flags -> HostModule
        self.reset()
        real = importlib.import_module("cupy")
        self.cupy = cp = Namespace("cupy", real, np)
        cp.__version__ = real.__version__
        cp.fft = Namespace("cupy.fft", real.fft, np.fft)
        cp.linalg = Namespace("cupy.linalg", real.linalg, np.linalg)
        cp.ndarray = DeviceArray
        DeviceArray.pattern, DeviceArray.home = real.ndarray, self
        for name in _FROM_HOST:
            setattr(cp, name, functools.partial(self._from_host, getattr(np, name)))
        for name in _EMPTY:
            setattr(cp, name, functools.partial(self._empty, getattr(np, name)))
        cp.asnumpy = self._as_numpy
        cp.from_dlpack = lambda foreign: foreign.__dlpack__()[...]
        cp.RawModule = functools.partial(_RawModule, self)
        cp.RawKernel = self._raw_kernel
        cp.cuda = fake_cuda(self)
        cp.get_default_memory_pool = lambda: Pool(self.memory)
        cp.get_default_pinned_memory_pool = lambda: types.SimpleNamespace(
            free_all_blocks=lambda: None)
        cupyx = types.SimpleNamespace(
            empty_pinned=np.empty, zeros_pinned=np.zeros, empty_like_pinned=np.empty_like,
            zeros_like_pinned=np.zeros_like)
        transforms = importlib.import_module("cupyx.scipy.fft")
        on_host = Namespace("cupyx.scipy.fft", transforms, scipy.fft)
        on_host.get_fft_plan = Plan
        self.modules = {"cupy": cp, "cupyx": cupyx, "cupyx.scipy.fft": on_host}

    @property
    def device(self):
        """The current device of this thread."""
        return getattr(self._thread, "device", 0)

    def set_device(self, index):
        """Make a device current in this thread."""
        if not 0 <= index < DEVICES:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self._thread.device = index

    def free_memory(self):
        """Return what `cudaMemGetInfo` would: free bytes, and all."""
        return MEMORY - self.memory.used, MEMORY

    def reset(self, order="forward", seed=0, flags=None):
        """Begin anew: nothing counted, no limit of memory.

        Shuffled threads come with multiplications and additions contracted into one rounding
        (nvcc does that), so that a result which depends on it is seen.
        """
        if flags is None:
            flags = build.contracting() if order == "shuffled" else build.PLAIN
        self.order, self.seed, self.flags, self.without = order, seed, flags, ("", 0)
        self.launches, self.uploads, self.downloads, self.left_out = [], 0, 0, 0
        self.memory = Memory(OutOfMemoryError)
        self.set_device(0)

    def _from_host(self, function, value, *args, **kwargs):
        kwargs.pop("blocking", None)
        if isinstance(value, DeviceArray):
            return wrap(function(value._host, *args, **kwargs))
        if hasattr(value, "__cuda_array_interface__"):
            return DeviceArray(_view(value.__cuda_array_interface__))
        kwargs.pop("copy", None)
        host = np.array(value if isinstance(value, np.ndarray) else unwrap(value), *args, **kwargs)
        self.uploads += host.nbytes
        return wrap(host)

    def _empty(self, function, *args, **kwargs):
        host = function(*map(unwrap, args), **kwargs)
        host.fill(np.nan if host.dtype.kind in "fc" else 0x5A)  # garbage
        return wrap(host)

    def _raw_kernel(self, code, name, options=()):
        return _RawModule(self, f'#line 1 "{name}"\n{code}', name_expressions=[name]
                          ).get_function(name)

    def _as_numpy(self, value, stream=None, order="C", out=None, *, blocking=True):
        if not isinstance(value, DeviceArray):
            return np.asarray(value, order=order)
        return value.get(out=out, order=order)


class Plan:
    """cuFFT's plan of a transform of half spectra to real images, all that is used of them."""

    def __init__(self, a, shape, axes, value_type):
        if value_type != "C2R" or axes != (1, 2) or a.shape[1:] != (shape[0], shape[1] // 2 + 1):
            raise ValueError("only inverse transforms of half spectra are emulated")
        self._in, self._out = a.shape, (len(a), *shape)

    def fft(self, a, out, direction):
        """Transform, unscaled; the input is spoilt."""
        if (a.shape, out.shape, direction) != (self._in, self._out, 1):
            raise ValueError("the plan is for other shapes or another direction")
        if not unwrap(out).flags.c_contiguous or not unwrap(a).flags.c_contiguous:
            raise ValueError("cuFFT takes no strides here")
        unwrap(out)[...] = scipy.fft.irfft2(unwrap(a), s=out.shape[1:], norm="forward")
        unwrap(a)[...] = np.nan


def _view(interface):
    """The memory that a ``__cuda_array_interface__`` tells of, as a NumPy array."""
    address = {"data": interface["data"], "version": 3, "shape": interface["shape"],
               "typestr": interface["typestr"], "strides": interface.get("strides")}
    return np.asarray(types.SimpleNamespace(__array_interface__=address))


class _RawModule:
    def __init__(self, emulation, code=None, *, options=(), name_expressions=None):
        self._emulation, self._code = emulation, code
        self.file = re.search(r'#line 1 "(\w+)', code)[1]
        # all of a file at once: one run of g++
        self._names = tuple(dict.fromkeys(_DECLARED.findall(code)) or name_expressions)
        self._modules = emulation.libraries.setdefault(code, {})

    def get_function(self, name):
        return _RawKernel(self._emulation, self, name)

    def compiled(self, name, flags):
        if flags not in self._modules:
            self._modules[flags] = HostModule(self.file, self._code, self._names, flags)
        return self._modules[flags].get_function(name)


class _RawKernel:
    def __init__(self, emulation, module, name):
        self._emulation, self._module, self._name = emulation, module, name
        self.max_dynamic_shared_size_bytes = PLAIN_SHARED

    def __call__(self, grid, block, args, *, shared_mem=0):
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise LaunchError("CUDA_ERROR_INVALID_VALUE: more shared memory than was asked for")
        e = self._emulation
        e.launches.append((self._module.file, self._name, grid, block))
        host = [unwrap(value) for value in args]
        kernel = self._module.compiled(self._name, e.flags)
        seed = e.seed + len(e.launches)
        e.left_out += kernel(grid, block, host, shared_mem, e.order, seed, e.without)


class Pool:
    def __init__(self, memory):
        self._memory = memory

    def set_limit(self, size=None, fraction=None):
        self._memory.limit = int(fraction * MEMORY) if fraction is not None else size or 0

    def get_limit(self):
        return self._memory.limit

    def used_bytes(self):
        return self._memory.used

    total_bytes = used_bytes

    def free_bytes(self):
        return 0

    def free_all_blocks(self, stream=None):
        return None


class Stream(contextlib.AbstractContextManager):
    ptr = 1

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=0):
        pass

    def __exit__(self, *problem):
        return None

    def synchronize(self):
        pass

    def wait_event(self, event):
        pass

    def record(self, event=None):
        return event or Event()

    def use(self):
        return self


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.done = True

    def record(self, stream=None):
        pass

    def synchronize(self):
        pass


def device_class(emulation):
    """Return what stands for `cupy.cuda.Device`."""

    class Device:
        attributes = {"MaxSharedMemoryPerBlockOptin": MOST_SHARED, "MultiProcessorCount": 2}
        compute_capability = "90"
        mem_info = property(lambda self: emulation.free_memory())

        def __init__(self, device=None):
            self.id = emulation.device if device is None else int(device)
            self._outer = []

        def __enter__(self):
            self._outer.append(emulation.device)
            return self.use()

        def __exit__(self, *problem):
            emulation.set_device(self._outer.pop())

        def __eq__(self, other):
            return self.id == other.id

        def __int__(self):
            return self.id

        def use(self):
            emulation.set_device(self.id)
            return self

        def synchronize(self):
            pass

    return Device


def fake_cuda(emulation):
    """Return what stands for `cupy.cuda`."""
    facts = {"name": b"Emulated", "major": 9, "minor": 0, "totalGlobalMem": MEMORY,
             "multiProcessorCount": 2, "sharedMemPerBlockOptin": MOST_SHARED}
    return types.SimpleNamespace(
        Device=device_class(emulation), Stream=Stream, Event=Event,
        get_current_stream=lambda: Stream(),
        alloc_pinned_memory=bytearray, set_allocator=lambda allocator: None,
        get_elapsed_time=lambda start, stop: 0.0,
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=types.SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError, getDevice=lambda: emulation.device,
            setDevice=emulation.set_device, getDeviceCount=lambda: DEVICES,
            getDeviceProperties=lambda index: facts, deviceSynchronize=lambda: None,
            memGetInfo=emulation.free_memory),
    )
