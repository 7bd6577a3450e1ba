"""Arrays that behave as CuPy's do, but live in host memory.

Stricter than CuPy where it would copy on the quiet: an array of the host or of another device in
an expression, an index or an assignment is a TypeError; so is an implicit conversion to NumPy.
"""

import functools
import inspect
import re
import weakref
from types import SimpleNamespace

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

_UFUNC_OPTIONS = {"out", "dtype", "casting"}  # all that CuPy's ufuncs know
_PARAMETER = re.compile(r"(?:\w+ )?(\*?\w+)(?:=.*)?")


class Memory:
    """Counts the bytes of the device arrays that are alive, and refuses more than a limit."""

    def __init__(self, error):
        self.used = self.peak = self.limit = 0
        self._error = error

    def take(self, array):
        """Count a fresh array until it dies."""
        if self.limit and self.used + array.nbytes > self.limit:
            raise self._error(array.nbytes, self.used, self.limit)
        self.used += array.nbytes
        self.peak = max(self.peak, self.used)
        weakref.finalize(array, self._give_back, array.nbytes)

    def _give_back(self, size):
        self.used -= size


class DeviceArray(NDArrayOperatorsMixin):
    """An array of the emulated device.

    Parameters
    ----------
    host : numpy.ndarray
        Its values; not copied.
    """

    __slots__ = ("_host", "_device", "__weakref__")
    __hash__ = None
    home = None  # the Emulation
    pattern = None  # cupy.ndarray: only what it has may be used

    def __init__(self, host):
        self._host, self._device = host, self.home.device

    # ------------------------------------------------------------ what others see of it
    @property
    def __cuda_array_interface__(self):
        host = self._host.__array_interface__
        return {"shape": host["shape"], "typestr": host["typestr"], "strides": host["strides"],
                "data": (host["data"][0], False), "version": 3, "stream": 1}

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed; use .get()")

    def __dlpack_device__(self):
        return (2, self._device)

    def __dlpack__(self, **options):
        return self  # stands for the capsule

    @property
    def device(self):
        return self.home.cupy.cuda.Device(self._device)

    @property
    def data(self):
        return SimpleNamespace(ptr=self._host.ctypes.data)

    def get(self, stream=None, order="C", out=None, blocking=True):
        """Copy to the host."""
        self.home.downloads += self.nbytes
        if out is None:
            return self._host.copy(order=order)
        if out.shape != self.shape or out.dtype != self.dtype:
            raise ValueError("out has another shape or dtype")
        out[...] = self._host
        return out

    def set(self, arr, stream=None):
        """Copy from the host."""
        if not isinstance(arr, np.ndarray) or arr.shape != self.shape or arr.dtype != self.dtype:
            raise TypeError("set takes a NumPy array of the same shape and dtype")
        self.home.uploads += arr.nbytes
        self._host[...] = arr

    # ------------------------------------------------------------ NumPy's protocols
    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        unknown = set(options) - _UFUNC_OPTIONS
        if unknown or method not in ("__call__", "reduce", "accumulate", "at", "outer"):
            raise TypeError(f"CuPy's {ufunc.__name__} has no {method} with {sorted(unknown)}")
        out = options.pop("out", None)
        if out is not None:
            options["out"] = tuple(None if o is None else unwrap(o) for o in out)
        return wrap(getattr(ufunc, method)(*map(unwrap, inputs), **options), out or ())

    def __array_function__(self, function, types, args, kwargs):
        module = [part for part in function.__module__.split(".")[1:] if not part.startswith("_")]
        place = getattr(self.home.cupy, module[0]) if module else self.home.cupy
        return getattr(place, function.__name__)(*args, **kwargs)

    # ------------------------------------------------------------ indexing and scalars
    def __getitem__(self, index):
        return wrap(self._host[_index(index)])

    def __setitem__(self, index, value):
        self._host[_index(index)] = unwrap(value)

    def __iter__(self):
        return (self[k] for k in range(len(self)))

    def __len__(self):
        return len(self._host)

    def __bool__(self):
        return bool(self._host)

    def __int__(self):
        return int(self._host)

    def __float__(self):
        return float(self._host)

    def __complex__(self):
        return complex(self._host)

    def __repr__(self):
        return f"DeviceArray({self._host!r})"

    # ------------------------------------------------------------ the rest of ndarray
    def __getattr__(self, name):
        if name.startswith("__") or not hasattr(self.pattern, name):
            raise AttributeError(f"cupy.ndarray has no attribute {name!r}")
        value = getattr(self._host, name)
        if not callable(value):
            return wrap(value)
        return on_device(f"cupy.ndarray.{name}", value, getattr(self.pattern, name))


def on_device(name, host, real):
    """Return a function of NumPy as one of device arrays, with the keywords of CuPy's."""
    known = parameters(real)

    def call(*args, **kwargs):
        if known and not known.issuperset(kwargs):
            raise TypeError(f"{name} takes {sorted(known)}, not {sorted(kwargs)}")
        out = kwargs.get("out")
        result = host(*map(unwrap, args), **{k: unwrap(v) for k, v in kwargs.items()})
        return wrap(result, (out,))

    return call


@functools.cache
def parameters(function):
    """Names of the parameters of one of CuPy's functions; empty where they are not told."""
    try:
        found = inspect.signature(function).parameters
        return set() if "kwargs" in found else set(found)
    except (TypeError, ValueError):
        text = (function.__doc__ or "").partition("\n")[0]
        inside = re.search(r"\((.*)\)", text)
        found = map(_PARAMETER.fullmatch, inside[1].split(", ")) if inside else ()
        return {match[1] for match in found if match}


def unwrap(value):
    """Return the NumPy array behind an array of the current device; refuse any other array."""
    if isinstance(value, DeviceArray):
        if value._device != value.home.device:
            raise TypeError(f"an array of device {value._device} on device {value.home.device}")
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>: a host array")
    if isinstance(value, (list, tuple)):
        return type(value)(unwrap(v) for v in value)
    return value


def _index(index):
    parts = index if isinstance(index, tuple) else (index,)
    parts = tuple(unwrap(part) for part in parts)
    return parts if isinstance(index, tuple) else parts[0]


def wrap(value, out=()):
    """Return device arrays for NumPy arrays and scalars; an `out` comes back as itself."""
    if isinstance(value, (np.ndarray, np.generic)):
        for given in out:
            if given is not None and given._host is value:
                return given
        host = np.asarray(value)
        if host.base is None:
            DeviceArray.home.memory.take(host)
        return DeviceArray(host)
    if isinstance(value, (list, tuple)) and any(isinstance(v, np.ndarray) for v in value):
        return tuple(map(wrap, value)) if isinstance(value, tuple) else list(map(wrap, value))
    return value
