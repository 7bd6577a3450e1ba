"""align_refs: align every reference image to every science integration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.core.display import short_html, short_repr
from gpucoron.core.stack import IntegrationStack
from gpucoron.errors import InputError
from gpucoron.ops.dq import DO_NOT_USE
from gpucoron.ops.fourier_shift import shift_spectra, shift_variances
from gpucoron.ops.registration import LEFT_OUT
from gpucoron.steps.bad_pixels import FLUX_ESTIMATED, BadPixelFiller, ReferenceLibrary
from gpucoron.steps.field import area_in_references, empty_area, field_weight, registration_mask
from gpucoron.steps.fit_consistency import Finding
from gpucoron.steps.image_fits import FITS_DTYPE, ImageFits
from gpucoron.steps.positions import JointPositions, Pointing
from gpucoron.steps.psf_noise import ReferenceErrors

__all__ = ["FITS_DTYPE", "AlignedReferences", "Alignment", "align_refs"]


class AlignedReferences(NamedTuple):
    """The result of align_refs."""

    data: np.ndarray  # (nsci, nref, ny, nx), or (nref, ny, nx) with align="first"
    err: np.ndarray  # the same shape
    fits: np.ndarray  # FITS_DTYPE, science integrations outermost; always on the host
    dq: np.ndarray  # uint32, as `Alignment.shift_dq` gives it; shape of data; always on the host

    def __repr__(self) -> str:
        return short_repr(self)

    def _repr_html_(self) -> str:
        return short_html(self)


class Alignment:
    """Aligns references that are prepared once to one science integration at a time.

    The 4-D result need never exist: iterate, and use each batch before the next is made.

    Parameters
    ----------
    science : IntegrationStack
        The integrations of one science exposure, on the host or on a GPU: the references must be
        there, too, and all but the tables of fits stays there.
    references : IntegrationStack or ReferenceLibrary
        The stacked references. Where `sources` names their exposures, bad pixels are filled from
        the other integrations of the same exposure first. Prepared ones serve several exposures;
        the four parameters on filling are then theirs.
    mask : (ny, nx) floating
        The psfmask: multiplies the residual, 1 = used. On the host or where the rest is.
    align : {"joint", "each", "first"}
        Measure one position for each image from the fits of some pairs
        (`gpucoron.steps.positions.joint_positions`), fit every pair (the specification), or fit
        the first science integration only and use its shifts for all (jwst since 1.16).
    median_box_length : int, pixels
        Side of the box whose median replaces a bad pixel where nothing better is known.
    bad_bits : str or int
        DQ flags that make a pixel bad; pixels that are not finite always are.
    zero_non_science : bool
        Set bad pixels flagged NON_SCIENCE to 0 and do not fill them, as is right for MIRI.
    preset : {None, "jwst"}
        "jwst" reproduces the package: raster-order fill that writes zeros in row and column 0, a
        walk from zero shift to the nearest minimum, no constant in the fit, err shifted unfilled
        (one NaN makes the whole plane NaN).
    pointing : callable, optional
        Returns where the headers say that the star is (`gpucoron.steps.positions.Pointing`, or
        None), for images that ``align="joint"`` cannot measure.
    batch : int, optional
        References shifted at a time; bounds the memory on top of the result. Default: all.

    Attributes
    ----------
    science : (nsci, ny, nx)
        The science integrations, filled: what KLIP must subtract from. An integration without any
        usable pixel is NaN.
    science_error : (ny, nx)
        Standard deviations of the pixels of one integration; NaN where not known.
    science_dq : (nsci, ny, nx) uint32
        DQ of `science`: that of the exposure, with DO_NOT_USE and FLUX_ESTIMATED where a pixel was
        filled (the preset adds nothing).
    fit_mask : (ny, nx)
        What multiplies the residual in fits.
    science_missing : (nsci, ny, nx) bool or None
        Which pixels of `science` were filled, for KLIP; None with the preset.

    Raises
    ------
    InputError
        Shapes that differ, a mask that cannot be used, or no usable science integration.
    """

    def __init__(
        self,
        science: IntegrationStack,
        references: IntegrationStack | ReferenceLibrary,
        mask: np.ndarray,
        *,
        align: str = "joint",
        median_box_length: int = 3,
        bad_bits: str | int = "DO_NOT_USE",
        zero_non_science: bool = False,
        preset: str | None = None,
        pointing: Callable[[], Pointing | None] | None = None,
        batch: int | None = None,
    ):
        if science.shape[1:] != references.shape[1:]:
            raise InputError(
                f"align_refs: science images are {science.shape[1:]}, references are "
                f"{references.shape[1:]}"
            )
        if isinstance(references, IntegrationStack):
            references = ReferenceLibrary(
                references,
                BadPixelFiller(median_box_length, bad_bits, zero_non_science, preset),
                mask=mask,
            )
        filling = references.filling
        self.align, self._like_jwst, self._references = align, filling.like_jwst, references
        self.shape, self._batch = references.shape, batch or len(references.images)
        self.science, error = references.fill_science(science)
        self.science_error = error
        filled = filling.flags(science)
        self._area = empty_area(filled)
        self.science_missing = None if self._like_jwst else (filled & FLUX_ESTIMATED) != 0
        mask = self.fit_mask = registration_mask(mask, references.area | self._area)
        self._xp = cuda.array_namespace(self.science, references.images)
        self.science_dq = science.dq | self._xp.where(self._xp.isfinite(self.science), filled, 0)
        if not bool(self._xp.isfinite(self.science).all(axis=(1, 2)).any()):
            raise InputError("align_refs: no science integration has a usable pixel")
        self._fits = ImageFits(self.science, error, references, mask, align, pointing)

    @property
    def integrations(self) -> list[int]:
        """The science integrations (from 0) that are aligned to: all, or the first usable one."""
        return self._fits.integrations

    @property
    def positions(self) -> JointPositions:
        """The position of every image, measured with ``align="joint"``."""
        return self._fits.positions

    def judge(self, fits: np.ndarray) -> tuple[np.ndarray, list[Finding]]:
        """Find fits that cannot be right; see `gpucoron.steps.image_fits.ImageFits.judge`."""
        return self._fits.judge(fits)

    def largest_move(self, fits: np.ndarray) -> float:
        """Return how far fits move images against the mask at most; see `ImageFits`."""
        return self._fits.largest_move(fits)

    def fit(self, integration: int) -> np.ndarray:
        """Fit one science integration (counted from 0) to all references.

        With ``align="joint"`` a fit is what the positions of the two images say. On a GPU the first
        call fits all `integrations` together.

        Returns
        -------
        (nref,) structured array of `FITS_DTYPE`
        """
        return self._fits.fit(integration)

    def unshifted(self, integration: int) -> np.ndarray:
        """Return fits with zero shift, for references that are not aligned."""
        return self._fits.unshifted(integration)

    def has_pixels(self, integration: int) -> bool:
        """Return whether a science integration has any usable pixel."""
        return bool(self._fits.usable[integration])

    def shift(self, fits: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Shift all references by the fitted shifts.

        Parameters
        ----------
        fits : (nref,) structured array
            From `fit`.
        out : (nref, ny, nx) float64, optional
            Where to put the result; saves the time that new memory takes.

        Returns
        -------
        (nref, ny, nx) float64
            NaN for a reference that was left out.
        """
        data = shift_spectra(self._references.spectra, self._shifts(fits), self.shape[1:], out)
        self._blank(data, fits["status"] == LEFT_OUT)
        return data

    def _blank(self, images: np.ndarray, which: np.ndarray) -> None:
        """Set images to NaN."""
        if which.any():
            images[self._xp.asarray(which)] = np.nan

    def in_common_frame(self, out: np.ndarray | None = None) -> np.ndarray:
        """Shift all references to where the science star is on average, with ``align="joint"``.

        Parameters
        ----------
        out : (nref, ny, nx) float64, optional
            As for `shift`.

        Returns
        -------
        (nref, ny, nx) float64
            NaN for a reference that was left out. Integration k of the science exposure is
            ``positions.science[k]`` pixels (y, x) away from them.
        """
        positions = self.positions
        shifts = np.nan_to_num(-positions.references)
        data = shift_spectra(self._references.spectra, shifts, self.shape[1:], out)
        self._blank(data, positions.status[1] == LEFT_OUT)
        return data

    def klip_weight(self, aligned: bool = True) -> np.ndarray | None:
        """Return the weights in KLIP that leave areas without data out, here or in any reference.

        Parameters
        ----------
        aligned : bool
            The references are aligned: where they come to lie for the first usable integration
            (the mean position with ``align="joint"``) counts.

        Returns
        -------
        (ny, nx) float64 or None
            As `gpucoron.steps.field.field_weight`, on the host; None with the preset.
        """
        area = self._references.area
        if aligned and area.any():
            if self.align == "joint":
                shifts = np.nan_to_num(-self.positions.references)
            else:
                shifts = self._shifts(self.fit(int(np.argmax(self._fits.usable))))
            area = area_in_references(area, shifts)
        return field_weight(area | self._area)

    def shift_err(self, fits: np.ndarray, part: slice = slice(None)) -> np.ndarray:
        """Shift the references' err by the fitted shifts.

        Parameters
        ----------
        fits : (nref,) structured array
            From `fit`.
        part : slice
            Which references, as from `batches`; all by default.

        Returns
        -------
        (n, ny, nx) float64
            Never negative (but with the preset, which leaves it as it falls); NaN for a reference
            that was left out or whose err is not known.
        """
        spectra, known = self._references.err_spectra, self._references.err_known
        if spectra is None:
            raise InputError("align_refs: these references were prepared without err")
        fits = fits[part]
        err = shift_spectra(spectra[part], self._shifts(fits), self.shape[1:])
        if not self._like_jwst:
            self._xp.maximum(err, 0.0, out=err)
        self._blank(err, (fits["status"] == LEFT_OUT) | ~to_host(known)[part])
        return err

    def shift_dq(self, fits: np.ndarray, part: slice = slice(None)) -> np.ndarray:
        """Shift the flags of the references' bad and NON_SCIENCE pixels by the fitted shifts.

        Parameters
        ----------
        fits, part
            As for `shift_err`.

        Returns
        -------
        (n, ny, nx) uint32
            On the host, as `gpucoron.ops.flagged_pixels.FlaggedPixels.shifted` gives it, with
            DO_NOT_USE and FLUX_ESTIMATED where a pixel was filled. DO_NOT_USE throughout for a
            reference that was left out. All 0 with the preset.
        """
        fits = fits[part]
        shape = (len(fits), *self.shape[1:])
        flags = np.zeros(shape, dtype=np.uint32)
        if self._like_jwst:
            return flags
        left_out, shifts = fits["status"] == LEFT_OUT, self._shifts(fits)
        for plane, row, shift in zip(flags, fits["ref_plane"], shifts, strict=True):
            plane[:] = self._references.flagged.shifted(row - 1, shift)
        flags[left_out] |= np.uint32(DO_NOT_USE)
        return flags

    def reference_errors(self, fits: np.ndarray | None = None) -> ReferenceErrors | None:
        """Return the noise of the references, moved as their images.

        Parameters
        ----------
        fits : (nref,) structured array, optional
            From `fit`. Default: as `in_common_frame`, or not at all without ``align="joint"``.

        Returns
        -------
        ReferenceErrors or None
            None where the noise of no reference is known; a reference exposure without ERR counts
            as the mean of the others.
        """
        xp, exposures = self._xp, self._references.groups
        errors = self._references.errors.astype(np.float64)
        known = to_host(xp.isfinite(errors).all(axis=(1, 2)))
        if not known.any():
            return None
        shifts = np.zeros((self.shape[0], 2))
        if fits is not None:
            shifts = self._shifts(fits)
        elif self.align == "joint":
            shifts = np.nan_to_num(-self.positions.references)
        variances = errors**2
        if not known.all():
            variances[xp.asarray(~known)] = variances[xp.asarray(known)].mean(axis=0)
        members = np.equal.outer(np.arange(len(variances)), exposures)
        moved = (members @ shifts) / members.sum(axis=1, keepdims=True)
        return ReferenceErrors(shift_variances(variances, moved), exposures, self.science_error)

    def batches(self) -> list[slice]:
        """Cut the references into slices of `batch`."""
        n = self.shape[0]
        return [slice(k, min(k + self._batch, n)) for k in range(0, n, self._batch)]

    @staticmethod
    def _shifts(fits: np.ndarray) -> np.ndarray:
        known = fits["status"] != LEFT_OUT
        return np.where(known[:, None], -np.stack([fits["y"], fits["x"]], axis=1), 0.0)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (science integration from 0, data, err, fits), one batch at a time."""
        for i in self.integrations:
            fits = self.fit(i)
            yield i, self.shift(fits), self.shift_err(fits), fits


def align_refs(
    science: IntegrationStack,
    references: IntegrationStack,
    mask: np.ndarray | None = None,
    **parameters: Any,
) -> AlignedReferences:
    """Align all references to all science integrations in memory.

    Parameters
    ----------
    science, references, mask
        As for `Alignment`; `mask` defaults to ones.
    **parameters
        The other parameters of `Alignment`.

    Returns
    -------
    AlignedReferences
        data and err are (nsci, nref, ny, nx) float64, or (nref, ny, nx) with ``align="first"``, dq
        is uint32 of that shape; a
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
    data, err, tables = (list(column) for column in zip(*batches, strict=True))
    dq = [plan.shift_dq(table) for table in tables]
    fits, _ = plan.judge(np.concatenate(tables))
    if plan.align == "first":
        return AlignedReferences(data[0], err[0], fits, dq[0])
    xp = cuda.array_namespace(*data)
    return AlignedReferences(xp.stack(data), xp.stack(err), fits, np.stack(dq))
