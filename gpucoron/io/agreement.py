"""What must agree among the exposures of one product, and when two keywords mean the same."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpucoron.errors import ExposureError
from gpucoron.io.exposures import Exposure, ExposureMeta, science_hdu
from gpucoron.io.fits.reading import open_fits
from gpucoron.io.names import says_nothing

__all__ = ["check_members", "same_name", "same_unit", "warn_of_copies", "warn_of_differences"]

log = logging.getLogger("gpucoron")

_SAME = ("INSTRUME", "DETECTOR", "CHANNEL", "FILTER", "PUPIL", "CORONMSK", "SUBARRAY", "BUNIT")
_AREA_TOLERANCE = 1e-3  # relative
_LARGEST_AREA_DIFFERENCE = 0.1  # relative; what reference files of different ages differ by is less
_OTHER_NAMES = {"NRCA5": "NRCALONG", "NRCB5": "NRCBLONG"}
# SUB320A335R, MASKA335R and MASK335R; 4QPM_1065, FQPM1065 and MASK1065
_NAME = re.compile(r"(SUB\d+)?(?:MASK|4QPM|FQPM)?([AB](?=\d|[LS]WB))?(.*)")
_AREAS = {"pixar_a2": "PIXAR_A2 (arcsec2)", "pixar_sr": "PIXAR_SR (sr)"}
_LONGEST_UNIT = 60  # characters
_SPELLINGS = {
    **{"mjy": "MJy", "jy": "Jy", "sr": "sr", "dn": "DN", "adu": "adu", "s": "s", "sec": "s"},
    **{"electrons": "electron", "electron": "electron", "count": "count", "counts": "count"},
}


def check_members(exposures: Sequence[Exposure]) -> None:
    """Make sure that the exposures of one product can be combined: each is like all others.

    Raises
    ------
    ExposureError
        Instrument, detector, channel, filter, pupil, coronagraph mask, subarray, units, image
        shape or pixel scale differ (PIXAR_A2 by more than one part in a thousand, of a reference
        by more than a tenth). A keyword that either lacks is not compared; see `same_name` and
        `same_unit` for those that differ in their spelling only.
    """
    for one, other in itertools.combinations(exposures, 2):
        for what, ours, theirs in _differences(one, other):
            raise ExposureError(
                f"{other.path.name}: {what} is {theirs}, but {one.path.name} has {ours}; "
                "members of one product must agree"
            )


def warn_of_differences(exposures: Sequence[Exposure]) -> None:
    """Warn of what differs from the first exposure, but does not keep them from being combined."""
    for exposure in exposures:
        _warn_of_unit_of_errors(exposure)
    for other in exposures[1:]:
        for what, ours, theirs, consequence in _small_differences(exposures[0], other):
            text = "%s: %s is %s, but %s has %s; %s"
            log.warning(
                text, other.path.name, what, theirs, exposures[0].path.name, ours, consequence
            )


def warn_of_copies(exposures: Sequence[Exposure]) -> None:
    """Warn of exposures with the same images, which are one exposure under two names.

    Compared are those that do not begin at different times (EXPSTART), by the first image that is
    not constant.
    """
    first_image = functools.cache(_first_image)  # by path, read where it is needed
    for one, other in itertools.combinations(exposures, 2):
        starts = [e.primary_header.get("EXPSTART") for e in (one, other)]
        if one.shape != other.shape or None not in starts and starts[0] != starts[1]:
            continue
        images = first_image(one.path), first_image(other.path)
        if None not in images and images[0] == images[1]:
            log.warning(
                "%s (%s) begins with the same image as %s (%s): %s",
                *(other.path.name, other.exptype, one.path.name, one.exptype),
                "it counts twice"
                if one.exptype == other.exptype
                else "the target is subtracted from itself",
            )


def _first_image(path: Path) -> bytes | None:
    """Return the first image of SCI that is not constant, as bytes."""
    file = open_fits(path, ExposureError)
    sci = science_hdu(file)
    for i in range(sci.shape[0] if len(sci.shape) == 3 else 1):
        image = file.floats(sci.plane(i))
        finite = image[np.isfinite(image)]
        if finite.size and finite.min() < finite.max():
            return image.tobytes()
    return None


def same_name(ours: str, theirs: str) -> bool:
    """Return whether two names of a mask, subarray, filter or detector mean the same.

    Case, blanks, hyphens and underscores do not count. The module of NIRCam (A or B) and the size
    of the subarray are compared where both names have them: MASKA335R is MASK335R, 4QPM_1065 is
    MASK1065, LYOT_2300 is MASKLYOT. A name that says nothing, such as N/A, goes with all.
    """
    if ours == theirs or says_nothing(ours) or says_nothing(theirs):
        return True
    (size, module, name), (other_size, other_module, other_name) = _parts(ours), _parts(theirs)
    if name != other_name or (module and other_module and module != other_module):
        return False
    return size == other_size or bool(name) and not (size and other_size)


def _parts(text: str) -> tuple[str, str, str]:
    """Split a name into the subarray's size, NIRCam's module, and the rest."""
    plain = re.sub(r"[^A-Z0-9]", "", text.upper())
    found = _NAME.fullmatch(_OTHER_NAMES.get(plain, plain))
    size, module, name = found.groups(default="") if found else ("", "", plain)
    return size, module, "LYOT" if name == "LYOT2300" else name


def same_unit(ours: str, theirs: str) -> bool:
    """Return whether two units are equal, however they are spelt: MJy/sr is MJy sr-1, not mJy/sr.

    A unit that says nothing, such as N/A, goes with all.
    """
    if ours == theirs or says_nothing(ours) or says_nothing(theirs):
        return True
    one, other = _unit(ours), _unit(theirs)
    if one is None or other is None:
        return ours.casefold() == theirs.casefold()
    return bool(one == other)


def _unit(text: str) -> Any:
    """Return a unit as astropy reads it, if need be in its usual spelling; None for no unit."""
    usual = re.sub(r"[A-Za-z]+", lambda word: _SPELLINGS.get(word[0].lower(), word[0]), text)
    return _parsed(text) or _parsed(usual)


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    from astropy import units

    # astropy computes powers of numbers, which may be endless
    if len(text) > _LONGEST_UNIT or re.search(r"\d{4}|\d\s*(\*\*|\^)", text):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return units.Unit(text)
        except (ValueError, TypeError, ArithmeticError):
            return None


def _differences(first: Exposure, other: Exposure) -> Iterator[tuple[str, Any, Any]]:
    """Yield (what, value in `first`, value in `other`) for all that should agree and does not."""
    for entry in dataclasses.fields(ExposureMeta):
        keyword = entry.metadata["keyword"]
        ours, theirs = getattr(first.meta, entry.name), getattr(other.meta, entry.name)
        same = same_unit if keyword == "BUNIT" else same_name
        if keyword in _SAME and None not in (ours, theirs) and not same(ours, theirs):
            yield keyword, ours, theirs
    if first.shape[1:] != other.shape[1:]:
        yield "the image shape (ny, nx)", first.shape[1:], other.shape[1:]
    limit = _LARGEST_AREA_DIFFERENCE if other.exptype == "psf" else _AREA_TOLERANCE
    if _area_difference(first.meta.pixar_a2, other.meta.pixar_a2) > limit:
        yield _AREAS["pixar_a2"], f"{first.meta.pixar_a2:.6g}", f"{other.meta.pixar_a2:.6g}"


def _area_difference(ours: float | None, theirs: float | None) -> float:
    """Return the relative difference of two pixel areas; 0 where either lacks."""
    if ours is None or theirs is None:
        return 0.0
    return abs(ours - theirs) / abs(ours) if ours else float(theirs != 0)


def _small_differences(first: Exposure, other: Exposure) -> Iterator[tuple[str, str, str, str]]:
    """Yield (what, value in `first`, in `other`, what follows) for what is worth a warning."""
    ours, theirs = first.meta, other.meta
    for name, what in _AREAS.items():
        mine, its = getattr(ours, name), getattr(theirs, name)
        if _area_difference(mine, its) > _AREA_TOLERANCE:
            yield what, f"{mine:.6g}", f"{its:.6g}", "nothing is scaled by it"
            break
    mine, its = (ours.corner_x, ours.corner_y), (theirs.corner_x, theirs.corner_y)
    if None not in (*mine, *its) and mine != its:
        consequence = (
            "the pixels lie elsewhere on the detector, and the coronagraph mask elsewhere in the "
            "image"
        )
        yield "the subarray's corner (SUBSTRT1, SUBSTRT2)", str(mine), str(its), consequence
    if ours.bunit and theirs.bunit and None in (_parsed(ours.bunit), _parsed(theirs.bunit)):
        if ours.bunit != theirs.bunit:
            yield "BUNIT", ours.bunit, theirs.bunit, "taken for the same unit"


def _warn_of_unit_of_errors(exposure: Exposure) -> None:
    """Warn where ERR has another unit than SCI."""
    header = exposure.headers.get("ERR")
    unit = None if header is None else header.get("BUNIT")
    ours = exposure.meta.bunit
    if isinstance(unit, str) and ours and not same_unit(ours, unit.strip()):
        text = "%s: BUNIT of ERR is %s, but SCI has %s; ERR is taken as it is, in the unit of SCI"
        log.warning(text, exposure.path.name, unit.strip(), ours)
