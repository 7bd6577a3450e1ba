"""The fixture `device`: the same test on the CPU, on the emulated GPU and on a real one."""

import contextlib
import dataclasses
import functools
import gc
import sys

import numpy as np
import pytest

from gpucoron.backend.device import find_gpus
from tests.helpers.cuda_on_host import build
from tests.helpers.cuda_on_host.order import Race


def each(function, value):
    """Apply a function to the members of a list, tuple, dict or dataclass, which keeps its type."""
    if isinstance(value, dict):
        return {k: function(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, **each(function, vars(value)))
    made = map(function, value)
    return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)


class Device:
    """What each device can do with functions and arrays."""

    def put(self, value):
        """Copy every NumPy array in lists, tuples and dataclasses to the device."""
        if isinstance(value, np.ndarray):
            return self.array(value)
        members = isinstance(value, (list, tuple)) or dataclasses.is_dataclass(value)
        return each(self.put, value) if members else value

    def call(self, function, *args, **options):
        """Call a function with all arrays on the device; return its result on the host."""
        options = {k: self.put(v) for k, v in options.items()}
        return self.get(function(*map(self.put, args), **options))


class Cpu(Device):
    """NumPy in, NumPy out."""

    name = "cpu"
    is_gpu = False
    cupy = emulation = None
    array = get = staticmethod(lambda values: values)


class CudaBackend(Device):
    """CuPy arrays, real or emulated; `emulation` has counters and settings, None on a real one."""

    is_gpu = True

    def __init__(self, name, cupy, emulation=None):
        self.name, self.cupy, self.emulation = name, cupy, emulation

    def have(self, count):
        """Let there be so many devices; skip the test where a real machine has fewer."""
        if self.emulation:
            self.emulation.count = count
        elif self.cupy.cuda.runtime.getDeviceCount() < count:
            pytest.skip(f"this machine has fewer than {count} GPUs")

    @contextlib.contextmanager
    def race(self, match):
        """Expect the emulation to find a race."""
        with pytest.raises(Race, match=match):
            yield
            self.emulation.checker.raise_left()  # of a finalizer, or lost on the way
        self.emulation.checker.races.clear()

    def array(self, values):
        """Copy to the device; None stays None."""
        return None if values is None else self.cupy.asarray(np.asarray(values))

    def get(self, values):
        """Copy to the host: an array, or each of a tuple, list, dict or dataclass of them."""
        if isinstance(values, (tuple, list, dict)) or dataclasses.is_dataclass(values):
            return each(self.get, values)
        if values is None or np.isscalar(values):
            return values
        assert isinstance(values, self.cupy.ndarray), f"{type(values)} is no device array"
        return values.get()

    def leave_memory(self, size):
        """Let the pool take no more than `size` bytes from now on.

        What is free of pieces that are in use is not refused by any limit: it is taken here, and
        returned, to be held as long as the limit is to be felt.
        """
        pool, taken = self.cupy.get_default_memory_pool(), []
        pool.free_all_blocks()
        pool.set_limit(size=max(1, pool.total_bytes()))
        for piece in 2 ** np.arange(28, 8, -1):
            with contextlib.suppress(self.cupy.cuda.memory.OutOfMemoryError):
                while True:
                    taken.append(self.cupy.empty(int(piece), np.uint8))
        pool.set_limit(size=pool.total_bytes() + int(size))
        return taken


class Foreign:
    """An array of a device that another package has."""

    def __init__(self, array):
        self.shape, self.dtype = array.shape, array.dtype
        self.__cuda_array_interface__ = array.__cuda_array_interface__


@functools.cache
def emulation():
    """One for the whole process, so that every kernel is loaded once."""
    from tests.helpers.cuda_on_host.cupy_on_host import Emulation

    return Emulation()


def why_no_emulation():
    """What is missing to run kernels on the CPU; empty where nothing is."""
    if not build.COMPILER:
        return build.NO_COMPILER
    try:
        import cupy  # noqa: F401
    except ImportError as problem:
        return f"the emulation checks names against CuPy: {problem}"
    return ""


@functools.cache
def why_no_gpu():
    gpus, problem = find_gpus()
    return "" if gpus else problem or "no GPU"


def gpu_is_lost():
    """Tell whether the device no longer answers, as after an access out of bounds."""
    import cupy

    try:
        cupy.cuda.runtime.deviceSynchronize()
    except cupy.cuda.runtime.CUDARuntimeError:
        return True
    return False


@contextlib.contextmanager
def emulated(order="forward", **settings):
    """Put the emulation where CuPy would be imported from; `settings` are of `Emulation.reset`.

    At the end a race is raised that the program did not stop at.
    """
    made = emulation()
    made.reset(order, **settings)
    find_gpus.cache_clear()
    before = {name: sys.modules.get(name) for name in made.modules}
    sys.modules.update(made.modules)  # what else is imported meanwhile stays imported
    gc.freeze()  # each time that memory is full all is looked through for cycles: only what is new
    try:
        yield CudaBackend(f"host-{order}", made.cupy, made)
        made.checker.raise_left()
    finally:
        gc.unfreeze()
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
        find_gpus.cache_clear()


def make(name):
    """Return a context manager that gives the device of that name; skip with the reason."""
    if name == "cpu":
        return contextlib.nullcontext(Cpu())
    missing = why_no_gpu() if name == "cuda" else why_no_emulation()
    if missing:
        pytest.skip(missing)
    if name == "cuda":
        import cupy

        return contextlib.nullcontext(CudaBackend(name, cupy))
    return emulated(name.removeprefix("host-"))
