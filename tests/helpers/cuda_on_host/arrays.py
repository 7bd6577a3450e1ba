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

from tests.helpers.cuda_on_host.order import Record
from tests.helpers.cuda_on_host.pinned import PinnedArray

_UFUNC_OPTIONS = {"out", "dtype", "casting"}  # all that CuPy's ufuncs know
_WAITING = set("argwhere bincount compress extract flatnonzero nonzero unique".split())
_PARAMETER = re.compile(r"(?:\w+ )?(\*?\w+)(?:=.*)?")


class Block(Record):
    """One allocation of device memory, until its array dies."""

    __slots__ = ("device", "pool", "chunk")
    kind = "a device array"

    def __init__(self, host, home):
        self.device, self.pool = home.device, home.pool
        self.chunk = self.pool.take(host.nbytes, home.streams.current().key)
        earlier = {}
        for _, past in self.chunk.past:
            for number, access in past.items():
                if number not in earlier or earlier[number].tick < access.tick:
                    earlier[number] = access
        super().__init__(host, earlier)


class _Owner(weakref.ref):
    __slots__ = ("key", "block")


class Memory:
    """Knows the allocation behind every array: the first array of one owns it."""

    def __init__(self, home):
        self._home, self._owners = home, {}

    def block(self, host, made=None):
        """Return the block that an array lies in; None for nothing and for what is not ours.

        A new one, for an array that NumPy has just made, is appended to `made`.
        """
        owner = host
        while getattr(owner, "base", None) is not None:  # through what as_strided puts between
            owner = owner.base
        if not isinstance(owner, np.ndarray):
            return self._at(host.ctypes.data)
        known = self._owners.get(id(owner))
        if known is not None:
            return known.block
        if owner.nbytes == 0:
            return None
        entry = _Owner(owner, self._gone)
        entry.key = id(owner)
        entry.block = Block(owner, self._home)
        self._owners[entry.key] = entry
        if made is not None:
            made.append(entry.block)
        return entry.block

    def _at(self, address):
        for entry in list(self._owners.values()):
            owner = entry()
            if owner is not None and 0 <= address - owner.ctypes.data < owner.nbytes:
                return entry.block
        return None

    def _gone(self, entry):
        del self._owners[entry.key]
        entry.block.pool.give_back(entry.block.chunk, entry.block.accesses())


