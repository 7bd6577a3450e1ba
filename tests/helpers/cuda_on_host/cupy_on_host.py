"""A module that passes for CuPy: NumPy's functions on device arrays, kernels on the CPU.

A name or a keyword that the real CuPy does not have is an error here, too; so the real one must be
installed, though it needs no GPU for that.
"""

import functools
import importlib
import re
import threading
import types

import numpy as np
import scipy.fft

from tests.helpers.cuda_on_host import arrays, build
from tests.helpers.cuda_on_host.arrays import DeviceArray, on_device, staged, unwrap, wrap
from tests.helpers.cuda_on_host.launcher import MOST_SHARED, PLAIN_SHARED, HostModule, LaunchError
from tests.helpers.cuda_on_host.order import Checker
from tests.helpers.cuda_on_host.pinned import PinnedArray, pinned
from tests.helpers.cuda_on_host.pool import MemoryPool, OutOfMemoryError, Pool
from tests.helpers.cuda_on_host.streams import Streams

_DECLARED = re.compile(r"^\s*//\s*instantiate:\s*(.+?)\s*$", re.M)
MEMORY = 80 * 2**30
MOST_DEVICES = 8


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
            value = on_device(f"{self.__name__}.{name}", value, real)
        setattr(self, name, value)
        return value


class Emulation:
    """The emulated module and what can be set and counted on it.

    Attributes
    ----------
    modules : dict
        For `sys.modules`.
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
    count : int
        How many devices there are.
    """

    def __init__(self):
        self._thread = threading.local()
        self.libraries = {}  # source -> flags -> HostModule
        self.checker = Checker()
        self.streams = Streams(self.checker, lambda: self.device, CUDARuntimeError)
        self.memory = arrays.Memory(self)
        self.reset()
        real = importlib.import_module("cupy")
        self.cupy = cp = Namespace("cupy", real, np)
        cp.__version__ = real.__version__
        cp.fft = Namespace("cupy.fft", real.fft, np.fft)
        cp.linalg = Namespace("cupy.linalg", real.linalg, np.linalg)
        cp.ndarray = DeviceArray
        DeviceArray.pattern, DeviceArray.home, PinnedArray.home = real.ndarray, self, self
        for name in ("array", "asarray", "ascontiguousarray"):
            setattr(cp, name, functools.partial(self._from_host, getattr(np, name)))
        for name in ("empty", "empty_like"):
            setattr(cp, name, functools.partial(self._empty, getattr(np, name)))
        cp.asnumpy = self._as_numpy
        cp.from_dlpack = lambda foreign: foreign.__dlpack__()[...]
        cp.RawModule = functools.partial(_RawModule, self)
        cp.RawKernel = self._raw_kernel
        cp.cuda = fake_cuda(self)
        cp.get_default_memory_pool = lambda: MemoryPool(self)
        cupyx = types.SimpleNamespace()
        for name in ("empty", "zeros", "empty_like", "zeros_like"):
            setattr(cupyx, f"{name}_pinned", functools.partial(self._pinned, getattr(np, name)))
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
        self.check_device(index)
        self._thread.device = index

    def check_device(self, index):
        """Refuse a device that is not there."""
        if not 0 <= index < self.count:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

    @property
    def pool(self):
        """The memory of the current device."""
        return self.pools[self.device]

    def free_memory(self):
        """Return what `cudaMemGetInfo` would: free bytes, and all."""
        return MEMORY - self.pool.total, MEMORY

    def work(self, what, reads=(), writes=(), stream=None):
        """Do something on a stream, or the current one, with blocks that it reads and writes."""
        queue = (self.streams.current() if stream is None else stream).queue
        known = ([block for block in blocks if block is not None] for blocks in (reads, writes))
        return self.checker.work(queue, what, *known)

    def reset(self, order="forward", seed=0, flags=None, devices=1, per_thread=False):
        """Begin anew: nothing counted, no limit of memory, nothing under way.

        Shuffled threads come with multiplications and additions contracted into one rounding
        (nvcc does that), so that a result which depends on it is seen. `per_thread` gives every
        thread a default stream of its own.
        """
        if flags is None:
            flags = build.contracting() if order == "shuffled" else build.PLAIN
        self.order, self.seed, self.flags, self.without = order, seed, flags, ("", 0)
        self.launches, self.uploads, self.downloads, self.left_out = [], 0, 0, 0
        self.count, self._held = devices, []
        self.pools = [Pool(MEMORY) for _ in range(MOST_DEVICES)]
        self.checker.begin_anew()
        self.streams.begin_anew()
        self.streams.per_thread = per_thread
        self.set_device(0)

    def _from_host(self, function, value, *args, **kwargs):
        blocking = kwargs.pop("blocking", False)
        if isinstance(value, DeviceArray):
            return arrays.operate(function.__name__, function, (value, *args), kwargs)
        if hasattr(value, "__cuda_array_interface__"):
            return DeviceArray(_view(value.__cuda_array_interface__))
        kwargs.pop("copy", None)
        source = value if isinstance(value, np.ndarray) else unwrap(value)
        host, made = np.array(source, *args, **kwargs).view(np.ndarray), []
        self.uploads += host.nbytes
        found = wrap(host, (), made)
        reads = staged(source) if isinstance(source, PinnedArray) and host.ndim else []
        access = self.work("a copy from the host", reads, made)
        if reads:  # which CuPy holds until it is copied
            self._held.append((access, source))
        if blocking:
            self.streams.current().synchronize()
        return found

    def _pinned(self, function, *args, **kwargs):
        self._held = [(a, array) for a, array in self._held if not self.checker.is_finished(a)]
        return pinned(function(*args, **kwargs).view(np.ndarray))

    def _empty(self, function, *args, **kwargs):
        host = function(*map(unwrap, args), **kwargs)
        host.fill(np.nan if host.dtype.kind in "fc" else 0x5A)  # garbage
        return wrap(host)

    def _raw_kernel(self, code, name, options=()):
        module = _RawModule(self, f'#line 1 "{name}"\n{code}', name_expressions=[name])
        return module.get_function(name)

    def _as_numpy(self, value, stream=None, order="C", out=None, *, blocking=True):
        if not isinstance(value, DeviceArray):
            return np.asarray(value, order=order)
        return value.get(stream, order, out, blocking)


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
        blocks = []
        spectra, images = unwrap(a, blocks), unwrap(out, blocks)
        if not images.flags.c_contiguous or not spectra.flags.c_contiguous:
            raise ValueError("cuFFT takes no strides here")
        DeviceArray.home.work("an inverse transform", blocks, blocks)
        images[...] = scipy.fft.irfft2(spectra, s=out.shape[1:], norm="forward")
        spectra[...] = np.nan


