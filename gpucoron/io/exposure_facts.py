"""What the headers of an exposure say of its target, pointing and time."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from gpucoron.errors import ExposureError
from gpucoron.io.exposures import Exposure, ExposureMeta, exposure_of
from gpucoron.io.fits.headers import number_pair, plain_value
from gpucoron.io.fits.reading import open_fits
from gpucoron.io.names import program_id, says_nothing
from gpucoron.io.star import target_position

__all__ = ["ExposureFacts", "read_facts"]

_SAME_PLACE_ARCSEC = 2.0  # between coordinates of one target in two observations


@dataclass(frozen=True)
class ExposureFacts:
    """An exposure whose images are not read, and what its headers say beside `ExposureMeta`."""

    exposure: Exposure
    program: str | None  # five digits, or a name
    target: str | None  # TARGPROP, else TARGNAME
    other_name: str | None  # TARGNAME
    is_psf: bool | None  # IS_PSF: a reference star; None where the header does not say
    background: bool  # BKGDTARG
    begin: str | None  # DATE-BEG, else DATE-OBS and TIME-OBS: ISO 8601, UTC
    roll: float | None  # ROLL_REF, else PA_V3, degrees
    dither: tuple[float, float] | None  # XOFFSET, YOFFSET, arcsec
    dither_number: int | None  # PATT_NUM, from 1
    seconds: float | None  # XPOSURE, else EFFEXPTM: of all integrations

    @property
    def path(self) -> Path:
        """The file."""
        return self.exposure.path

    @property
    def meta(self) -> ExposureMeta:
        """Instrument, filter, mask, ..."""
        return self.exposure.meta

    @property
    def optics(self) -> str:
        """Instrument, filter, pupil, mask and subarray in words; what is missing is left out."""
        m = self.meta
        names = (m.instrument, m.detector, m.filter, m.pupil, m.coronmsk, m.subarray)
        return " ".join(filter(None, names)) or "unknown optics"

    def is_called(self, name: str) -> bool:
        """Return whether TARGPROP or TARGNAME is `name`, whatever case, blanks and signs."""
        return _plain(name) in {_plain(self.target), _plain(self.other_name)} - {""}

    def same_target(self, other: ExposureFacts) -> bool:
        """Return whether two exposures have one target, by its names or its coordinates."""
        for name in (self.target, self.other_name):
            if name and other.is_called(name):
                return True
        places = target_position(self.exposure), target_position(other.exposure)
        if places[0] is None or places[1] is None:
            return False
        return 3600 * _separation(*places[0], *places[1]) < _SAME_PLACE_ARCSEC

    def days(self) -> float | None:
        """Return when it began, in days; None where that is not known."""
        try:
            return datetime.fromisoformat(self.begin or "").timestamp() / 86400
        except ValueError:
            return None

    def as_type(self, exptype: str) -> ExposureFacts:
        """Return the same as "science" or "psf"."""
        return replace(self, exposure=replace(self.exposure, exptype=exptype))


def read_facts(path: str | Path, exptype: str | None = None) -> ExposureFacts:
    """Read the headers of an exposure.

    Parameters
    ----------
    path : path
    exptype : {"science", "psf"}, optional
        Default: as IS_PSF says, "science" where it is missing.

    Raises
    ------
    ExposureError
        As `gpucoron.io.read_exposure`.
    """
    exposure = exposure_of(open_fits(path, ExposureError), "science", pixels=False)
    primary, sci = exposure.primary_header, exposure.headers["SCI"]

    def text(*keywords: str) -> str | None:
        for keyword in keywords:
            value = plain_value(primary.get(keyword))
            if isinstance(value, str) and not says_nothing(value):
                return value.strip()
        return None

    def number(*keywords: str) -> float | None:
        for keyword in keywords:
            for header in (sci, primary):
                value = plain_value(header.get(keyword))
                if isinstance(value, int | float) and not isinstance(value, bool):
                    return float(value)
        return None

    is_psf, count = _truth(primary.get("IS_PSF")), number("PATT_NUM")
    begin = text("DATE-BEG") or "T".join(filter(None, (text("DATE-OBS"), text("TIME-OBS"))))
    return ExposureFacts(
        exposure=exposure,
        program=program_id(exposure.meta.program),
        target=text("TARGPROP", "TARGNAME"),
        other_name=text("TARGNAME"),
        is_psf=is_psf,
        background=_truth(primary.get("BKGDTARG")) or False,
        begin=begin or None,
        roll=number("ROLL_REF", "PA_V3"),
        dither=number_pair(primary, "XOFFSET", "YOFFSET"),
        dither_number=None if count is None else int(count),
        seconds=number("XPOSURE", "EFFEXPTM"),
    ).as_type(exptype or ("psf" if is_psf else "science"))


def _truth(value: Any) -> bool | None:
    """Return a logical keyword, also where a tool has written it as a text; else None."""
    value = plain_value(value)
    if isinstance(value, str):
        return {"T": True, "TRUE": True, "F": False, "FALSE": False}.get(value.strip().upper())
    return value if isinstance(value, bool) else None


def _plain(name: str | None) -> str:
    return re.sub(r"[^a-z0-9+]", "", (name or "").lower())


def _separation(ra: float, dec: float, other_ra: float, other_dec: float) -> float:
    """Return the angle between two positions, all in degrees."""
    from astropy.coordinates import angular_separation

    angles = map(math.radians, (ra, dec, other_ra, other_dec))
    return math.degrees(angular_separation(*angles))
