"""References that were aligned before, as a psfalign file has them, for klip alone."""

from __future__ import annotations

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.errors import InputError
from gpucoron.io.step_products import PsfalignFile
from gpucoron.steps.align_refs import FITS_DTYPE

__all__ = ["StoredAlignment"]


class StoredAlignment:
    """Stands in for `gpucoron.steps.align_refs.Alignment`: what klip needs, read when needed.

    Parameters
    ----------
    file : PsfalignFile
    science : (nsci, ny, nx) floating
        The science integrations with bad pixels filled, on the device that subtracts.

    Raises
    ------
    InputError
        No science integration has a usable pixel.
    """

    def __init__(self, file: PsfalignFile, science: np.ndarray):
        self._file, self.science, self.shape = file, science, file.shape
        self.align = "each" if file.each else "first"
        xp = cuda.array_namespace(science)
        self._usable = to_host(xp.isfinite(science).all(axis=(1, 2)))
        if not self._usable.any():
            raise InputError("klip: no science integration has a usable pixel")

    @property
    def integrations(self) -> list[int]:
        """The science integrations (from 0) that have aligned references of their own."""
        if self.align == "first":
            return [int(np.argmax(self._usable))]
        return list(range(len(self.science)))

    def has_pixels(self, integration: int) -> bool:
        """Return whether a science integration has any usable pixel."""
        return bool(self._usable[integration])

    def fit(self, integration: int) -> np.ndarray:
        """Return the rows of a table of fits that say which references `shift` is to return."""
        fits = np.zeros(self.shape[0], dtype=FITS_DTYPE)
        fits["sci_integration"] = integration + 1
        fits["ref_plane"] = np.arange(1, self.shape[0] + 1)
        return fits

    unshifted = fit

    def shift(self, fits: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Read the references aligned to an integration into `out`, (nref, ny, nx) float64."""
        images = self._file.references(int(fits["sci_integration"][0]) - 1)
        out[...] = cuda.array_namespace(out).asarray(images)
        return out
