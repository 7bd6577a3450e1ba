"""References that were aligned before, as a psfalign file has them, for klip alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.core.stack import PlaneSource
from gpucoron.errors import InputError
from gpucoron.io.step_products import PsfalignFile
from gpucoron.steps.align_refs import FITS_DTYPE
from gpucoron.steps.psf_noise import ReferenceErrors

__all__ = ["StoredAlignment"]


class StoredAlignment:
    """Stands in for `gpucoron.steps.align_refs.Alignment`: what klip needs, read when needed.

    Parameters
    ----------
    file : PsfalignFile
    science : (nsci, ny, nx) floating
        The science integrations with bad pixels filled, on the device that subtracts.
    error : (ny, nx) floating
        Standard deviations of their pixels.
    sources : sequence of PlaneSource
        Where the references are from; empty where it is not known: each is an exposure of its own.

    Raises
    ------
    InputError
        No science integration has a usable pixel.
    """

    def __init__(
        self,
        file: PsfalignFile,
        science: np.ndarray,
        error: np.ndarray,
        sources: Sequence[PlaneSource] = (),
    ):
        self._file, self.science, self.shape = file, science, file.shape
        self._error = error
        names = [s.exposure for s in sources] if len(sources) == self.shape[0] else []
        every = np.arange(self.shape[0])
        self._exposures = np.unique(names, return_inverse=True)[1] if names else every
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

    def reference_errors(self, fits: np.ndarray | None = None) -> ReferenceErrors | None:
        """Return the noise of the references, from ERR of the file; None where it has none.

        `fits`, from `fit`, says which integration's; by default the first one's.
        """
        integration = 0 if fits is None else int(fits["sci_integration"][0]) - 1
        planes = self._file.references(integration, "ERR")
        if planes is None:
            return None
        variances = np.full((int(self._exposures.max()) + 1, *self.shape[1:]), np.nan)
        usable = np.isfinite(planes).all(axis=(1, 2))
        for exposure in range(len(variances)):
            chosen = planes[usable & (self._exposures == exposure)].astype(np.float64)
            if len(chosen):
                variances[exposure] = (chosen**2).mean(axis=0)
        known = np.isfinite(variances).all(axis=(1, 2)) & (variances > 0).any(axis=(1, 2))
        if not known.any():
            return None
        variances[~known] = variances[known].mean(axis=0)
        there = cuda.array_namespace(self.science).asarray(variances)
        return ReferenceErrors(there, self._exposures, self._error)

    def shift(self, fits: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Read the references aligned to an integration into `out`, (nref, ny, nx) float64."""
        images = self._file.references(int(fits["sci_integration"][0]) - 1)
        out[...] = cuda.array_namespace(out).asarray(images)
        return out
