"""Host memory that a device copies to and from, and that is checked when the host touches it.

What goes round NumPy's own ways (the buffer protocol, a plain view made before) is not seen.
"""

import weakref

import numpy as np

from tests.helpers.cuda_on_host.order import Record

_WRITING = {"fill", "sort", "partition", "put", "byteswap", "itemset", "resize", "setfield"}
_READING = set(
    "all any argmax argmin argsort astype choose clip compress copy cumprod cumsum dot dump dumps "
    "flatten item max mean min nonzero prod ptp repeat round searchsorted std sum take tobytes "
    "tofile tolist trace var".split()
)


class PinnedRecord(Record):
    """What was copied from and to a piece of pinned memory."""

    __slots__ = ()
    kind = "a pinned array"


class PinnedArray(np.ndarray):
    """A NumPy array, the memory of which is watched.

    Attributes
    ----------
    record : PinnedRecord or None
        None once it is a copy.
    """

    home = None  # the Emulation
    record = None

    def __array_finalize__(self, source):
        self.record = getattr(source, "record", None) if self.base is not None else None

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if out is not None:
            options["out"] = tuple(plain(o, write=True) for o in out)
        inputs = [plain(value, write=method == "at" and k == 0) for k, value in enumerate(inputs)]
        result = getattr(ufunc, method)(*inputs, **options)
        return result if out is None else out[0] if len(out) == 1 else out

    def __array_function__(self, function, types, args, kwargs):
        write = function in (np.copyto, np.put, np.place, np.putmask, np.fill_diagonal)
        args = [plain(value, write and k == 0) for k, value in enumerate(args)]
        kwargs = {name: plain(value, name == "out") for name, value in kwargs.items()}
        return function(*args, **kwargs)

    def __getitem__(self, index):
        found = super().__getitem__(index)
        if isinstance(found, PinnedArray) and _owner(found) is _owner(self):
            return found
        self._touched("an index")
        return np.asarray(found)[()]

    def __setitem__(self, index, value):
        self._touched("an assignment", write=True)
        super().__setitem__(index, plain(value))

    def _touched(self, what, write=False):
        if self.record is not None:
            self.home.checker.touch(self.record, f"the host, {what},", write)


def _owner(array):
    while array.base is not None:
        array = array.base
    return array


def _checked(name):
    plain_method = getattr(np.ndarray, name)

    def method(self, *args, **kwargs):
        self._touched(name, write=name in _WRITING)
        return plain_method(self.view(np.ndarray), *args, **kwargs)

    return method


for _name in (_READING | _WRITING) & set(dir(np.ndarray)):
    setattr(PinnedArray, _name, _checked(_name))


def plain(value, write=False):
    """Return a plain array for a pinned one that the host accesses; lists and tuples of them."""
    if isinstance(value, PinnedArray):
        value._touched("a function", write)
        return value.view(np.ndarray)
    if isinstance(value, (list, tuple)) and any(isinstance(v, PinnedArray) for v in value):
        return type(value)(plain(v, write) for v in value)
    return value


def pinned(host):
    """Turn a fresh array into a pinned one; to give it back while it is in use is a race."""
    array = host.view(PinnedArray)
    array.record = PinnedRecord(host)
    weakref.finalize(host, PinnedArray.home.checker.release, array.record).atexit = False
    return array
