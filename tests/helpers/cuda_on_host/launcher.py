"""Stand-ins for `cupy.RawModule` and `cupy.RawKernel` that run kernels on the CPU."""

import ctypes
import threading
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_void_p

import numpy as np

from tests.helpers.cuda_on_host import build

ORDERS = {"forward": 0, "backward": 1, "shuffled": 2}
PLAIN_SHARED, MOST_SHARED = 48 * 1024, 99 * 1024  # 99 KiB is what sm_86, 89 and 120 have

_DTYPES = {kind: np.dtype(kind).name for kind in "fd?bBhHiIqQ"}
_ONE_AT_A_TIME = threading.Lock()


class LaunchError(RuntimeError):
    """A launch that CUDA would refuse, or a fault that the scheduler saw."""


class _Description(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("function", "call")]
    _fields_ += [(name, c_char_p) for name in ("parameters", "elements")]


class HostModule:
    """All instantiations of one source, compiled when the first is asked for."""

    def __init__(self, stem, source, names, flags=build.PLAIN):
        self.names = list(names)
        self._library = build.library(stem, source, self.names, flags)
        self._launch = self._library.cuda_on_host_launch
        self._launch.restype = c_char_p
        order = [c_int, c_uint, c_char_p, c_int]  # of threads, its seed, the file and line left out
        self._launch.argtypes = [POINTER(_Description), *[c_void_p] * 2, c_size_t, c_void_p, *order]

    def get_function(self, name):
        """Return one instantiation."""
        find = getattr(self._library, f"cuda_on_host_kernel_{self.names.index(name)}")
        find.restype = POINTER(_Description)
        left_out = ctypes.c_long.in_dll(self._library, "cuda_on_host_left_out")
        return HostKernel(name, find(), self._launch, left_out)


class HostKernel:
    """A kernel with RawKernel's call, but stricter about its arguments.

    Attributes
    ----------
    parameters : str
        A letter for each: ``P`` for a pointer, ``p`` for one to what is constant, else NumPy's.
    """

    def __init__(self, name, description, launch, left_out):
        self.name, self._description, self._launch = name, description, launch
        self._left_out = left_out
        self.parameters = description.contents.parameters.decode()
        self.elements = description.contents.elements.decode()

    def __call__(self, grid, block, args, shared_mem=0, order="forward", seed=0, without=("", 0)):
        """Run to the end, in the given order of threads and blocks.

        `without` names the file and line of a barrier that is to be left out. Returns how often
        one was left out in this library so far.
        """
        grid, block = _three(self.name, "grid", grid), _three(self.name, "block", block)
        _check_sizes(self.name, grid, block, shared_mem)
        if len(args) != len(self.parameters):
            n, given = len(self.parameters), len(args)
            raise TypeError(f"{self.name} takes {n} arguments, {given} were given")
        buffers = [self._buffer(k, value) for k, value in enumerate(args)]
        pointers = (c_void_p * max(1, len(args)))(*map(ctypes.addressof, buffers))
        with _ONE_AT_A_TIME:
            sizes = (c_uint * 3)(*grid), (c_uint * 3)(*block), shared_mem
            run = ORDERS[order], seed, without[0].encode(), without[1]
            problem = self._launch(self._description, *sizes, pointers, *run)
        if problem:
            raise LaunchError(f"{self.name}: {problem.decode()}")
        return self._left_out.value

    def _buffer(self, number, value):
        kind, element = self.parameters[number], self.elements[number]
        where = f"{self.name}: argument {number}"
        if kind in "Pp":
            if not isinstance(value, np.ndarray):
                raise TypeError(f"{where} must be an array, not {type(value).__name__}")
            if value.dtype != _DTYPES.get(element, value.dtype):
                raise TypeError(f"{where} must be of {_DTYPES[element]}, not {value.dtype}")
            if not value.flags.c_contiguous:
                raise TypeError(f"{where} is not C-contiguous")
            return c_void_p(value.ctypes.data)
        if not isinstance(value, np.generic) or value.dtype != _DTYPES.get(kind):
            found = f"{type(value).__module__}.{type(value).__name__}"
            raise TypeError(f"{where} must be numpy.{_DTYPES.get(kind)}, not {found}")
        return (ctypes.c_char * 8).from_buffer_copy(value.tobytes().ljust(8, b"\0"))


def _three(name, what, sizes):
    if not isinstance(sizes, tuple) or not 1 <= len(sizes) <= 3:
        raise TypeError(f"{name}: {what} must be a tuple of 1 to 3 numbers, not {sizes!r}")
    return (*map(int, sizes), 1, 1)[:3]


def _check_sizes(name, grid, block, shared_mem):
    x, y, z = block
    if min(block) < 1 or x * y * z > 1024 or z > 64:
        raise LaunchError(f"{name}: no GPU runs blocks of {block}")
    if min(grid) < 1 or grid[0] >= 2**31 or max(grid[1:]) > 65535:
        raise LaunchError(f"{name}: no GPU runs a grid of {grid}")
    if not 0 <= shared_mem <= MOST_SHARED:
        raise LaunchError(f"{name}: {shared_mem} bytes of shared memory are more than sm_120 has")
