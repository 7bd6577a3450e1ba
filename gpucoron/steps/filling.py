"""Find and fill the bad pixels of science and reference images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.core.stack import IntegrationStack
from gpucoron.ops import dq as dq_bits
from gpucoron.ops.bad_pixels import exposure_images, fill_bad_pixels, fill_bad_pixels_raster
from gpucoron.ops.fourier_shift import spectra
from gpucoron.ops.kriging import joint_spread
from gpucoron.steps.common_psf import share_holes

__all__ = ["Filling", "PreparedReferences"]

NON_SCIENCE = np.uint32(dq_bits.NON_SCIENCE)


class Known(NamedTuple):
    """The PSF that exposures of the same set-up have in common."""

    correlation: Any = None  # (145,) of pixels, by squared distance
    psf: Any = None  # (ny, nx) the star
    mask: Any = None  # (ny, nx) the psfmask


NOTHING = Known()


@dataclass(frozen=True)
class Filling:
    """Finds and fills bad pixels; see `gpucoron.steps.align_refs.Alignment`."""

    median_box_length: int = 3
    bad_bits: str | int = "DO_NOT_USE"
    zero_non_science: bool = False
    preset: str | None = None

    @property
    def like_jwst(self) -> bool:
        """Fill exactly as jwst does."""
        return self.preset == "jwst"

    def fill(
        self,
        images: np.ndarray,
        dq: np.ndarray,
        groups: np.ndarray,
        err: np.ndarray | None = None,
    ) -> np.ndarray:
        """Fill a stack of images.

        Parameters
        ----------
        images : (n, ny, nx) floating
            What is filled.
        dq : (n, ny, nx) uint32
            Says which pixels are bad; those that are not finite always are.
        groups : (n,) int
            Exposure of each image.
        err : (n, ny, nx) floating, optional
            For kriging.

        Returns
        -------
        (n, ny, nx), dtype of `images`
        """
        bad, flagged, zero = self._bad(images, dq)
        if self.like_jwst:
            return fill_bad_pixels_raster(images, bad, flagged, self.median_box_length, zero)
        return fill_bad_pixels(images, bad, self._box, groups, zero, err)

    def fill_stack(
        self, stack: IntegrationStack, groups: np.ndarray, known: Known = NOTHING
    ) -> tuple[np.ndarray, np.ndarray, Known]:
        """Fill the bad pixels of a stack; return images and their uncertainties.

        Parameters
        ----------
        stack : IntegrationStack
        groups : (n,) int
            Exposure of each image.
        known : Known
            From exposures filled before.

        Returns
        -------
        (n, ny, nx), (m, ny, nx) floating, Known
            The filled images, the standard deviations of the pixels of each exposure, finite, and
            what other exposures may use.
        """
        spreads, xp = None, cuda.namespace(stack.data)
        if self.like_jwst:
            filled = self.fill(stack.data, stack.dq, groups)
        else:
            bad, _, zero = self._bad(stack.data, stack.dq)
            exposures = exposure_images(
                stack.data,
                bad,
                groups,
                stack.err,
                zero=zero,
                box=self._box,
                correlation=known.correlation,
            )
            psf = known.psf
            if known.mask is not None:
                exposures, psf = share_holes(exposures, known.mask, psf)
            filled = fill_bad_pixels(stack.data, bad, self._box, groups, zero, stack.err, exposures)
            unsure = xp.where(exposures.spread > exposures.noise, exposures.spread, 0.0)
            spreads = [joint_spread(spread, exposures.correlation) for spread in unsure]
            known = Known(exposures.correlation, psf, known.mask)
        usable = to_host(xp.isfinite(filled).all(axis=(1, 2)))
        firsts = [int(np.argmax(usable & (groups == g))) for g in np.unique(groups)]
        errors = _filled_errors(stack.err[xp.asarray(firsts)])
        if spreads is not None:
            spreads = xp.stack(spreads)
            errors = xp.where(spreads > 0, spreads, errors).astype(errors.dtype, copy=False)
        return filled, errors, known

    @property
    def _box(self) -> int:
        return max(self.median_box_length, 1)

    def _bad(
        self, images: np.ndarray, dq: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Which pixels to replace, which are flagged, and which to set to 0 instead."""
        xp = cuda.namespace(images, dq)
        bits = np.uint32(dq_bits.interpret_bit_flags(self.bad_bits) or 0)
        flagged = (dq & bits) != 0
        bad = flagged | (xp.isnan(images) if self.like_jwst else ~xp.isfinite(images))
        zero = bad & ((dq & NON_SCIENCE) != 0) if self.zero_non_science else None
        return bad, flagged, zero