class DeviceArray(NDArrayOperatorsMixin):
    """An array of the emulated device.

    Parameters
    ----------
    host : numpy.ndarray
        Its values; not copied.
    """

    __slots__ = ("_host", "_device", "_block", "__weakref__")
    __hash__ = None
    home = None  # the Emulation
    pattern = None  # cupy.ndarray: only what it has may be used

    def __init__(self, host, made=None):
        self._host, self._block = host, self.home.memory.block(host, made)
        self._device = self._block.device if self._block else self.home.device

    # ------------------------------------------------------------ what others see of it
    @property
    def __cuda_array_interface__(self):
        host = self._host.__array_interface__
        kept = {key: host[key] for key in ("shape", "typestr", "strides")}
        return {**kept, "data": (host["data"][0], False), "version": 3, "stream": 1}

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
        """Copy to the host, which waits for the stream unless told not to."""
        if out is not None and (out.shape != self.shape or out.dtype != self.dtype):
            raise ValueError("out has another shape or dtype")
        with self.device:
            stream = self.home.streams.current() if stream is None else stream
            pinned = [out.record] if isinstance(out, PinnedArray) and out.record else []
            self.home.work("a copy to the host", [self._block], pinned, stream)
            self.home.downloads += self.nbytes
            if out is None:
                found = self._host.copy(order=order)
            else:
                found, out.view(np.ndarray)[...] = out, self._host
            if blocking or not pinned:  # to ordinary memory CUDA copies before it returns
                stream.synchronize()
        return found

    def set(self, arr, stream=None):
        """Copy from the host, which goes on at once; only pinned memory is read later."""
        if not isinstance(arr, np.ndarray) or arr.shape != self.shape or arr.dtype != self.dtype:
            raise TypeError("set takes a NumPy array of the same shape and dtype")
        if not (self._host.flags.c_contiguous or self._host.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        with self.device:
            self.home.work("a copy from the host", staged(arr), [self._block], stream)
        self.home.uploads += arr.nbytes
        self._host[...] = arr.view(np.ndarray)

    # ------------------------------------------------------------ NumPy's protocols
    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        unknown = set(options) - _UFUNC_OPTIONS
        if unknown or method != "__call__":
            raise TypeError(f"{ufunc.__name__}: {method} with {sorted(unknown)} is not emulated")
        out = options.get("out") or ()
        if out:
            options["out"] = unwrap(out)
        return operate(ufunc.__name__, ufunc, inputs, options, out)

    def __array_function__(self, function, types, args, kwargs):
        module = [part for part in function.__module__.split(".")[1:] if not part.startswith("_")]
        place = getattr(self.home.cupy, module[0]) if module else self.home.cupy
        return getattr(place, function.__name__)(*args, **kwargs)

    # ------------------------------------------------------------ indexing and scalars
    def __getitem__(self, index):
        read, made = [self._block], []
        parts = _index(index, read)
        host = self._host[parts]
        if isinstance(host, np.generic):  # CuPy's element is a view
            host = self._host[(*parts, ...) if isinstance(parts, tuple) else (parts, ...)]
        found = DeviceArray(host, made)
        if made:
            self.home.work("an index", read, made)
            several = parts if isinstance(parts, tuple) else (parts,)
            if any(isinstance(part, np.ndarray) and part.dtype == bool for part in several):
                self.home.streams.current().synchronize()  # to know how many
        return found

    def __setitem__(self, index, value):
        read = []
        self._host[_index(index, read)] = unwrap(value, read)
        self.home.work("an assignment", read, [self._block])

    def __iter__(self):
        return (self[k] for k in range(len(self)))

    def __len__(self):
        return len(self._host)

    __bool__, __int__, __float__, __complex__ = (
        lambda self, kind=kind: kind(self._seen()) for kind in (bool, int, float, complex)
    )

    def _seen(self):
        """Return the values, after a wait as of every value that the host looks at."""
        self.home.work("a look at a value", [self._block])
        self.home.streams.current().synchronize()
        return self._host

    def __repr__(self):
        return f"DeviceArray({self._host!r})"

    # ------------------------------------------------------------ the rest of ndarray
    def __getattr__(self, name):
        if name.startswith("__") or not hasattr(self.pattern, name):
            raise AttributeError(f"cupy.ndarray has no attribute {name!r}")
        value = getattr(self._host, name)
        if not callable(value):
            return wrap(value)
        if name in ("item", "tolist", "tobytes"):
            self._seen()
        return on_device(f"cupy.ndarray.{name}", value, getattr(self.pattern, name), self)


def on_device(name, host, real, own=None):
    """Return a function of NumPy as one of device arrays, with the keywords of CuPy's.

    `own` is the array whose method it is.
    """
    known = parameters(real)

    def call(*args, **kwargs):
        if known and not known.issuperset(kwargs):
            raise TypeError(f"{name} takes {sorted(known)}, not {sorted(kwargs)}")
        out = kwargs.get("out")
        if out is not None:
            kwargs["out"] = unwrap(out)
        return operate(name, host, args, kwargs, out if isinstance(out, tuple) else (out,), own)

    return call


def operate(name, function, args, options, out=(), own=None):
    """Call a function of NumPy on what lies behind device arrays: work for the current stream.

    `args` and `options` hold device arrays, but for ``options["out"]``; `out` are those that it
    writes, `own` is the one whose method it is.

    What makes no array, writes none and returns something has only looked at shapes, or made a
    view: that is no work. What returns nothing has changed its first array.
    """
    read, made = [] if own is None else [own._block], []
    args = [unwrap(value, read) for value in args]
    options = {k: value if k == "out" else unwrap(value, read) for k, value in options.items()}
    result = function(*args, **options)
    found = wrap(result, out, made)
    writes = made + [o._block for o in out if o is not None]
    if result is None:
        writes, read = writes + read[:1], read[1:]
    if writes:
        DeviceArray.home.work(name, read, writes)
        if name.rpartition(".")[2] in _WAITING:
            DeviceArray.home.streams.current().synchronize()
    return found


def staged(array):
    """Return the records of an array that CUDA reads later, when it is copied from."""
    pinned = isinstance(array, PinnedArray) and array.record and array.flags.c_contiguous
    return [array.record] if pinned else []


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


def unwrap(value, blocks=None):
    """Return the NumPy array behind an array of the current device; refuse any other array.

    The block that it lies in is appended to `blocks`.
    """
    if isinstance(value, DeviceArray):
        if value._device != value.home.device:
            raise TypeError(f"an array of device {value._device} on device {value.home.device}")
        if blocks is not None:
            blocks.append(value._block)
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>: a host array")
    if isinstance(value, (list, tuple)):
        return type(value)(unwrap(v, blocks) for v in value)
    return value


def _index(index, blocks):
    parts = index if isinstance(index, tuple) else (index,)
    parts = tuple(unwrap(part, blocks) for part in parts)
    return parts if isinstance(index, tuple) else parts[0]


def wrap(value, out=(), made=None):
    """Return device arrays for NumPy arrays and scalars; an `out` comes back as itself.

    The blocks of arrays that are new are appended to `made`.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        for given in out:
            if given is not None and given._host is value:
                return given
        return DeviceArray(np.asarray(value), made)
    if isinstance(value, (list, tuple)) and any(isinstance(v, np.ndarray) for v in value):
        parts = [wrap(v, out, made) for v in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    return value
