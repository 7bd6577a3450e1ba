"""Options of a simulation, and what it returns. Standard library only."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpucoron.core.validators import boolean, choice, integer, number, optional
from gpucoron.errors import ParameterError
from gpucoron.optics.instruments import INSTRUMENTS

MIN_SIDE = 32

DEMO = {"shape": (160, 160), "n_integrations": 4, "n_reference_integrations": 2}
LARGE = {"n_integrations": 60, "n_reference_integrations": 20, "n_optical_states": 4}


@dataclass(frozen=True)
class Planet:
    """A planet to inject."""

    separation: float  # arcsec
    angle: float  # position angle, north over east, deg
    contrast: float  # its flux over the star's


@dataclass(frozen=True)
class PlanetTruth(Planet):
    """A planet that was injected."""

    ra: float  # deg
    dec: float
    flux_jy: float
    flux_mjysr: float  # sum over the pixels of its image without the mask
    pixels: dict[str, tuple[float, float]]  # mean (x, y) from 0 in each science exposure, by root


@dataclass(frozen=True)
class Simulation:
    """The files that `simulate` wrote, and the ground truth."""

    directory: Path
    asn: Path
    psfmask: Path
    truth: Path
    truth_json: Path
    science: tuple[Path, ...]
    psf: tuple[Path, ...]
    star: tuple[float, float]  # ra, dec of the science star, deg
    planets: tuple[PlanetTruth, ...]


def _option(default, check: Callable, text: str = "", metavar: str = "X"):
    """Describe an option: its default, its check (see `core.validators`), its help."""
    return dataclasses.field(
        default=default, metadata={"check": check, "help": text, "metavar": metavar}
    )


def _parts(value, separator=","):
    return value.lower().split(separator) if isinstance(value, str) else value


def _seed(value):
    digits = str(value)
    return int(digits) if digits.isdigit() else integer(0)(value)  # which rounds as a float does


def _counts(value):
    """Check for numbers of integrations: one for all exposures, or one per exposure."""
    parts = _parts(value)
    several = isinstance(parts, list | tuple)
    return tuple(integer(1)(part) for part in (parts if several else [parts]))


def _shape(value):
    expected = f"expected two integers of {MIN_SIDE} or more (rows, columns)"
    try:
        ny, nx = (integer(MIN_SIDE)(side) for side in _parts(value, "x"))
    except (TypeError, ValueError):
        raise ValueError(expected) from None
    return ny, nx


def _planet(value):
    if isinstance(value, Planet):
        value = value.separation, value.angle, value.contrast
    separation, angle, contrast = map(number(), _parts(value))
    return Planet(_positive(separation), angle, _positive(contrast))


def _planets(value):
    try:
        return tuple(map(_planet, value))
    except (TypeError, ValueError):
        expected = "expected (separation in arcsec, angle in degrees, contrast) for each"
        raise ValueError(expected) from None


_flag = boolean
_name = optional(lambda value: str(value).upper())
_positive = number("a number of 0 or more", lambda x: x >= 0)
_or_none = optional(_positive)


@dataclass(frozen=True)
class Options:
    """Everything that shapes a simulation; docs/simulator.md describes each field."""

    instrument: str = _option(
        "nircam", choice(*INSTRUMENTS), f"{', '.join(INSTRUMENTS)} (default nircam)", "NAME"
    )
    filter: str | None = _option(
        None, _name, "filter (default that of the mask; else F444W, F1140C, F2300C)", "NAME"
    )
    mask: str | None = _option(
        None,
        _name,
        "NIRCam's mask: 210R, 335R, 430R, SWB, LWB (default 210R or 335R, as the filter wants)",
        "NAME",
    )
    seed: int = _option(0, _seed, "same seed, same pixels (default 0)", "N")
    shape: tuple[int, int] | None = _option(
        None, optional(_shape), "cut-out around the mask (default: whole subarray)", "NYxNX"
    )
    n_science: int = _option(
        2, integer(1), "science exposures, one roll angle each (default 2)", "N"
    )
    n_integrations: int | tuple[int, ...] = _option(
        10, _counts, "integrations per science exposure (default 10)", "N[,N...]"
    )
    n_references: int = _option(
        9, integer(0), "reference exposures, one dither position each (default 9)", "N"
    )
    n_reference_integrations: int | tuple[int, ...] = _option(
        4, _counts, "integrations per reference exposure (default 4)", "N[,N...]"
    )
    planets: tuple[Planet, ...] | None = _option(
        None,
        optional(_planets),
        "planet to inject: arcsec, degrees (north over east), flux ratio; may be repeated; "
        "replaces the instrument's three planets",
        "SEP,PA,CONTRAST",
    )
    disk: bool = _option(True, _flag, "no debris disk")
    noise: bool = _option(True, _flag, "no photon and read noise")
    cosmic_rays: bool = _option(True, _flag, "no cosmic rays")
    bad_pixels: bool = _option(True, _flag, "no bad pixels")
    star_flux_jy: float | None = _option(None, _or_none, "flux of the science star, Jy")
    reference_brightness: float = _option(
        1.6, _positive, "flux of the reference star over that of the science star"
    )
    roll_step: float = _option(10.0, number(), "degrees between science exposures")
    dither_px: float | None = _option(
        None, _or_none, "distance between neighbours of the small-grid dither, px"
    )
    acquisition_px: float | None = _option(None, _or_none, "rms error of target acquisition, px")
    jitter_px: float = _option(0.01, _positive, "rms pointing jitter between integrations, px")
    wavefront_nm: float | None = _option(None, _or_none, "rms of the static wavefront error, nm")
    drift_nm: float | None = _option(None, _or_none, "rms of the wavefront drift, nm")
    background_left: float | None = _option(
        None, _or_none, "fraction of the background that is not subtracted"
    )
    saturation_mjysr: float | None = _option(
        None, _or_none, "brightness above which pixels are saturated, MJy/sr"
    )
    n_optical_states: int | None = _option(
        None,
        optional(integer(1)),
        "at most N different wavefronts per exposure, repeated with new noise",
        "N",
    )
    truth_scenes: bool = _option(
        False, _flag, "also write every integration without noise and bad pixels"
    )
    overwrite: bool = _option(False, _flag, "replace an earlier simulation in the folder")

    @classmethod
    def from_keywords(cls, **keywords) -> Options:
        """Make options; for a name that does not exist, the error suggests the nearest."""
        names = [f.name for f in dataclasses.fields(cls)]
        for name in [n for n in keywords if n not in names]:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names)}"
            raise ParameterError(f"simulate has no option {name!r}; {hint}")
        return cls(**keywords)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            try:
                checked = field.metadata["check"](value)
            except ValueError as problem:
                raise ParameterError(f"{field.name} is {value!r}, {problem}") from None
            object.__setattr__(self, field.name, checked)
        self._one_count_per_exposure("n_integrations", self.n_science)
        self._one_count_per_exposure("n_reference_integrations", self.n_references)

    def _one_count_per_exposure(self, name, exposures):
        counts = getattr(self, name)
        if len(counts) not in (1, exposures):
            raise ParameterError(
                f"{name} is {counts!r}, expected an integer or {exposures}, one per exposure"
            )
        object.__setattr__(self, name, counts if len(counts) == exposures else counts * exposures)
