"""References that were aligned before, as a psfalign file has them, for klip alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.core.stack import IntegrationStack, PlaneSource
from gpucoron.errors import InputError
from gpucoron.io.step_products import PsfalignFile
from gpucoron.steps.align_refs import FITS_DTYPE
from gpucoron.steps.bad_pixels import FLUX_ESTIMATED
from gpucoron.steps.field import area_in_references, empty_area, field_weight
from gpucoron.steps.psf_noise import ReferenceErrors

__all__ = ["StoredAlignment"]


class StoredAlignment:
    """Stands in for `gpucoron.steps.align_refs.Alignment`: what klip needs, read when needed.

    Parameters
    ----------
    file : PsfalignFile
    stack : IntegrationStack
        The science integrations, on the device that subtracts.
    science : (nsci, ny, nx) floating
        The same with bad pixels filled.
    error : (ny, nx) floating
        Standard deviations of their pixels.
    flags : (nsci, ny, nx) uint32
        `BadPixelFiller.flags` of the integrations; all 0 with the preset.
    area : (ny, nx) bool, optional
        Pixels without data in the references before they were aligned.
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
        stack: IntegrationStack,
        science: np.ndarray,
        error: np.ndarray,
        flags: np.ndarray,
        area: np.ndarray | None,
        sources: Sequence[PlaneSource] = (),
    ):
        self._file, self.science, self.shape = file, science, file.shape
        self._error = error
        names = [s.exposure for s in sources] if len(sources) == self.shape[0] else []
        every = np.arange(self.shape[0])
        self._exposures = np.unique(names, return_inverse=True)[1] if names else every
        self.align = "each" if file.each else "first"
        xp = cuda.array_namespace(science)
        self._area, self._area_in_references = empty_area(flags), area
        filled = (flags & FLUX_ESTIMATED) != 0
        self.science_missing = filled if filled.any() else None
        self.science_dq = stack.dq | xp.where(xp.isfinite(science), flags, np.uint32(0))
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

    def reference_dq(self, aligned: bool = True) -> np.ndarray | None:
        """Return the flags of the references as aligned to the first usable integration."""
        return self._file.references(int(np.argmax(self._usable)) if self._file.each else 0, "DQ")

    def klip_weight(self, aligned: bool = True) -> np.ndarray | None:
        """Return the weights in KLIP that leave out areas without data, as they do in a run."""
        area = self._area_in_references
        if area is None:
            return field_weight(self._area)
        shifts = self._file.shifts(int(np.argmax(self._usable)))
        if shifts is not None and area.any():
            area = area_in_references(area, shifts)
        return field_weight(self._area | area)

    def shift(self, fits: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Read the references aligned to an integration into `out`, (nref, ny, nx) float64."""
        images = self._file.references(int(fits["sci_integration"][0]) - 1)
        out[...] = cuda.array_namespace(out).asarray(images)
        return out