def _view(interface):
    """The memory that a ``__cuda_array_interface__`` tells of, as a NumPy array."""
    address = {key: interface.get(key) for key in ("data", "shape", "typestr", "strides")}
    return np.asarray(types.SimpleNamespace(__array_interface__={**address, "version": 3}))


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
        kernel = self._module.compiled(self._name, e.flags)
        host, read, written = [], [], []
        for k, value in enumerate(args):
            host.append(unwrap(value, read))
            if kernel.parameters[k : k + 1] == "P" and isinstance(value, DeviceArray):
                written.append(read[-1])
        e.work(f"kernel {self._name}", read, written)
        seed = e.seed + len(e.launches)
        e.left_out += kernel(grid, block, host, shared_mem, e.order, seed, e.without)


def device_class(emulation):
    """Return what stands for `cupy.cuda.Device`."""

    class Device:
        attributes = {"MaxSharedMemoryPerBlockOptin": MOST_SHARED, "MultiProcessorCount": 2}

        def __init__(self, device=None):
            self.id = emulation.device if device is None else int(device)
            self._outer = []

        def __enter__(self):
            self._outer.append(emulation.device)
            return self.use()

        def __exit__(self, *problem):
            emulation.set_device(self._outer.pop())

        def use(self):
            emulation.set_device(self.id)
            return self

        def synchronize(self):
            with self:
                emulation.streams.finish_device()

    return Device


def fake_cuda(emulation):
    """Return what stands for `cupy.cuda`."""
    facts = {"name": b"Emulated", "major": 9, "minor": 0, "totalGlobalMem": MEMORY}
    facts |= {"multiProcessorCount": 2, "sharedMemPerBlockOptin": MOST_SHARED}

    def properties(index):
        emulation.check_device(index)
        return facts

    streams = emulation.streams
    return types.SimpleNamespace(
        Device=device_class(emulation),
        Stream=streams.Stream,
        Event=streams.Event,
        get_current_stream=streams.current,
        set_allocator=lambda allocator: None,
        get_elapsed_time=lambda start, stop: 0.0,
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=types.SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDevice=lambda: emulation.device,
            setDevice=emulation.set_device,
            getDeviceCount=lambda: emulation.count,
            getDeviceProperties=properties,
            deviceSynchronize=streams.finish_device,
            memGetInfo=emulation.free_memory,
        ),
    )
