"""The PSF of an off-axis source: the user's, or that of the optics."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.errors import InputError

if TYPE_CHECKING:
    from gpucoron.analysis.forward import OffAxisImages
    from gpucoron.io.exposures import Exposure
    from gpucoron.io.psf_file import PsfFile
    from gpucoron.optics.off_axis import OffAxisPSF

__all__ = ["given_psf", "optics_psf"]

log = logging.getLogger("gpucoron")

_INTEGER = 0.02  # relative, by which samples per pixel may differ from an integer and count as it
_LARGEST_SUM = 1.5  # of an effective PSF whose samples add up to 1, not to those in a pixel
_ARCSEC = math.pi / 180 / 3600
_METHODS = ("images", "throughput", "without_mask", "fwhm_px")


def given_psf(psf: Any, exposure: Exposure, checksums: bool = True) -> OffAxisImages | None:
    """Return the PSF that the user gives; None without one.

    Parameters
    ----------
    psf : path, (ny, nx) array, OffAxisImages, or None
        A file as `gpucoron.io.psf_file.read_psf` reads it; the image of a source without the mask,
        in the middle of pixels of the detector; or an object with the methods of `OffAxisPSF`.
    exposure : Exposure
        A science exposure, whose pixels and mask count.
    checksums : bool

    Raises
    ------
    InputError
        It cannot be used.
    """
    if psf is None or (isinstance(psf, str) and not psf):
        return None
    if isinstance(psf, str | os.PathLike):
        return _from_file(psf, exposure, checksums)
    if all(hasattr(type(psf), name) for name in _METHODS):
        return psf
    from gpucoron.optics.given_psf import GivenPSF

    image = np.asarray(psf)
    if image.dtype.kind not in "iuf" or image.ndim != 2:
        raise InputError(
            f"psf is {type(psf).__name__} of shape {image.shape}, expected a path, an image "
            "(ny, nx) or a gpucoron.optics.given_psf.GivenPSF"
        )
    mask = optics_psf(exposure)
    _warn_of_mask("psf", exposure, mask, False, 1)
    try:
        return GivenPSF(image, mask=mask, source=_words("an array", mask, False))
    except InputError as problem:
        raise InputError(f"psf: {problem}") from None


def optics_psf(exposure: Exposure, **options: Any) -> OffAxisPSF | None:
    """Return the PSF of sources by the optics; None where there is no model of these.

    `options` are those of `gpucoron.optics.off_axis.OffAxisPSF.of`.
    """
    from gpucoron.optics.instruments import optics_of
    from gpucoron.optics.off_axis import OffAxisPSF

    meta = exposure.meta
    return None if optics_of(meta) is None else OffAxisPSF.of(meta, **options)


def _from_file(path: str | os.PathLike, exposure: Exposure, checksums: bool) -> OffAxisImages:
    from gpucoron.io.agreement import same_name
    from gpucoron.io.psf_file import read_psf
    from gpucoron.optics.given_psf import GivenPSF

    file = read_psf(path, checksums)
    ours = exposure.meta.filter
    if file.filter and ours and not same_name(file.filter, ours):
        raise InputError(
            f"{path}: FILTER is {file.filter}, expected {ours} as in {exposure.path.name}"
        )
    scale = _pixel_arcsec(exposure)
    mask = None if file.masked else optics_psf(exposure)
    _warn_of_mask(str(path), exposure, mask, file.masked, len(file.images))
    try:
        oversample, images = _oversample(file, scale), file.images
        if file.convolved and images.sum(axis=(1, 2)).max() < _LARGEST_SUM:
            images = images * oversample**2
        return GivenPSF(
            images,
            None if len(file.images) == 1 else _offsets(file, exposure, scale),
            oversample=oversample,
            convolved=file.convolved,
            centre=file.centre,
            mask=mask,
            source=_words(Path(path).name, mask, file.masked),
        )
    except InputError as problem:
        raise InputError(f"{path}: {problem}") from None


def _oversample(file: PsfFile, scale: float) -> float:
    """Return samples per pixel of the detector."""
    if file.sample_arcsec is None:
        return file.oversample or 1.0
    ratio = scale / file.sample_arcsec
    whole = round(ratio)
    if whole >= 1 and abs(ratio / whole - 1) < _INTEGER:
        return float(whole)
    if ratio < 1:
        raise InputError(
            f"PIXELSCL is {file.sample_arcsec:g}, expected at most the detector's pixel, "
            f"{scale:.4g} arcsec"
        )
    return ratio


def _offsets(file: PsfFile, exposure: Exposure, scale: float) -> np.ndarray | None:
    """Return where the sources are, y and x from the mask, px of the detector."""
    from gpucoron.optics.instruments import optics_of

    if file.places is None or file.unit == "px":
        return file.places
    if file.unit == "arcsec":
        return file.places / scale
    known = optics_of(exposure.meta)
    if known is None:
        raise InputError(
            f"places are pixels of the detector, and the mask of {exposure.path.name} is not "
            "modelled; expected a table PLACES of offsets from the mask"
        )
    corner = exposure.meta.corner_y or 1, exposure.meta.corner_x or 1
    mask = known.mask_centre[::-1]
    return file.places - np.array(corner) + 1 - np.array(mask)


def _pixel_arcsec(exposure: Exposure) -> float:
    """Return the side of a pixel of the detector, arcsec."""
    from gpucoron.optics.instruments import load_aperture, optics_of

    known, meta = optics_of(exposure.meta), exposure.meta
    if known is not None:
        return float(np.mean(load_aperture(known.bandpass.aperture).scale))
    if (meta.pixar_a2 or 0) > 0:
        return math.sqrt(meta.pixar_a2)  # type: ignore[arg-type]
    if (meta.pixar_sr or 0) > 0:
        return math.sqrt(meta.pixar_sr) / _ARCSEC  # type: ignore[arg-type]
    raise InputError(
        f"{exposure.path.name}: no PIXAR_A2 and no PIXAR_SR, expected the pixel's size for the "
        "scale of the PSF"
    )


def _warn_of_mask(
    name: str, exposure: Exposure, mask: OffAxisPSF | None, masked: bool, n: int
) -> None:
    if mask is None and not masked:
        log.warning(
            "%s: images without the mask, and the mask of %s is not modelled: it counts as fully "
            "transparent",
            *(name, exposure.path.name),
        )
    elif masked and n == 1:
        log.warning(
            "%s: one image with the mask in it stands for sources at any distance from the mask; "
            "expected several with a table PLACES, or one without the mask (CORONMSK = NONE)",
            name,
        )


def _words(name: str, mask: OffAxisPSF | None, masked: bool) -> str:
    if masked:
        return f"{name}, with the mask in it"
    if mask is None:
        return f"{name}, without any mask"
    return f"{name}, times the throughput of the mask by the {mask.source}"
