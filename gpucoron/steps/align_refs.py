"""align_refs: lay every reference image onto every science integration."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gpucoron.errors import InputError
from gpucoron.ops import dq as dq_bits
from gpucoron.ops.bad_pixels import fill_bad_pixels, fill_bad_pixels_raster
from gpucoron.ops.fourier_shift import shift_spectra, spectra
from gpucoron.ops.registration import CONVERGED, FIT_DTYPE, LEFT_OUT, Registration, left_out
from gpucoron.stack import IntegrationStack

__all__ = ["FITS_DTYPE", "AlignedReferences", "Alignment", "align_refs"]

log = logging.getLogger("gpucoron")

NON_SCIENCE = np.uint32(dq_bits.NON_SCIENCE)

#: One row for each fitted pair; integrations and planes count from 1.
FITS_DTYPE = np.dtype([("sci_integration", "i4"), ("ref_plane", "i4"), *FIT_DTYPE.descr])


class AlignedReferences(NamedTuple):
    """What align_refs gives back."""

    data: np.ndarray  # (nsci, nref, ny, nx), or (nref, ny, nx) with align="first"
    err: np.ndarray  # the same shape
    fits: np.ndarray  # FITS_DTYPE, science integrations outermost


class Alignment:
    """A plan: the references are prepared once, then aligned to one science integration at a time.

    The 4-D result need never exist: iterate, and use each batch before the next is made.

    Parameters
    ----------
    science : IntegrationStack
        The integrations of one science exposure.
    references : IntegrationStack
        The stacked references. Where `sources` names their exposures, bad pixels are filled from
        the other integrations of the same exposure first.
    mask : (ny, nx) floating
        The psfmask: multiplies the residual, 1 = used.
    align : {"each", "first"}
        Fit every science integration (the specification), or the first one only and use its shifts
        for all (jwst since 1.16).
    median_box_length : int, pixels
        Side of the box whose median replaces a bad pixel.
    bad_bits : str or int
        DQ flags that make a pixel bad; pixels that are not finite always are.
    zero_non_science : bool
        Set bad pixels flagged NON_SCIENCE to 0 and do not fill them, as is right for MIRI.
    preset : {None, "jwst"}
        "jwst" reproduces the package: raster-order fill that writes zeros in row and column 0, a
        walk from zero shift, err shifted unfilled (one NaN makes the whole plane NaN).

    Attributes
    ----------
    science : (nsci, ny, nx)
        The science integrations, filled: what KLIP must subtract from. An integration without any
        usable pixel is NaN.

    Raises
    ------
    InputError
        Shapes that differ, a mask that cannot be used, or no usable science integration.
    """

    def __init__(
        self, science: IntegrationStack, references: IntegrationStack, mask, *,
        align: str = "each", median_box_length: int = 3, bad_bits: str | int = "DO_NOT_USE",
        zero_non_science: bool = False, preset: str | None = None,
    ):
        if science.shape[1:] != references.shape[1:]:
            raise InputError(
                f"align_refs: science images are {science.shape[1:]}, references are "
                f"{references.shape[1:]}")
        self.align, self.preset = align, preset
        self._box, self._bits = median_box_length, dq_bits.interpret_bit_flags(bad_bits) or 0
        self._zero = zero_non_science
        own = np.zeros(len(science), dtype=int)
        self.science = self._filled(science.data, science.dq, own, science.err)
        self._usable = np.isfinite(self.science).all(axis=(1, 2))
        if not self._usable.any():
            raise InputError("align_refs: no science integration has a usable pixel")
        groups = _exposure_numbers(references)
        filled = self._filled(references.data, references.dq, groups, references.err)
        guide = self.science[int(np.argmax(self._usable))]
        if preset == "jwst":
            self._registration = Registration(filled, mask, search=0.0, background=False)
        else:
            self._registration = Registration(filled, mask, guide=guide)
        self.shape = filled.shape
        filled[~self._registration.usable] = 0.0
        self._spectra = spectra(filled)
        self._references, self._groups, self._err_spectra = references, groups, None

    def _bad(self, images, dq):
        return ((dq & np.uint32(self._bits)) != 0) | ~np.isfinite(images)

    def _filled(self, images, dq, groups, err=None):
        flagged = (dq & np.uint32(self._bits)) != 0
        if self.preset == "jwst":
            bad = flagged | np.isnan(images)
            zero = bad & ((dq & NON_SCIENCE) != 0) if self._zero else None
            return fill_bad_pixels_raster(images, bad, flagged, self._box, zero)
        bad = self._bad(images, dq)
        zero = bad & ((dq & NON_SCIENCE) != 0) if self._zero else None
        return fill_bad_pixels(images, bad, max(self._box, 1), groups, zero, err)

    def _err(self):
        """Spectra of the ERR planes, and which of them are known at all."""
        err = self._references.err
        if self.preset != "jwst":
            err = self._filled(err, self._references.dq, self._groups)
        known = np.isfinite(err).all(axis=(1, 2))
        return spectra(np.where(known[:, None, None], err, 0.0)), known

    @property
    def integrations(self) -> list[int]:
        """The science integrations (from 0) that are fitted: all, or the first usable one."""
        if self.align == "each":
            return list(range(len(self.science)))
        return [int(np.argmax(self._usable))]

    def has_pixels(self, integration: int) -> bool:
        """Tell whether a science integration has any usable pixel."""
        return bool(self._usable[integration])

    def fit(self, integration: int) -> np.ndarray:
        """Fit one science integration (counted from 0) to all references.

        Returns
        -------
        (nref,) structured array of `FITS_DTYPE`
        """
        fits = (self._registration.fit(self.science[integration])
                if self._usable[integration] else left_out(self.shape[0]))
        return self._table(integration, fits)

    def unshifted(self, integration: int) -> np.ndarray:
        """Return fits of no shift at all, for references that are used as they are."""
        fits = left_out(self.shape[0])
        fits[self._registration.usable] = (0, 0, 1, 0, 0, 0, np.nan, CONVERGED, 0)
        return self._table(integration, fits)

    @staticmethod
    def _table(integration, fits):
        table = np.zeros(len(fits), dtype=FITS_DTYPE)
        for name in FIT_DTYPE.names:
            table[name] = fits[name]
        table["sci_integration"] = integration + 1
        table["ref_plane"] = np.arange(1, len(fits) + 1)
        return table

    def shift(self, fits: np.ndarray) -> np.ndarray:
        """Shift all references as the fits say.

        Returns
        -------
        (nref, ny, nx) float64
            NaN for a reference that was left out.
        """
        known = fits["status"] != LEFT_OUT
        data = shift_spectra(self._spectra, self._shifts(fits), self.shape[1:])
        data[~known] = np.nan
        return data

    def shift_err(self, fits: np.ndarray) -> np.ndarray:
        """Shift the references' err as the fits say.

        Returns
        -------
        (nref, ny, nx) float64
            Never negative (but with the preset, which leaves it as it falls); NaN for a reference
            that was left out or whose err is not known.
        """
        if self._err_spectra is None:
            self._err_spectra, self._err_known = self._err()
        err = shift_spectra(self._err_spectra, self._shifts(fits), self.shape[1:])
        if self.preset != "jwst":
            np.maximum(err, 0.0, out=err)
        err[~((fits["status"] != LEFT_OUT) & self._err_known)] = np.nan
        return err

    @staticmethod
    def _shifts(fits):
        known = fits["status"] != LEFT_OUT
        return np.where(known[:, None], -np.stack([fits["y"], fits["x"]], axis=1), 0.0)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (science integration from 0, data, err, fits), one batch at a time."""
        for i in self.integrations:
            fits = self.fit(i)
            yield i, self.shift(fits), self.shift_err(fits), fits


def _exposure_numbers(stack):
    if not stack.sources:
        return np.arange(len(stack))
    names = [source.exposure for source in stack.sources]
    return np.unique(names, return_inverse=True)[1]


def align_refs(science: IntegrationStack, references: IntegrationStack, mask=None, **parameters):
    """Align all references to all science integrations, and hold the whole result.

    Parameters
    ----------
    science, references, mask
        As for `Alignment`; `mask` defaults to ones.
    **parameters
        The other parameters of `Alignment`.

    Returns
    -------
    AlignedReferences
        data and err are (nsci, nref, ny, nx) float64, or (nref, ny, nx) with ``align="first"``; a
        science integration without any usable pixel has NaN for its references.

    Raises
    ------
    InputError
        As `Alignment`.
    """
    if mask is None:
        mask = np.ones(science.shape[1:])
    plan = Alignment(science, references, mask, **parameters)
    batches = [(data, err, fits) for _, data, err, fits in plan]
    data, err, fits = (list(column) for column in zip(*batches, strict=True))
    if plan.align == "first":
        return AlignedReferences(data[0], err[0], fits[0])
    return AlignedReferences(np.stack(data), np.stack(err), np.concatenate(fits))