class PreparedReferences:
    """Reference images with bad pixels filled, and their spectra.

    Parameters
    ----------
    references : IntegrationStack
        The stacked references, on the host or on a GPU. Where `sources` names their exposures,
        bad pixels are filled from the other integrations of the same exposure first.
    filling : Filling
        How.
    with_err : bool
        Whether err will be wanted.
    mask : (ny, nx) floating, optional
        The psfmask. With it, holes that all integrations of an exposure have are filled from what
        all exposures have in common, where their neighbours do not tell enough.

    Attributes
    ----------
    Those of one number a reference are on the host, the others where the references are.

    images : (nref, ny, nx)
        The filled images; 0 where a reference has no usable pixel.
    usable : (nref,) bool
        Which have any.
    spectra : (nref, ny, nx // 2 + 1) complex128
        Of `images`.
    groups : (nref,) int
        Exposure of each reference, numbered from 0.
    errors : (ngroups, ny, nx) floating
        Standard deviation of the pixels of each exposure, filled.
    err_spectra : (nref, ny, nx // 2 + 1) complex128 or None
        Of err, filled (unfilled with the preset).
    err_known : (nref,) bool or None
        Which references have err to shift.
    """

    def __init__(
        self,
        references: IntegrationStack,
        filling: Filling,
        with_err: bool = True,
        mask: np.ndarray | None = None,
    ):
        self.filling = filling
        self.groups = groups = exposure_numbers(references)
        images, self.errors, self._known = filling.fill_stack(references, groups, Known(mask=mask))
        xp = cuda.namespace(images)
        self.usable = to_host(xp.isfinite(images).all(axis=(1, 2)))
        if not self.usable.all():
            images[xp.asarray(~self.usable)] = 0.0
        self.images, self.shape = images, images.shape
        self.spectra = spectra(images)
        self.err_spectra = self.err_known = None
        if with_err:
            err = references.err
            if not filling.like_jwst:
                err = filling.fill(err, references.dq, groups)
            known = xp.isfinite(err).all(axis=(1, 2))
            err = err if known.all() else xp.where(known[:, None, None], err, 0.0)
            self.err_spectra, self.err_known = spectra(err), to_host(known) & self.usable

    def fill_science(self, science: IntegrationStack) -> tuple[np.ndarray, np.ndarray]:
        """Fill the integrations of one science exposure.

        Returns
        -------
        (n, ny, nx), (ny, nx) floating
            The filled images, and the standard deviations of the exposure's pixels, finite.
        """
        own = np.zeros(len(science), dtype=int)
        images, errors, _ = self.filling.fill_stack(science, own, self._known)
        return images, errors[0]


def _filled_errors(err: np.ndarray) -> np.ndarray:
    """Fill bad pixels of err planes; with 1 where nothing is known."""
    xp = cuda.namespace(err)
    known = xp.isfinite(err) & (err > 0)
    filled = fill_bad_pixels(xp.where(known, err, 0), ~known)
    return xp.where(known.any(axis=(1, 2), keepdims=True), filled, err.dtype.type(1))


def exposure_numbers(stack: IntegrationStack) -> np.ndarray:
    """Number the exposures that a stack's planes came from; each plane its own where unknown."""
    if not stack.sources:
        return np.arange(len(stack))
    names = [source.exposure for source in stack.sources]
    return np.unique(names, return_inverse=True)[1]
