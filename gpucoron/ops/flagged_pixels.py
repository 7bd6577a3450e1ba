"""Data quality flags of images that are shifted by fractions of a pixel."""

from __future__ import annotations

from itertools import product

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.ops.dq import DO_NOT_USE, NON_SCIENCE

__all__ = ["FlaggedPixels"]

#: px along each axis, from a shifted flagged pixel to the pixels that get its flags
FOOTPRINT = 0.9


class FlaggedPixels:
    """The flagged pixels of a stack, for the flags of its images when they are shifted.

    Parameters
    ----------
    dq : (n, ny, nx) uint32
        Flags, on the host or on a GPU; only pixels that have any are kept, on the host.
    """

    def __init__(self, dq):
        xp = cuda.array_namespace(dq)
        where = xp.nonzero(dq)
        planes, y, x = (to_host(index).astype(np.int32) for index in where)
        self.shape, self._y, self._x, self._bits = dq.shape, y, x, to_host(dq[where])
        self._starts = np.searchsorted(planes, np.arange(len(dq) + 1))

    def select(self, planes):
        """Return the flagged pixels of some images, of which `planes` are the numbers, in order."""
        parts = [slice(self._starts[k], self._starts[k + 1]) for k in planes]
        new = object.__new__(type(self))
        new.shape = (len(parts), *self.shape[1:])
        for name in ("_y", "_x", "_bits"):
            values = getattr(self, name)
            setattr(new, name, np.concatenate([values[:0], *(values[part] for part in parts)]))
        new._starts = np.cumsum([0, *(part.stop - part.start for part in parts)])
        return new

    def shifted(self, index, shift_yx):
        """Return the flags of one image after a shift by fractions of a pixel.

        Parameters
        ----------
        index : int
            Which image.
        shift_yx : (2,) floating, pixels
            How far its content moves, as for `gpucoron.ops.fourier_shift.fourier_shift`.

        Returns
        -------
        (ny, nx) uint32
            A pixel has the flags of the pixels that come to lie less than 0.9 px from it in y and
            in x: one to four, which have the largest shares in it (a Fourier shift takes some of
            every pixel). What comes from more than half a pixel beyond the edge has NON_SCIENCE and
            DO_NOT_USE.
        """
        (ny, nx), shift = self.shape[1:], np.asarray(shift_yx, dtype=np.float64)
        flags = np.zeros((ny, nx), dtype=np.uint32)
        part = slice(self._starts[index], self._starts[index + 1])
        bits = self._bits[part]
        whole = np.floor(shift).astype(np.int64)
        for dy, dx in product((0, 1), repeat=2):
            if (np.abs(whole + (dy, dx) - shift) >= FOOTPRINT).any():
                continue
            y, x = self._y[part] + whole[0] + dy, self._x[part] + whole[1] + dx
            inside = (y >= 0) & (y < ny) & (x >= 0) & (x < nx)
            flags[y[inside], x[inside]] |= bits[inside]  # no pixel twice: a shift is one to one
        _flag_beyond_edge(flags, shift[0])
        _flag_beyond_edge(flags.T, shift[1])
        return flags


def _flag_beyond_edge(flags, shift):
    """Flag rows that come from beyond the edge, where `shift` is along the rows' axis."""
    beyond = min(int(np.ceil(abs(shift) - 0.5)), len(flags))
    if beyond > 0:
        flags[slice(beyond) if shift > 0 else slice(-beyond, None)] |= np.uint32(
            NON_SCIENCE | DO_NOT_USE
        )
