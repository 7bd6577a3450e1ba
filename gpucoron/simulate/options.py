"""What can be asked of the simulator, and what it hands back. Standard library only."""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

from gpucoron.errors import ParameterError
from gpucoron.optics.instruments import INSTRUMENTS

__all__ = ["DEMO", "INSTRUMENT_NAMES", "LARGE", "Options", "Planet", "PlanetTruth", "Simulation"]

MIN_SIDE = 32
INSTRUMENT_NAMES = tuple(INSTRUMENTS)

DEMO = {
    "shape": (160, 160),
    "n_science": 2,
    "n_integrations": 4,
    "n_references": 9,
    "n_reference_integrations": 2,
}
LARGE = {
    "n_science": 2,
    "n_integrations": 60,
    "n_references": 9,
    "n_reference_integrations": 20,
    "n_optical_states": 4,
}


@dataclass(frozen=True)
class Planet:
    """A planet to inject: arcsec from the star, degrees north over east, flux over the star's."""

    separation: float
    angle: float
    contrast: float


@dataclass(frozen=True)
class PlanetTruth:
    """A planet that was injected.

    Parameters
    ----------
    separation, angle, contrast : float
        As in `Planet`.
    ra, dec : float, deg
    flux_jy : float
    flux_mjysr : float
        Sum over the pixels of its image, were the mask not there.
    pixels : dict of str to (float, float)
        Mean place (x, y), counted from 0, in each science exposure by root name.
    """

    separation: float
    angle: float
    contrast: float
    ra: float
    dec: float
    flux_jy: float
    flux_mjysr: float
    pixels: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Simulation:
    """What `simulate` wrote."""

    directory: Path
    asn: Path
    psfmask: Path
    truth: Path
    truth_json: Path
    science: tuple[Path, ...]
    psf: tuple[Path, ...]
    star: tuple[float, float]  # ra, dec of the science star, deg
    planets: tuple[PlanetTruth, ...]


@dataclass(frozen=True)
class Options:
    """Everything that shapes a simulation; see docs/simulator.md for the meaning of each field."""

    instrument: str = "nircam"
    filter: str | None = None
    seed: int = 0
    shape: tuple[int, int] | None = None
    n_science: int = 2
    n_integrations: int | tuple[int, ...] = 10
    n_references: int = 9
    n_reference_integrations: int | tuple[int, ...] = 4
    planets: tuple[Planet, ...] | None = None
    disk: bool = True
    noise: bool = True
    cosmic_rays: bool = True
    bad_pixels: bool = True
    star_flux_jy: float | None = None
    reference_brightness: float = 1.6
    roll_step: float = 10.0
    dither_px: float | None = None
    acquisition_px: float | None = None
    jitter_px: float = 0.01
    wavefront_nm: float | None = None
    drift_nm: float | None = None
    background_left: float | None = None
    saturation_mjysr: float | None = None
    n_optical_states: int | None = None
    truth_scenes: bool = False
    overwrite: bool = False

    @classmethod
    def from_keywords(cls, **keywords) -> Options:
        """Make options, telling the nearest name for one that does not exist.

        Raises
        ------
        ParameterError
            Unknown name or impossible value.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        for name in keywords:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = (
                    f"; did you mean {near[0]!r}?"
                    if near
                    else f"; expected one of {', '.join(names)}"
                )
                raise ParameterError(f"simulate has no option {name!r}{hint}")
        return cls(**keywords)

    def __post_init__(self):
        if str(self.instrument).lower() not in INSTRUMENT_NAMES:
            raise ParameterError(
                f"instrument is {self.instrument!r}, expected one of {', '.join(INSTRUMENT_NAMES)}"
            )
        object.__setattr__(self, "instrument", self.instrument.lower())
        _integer("seed", self.seed, 0)
        _integer("n_science", self.n_science, 1)
        _integer("n_references", self.n_references, 0)
        if self.n_optical_states is not None:
            _integer("n_optical_states", self.n_optical_states, 1)
        for name, count in (
            ("n_integrations", self.n_science),
            ("n_reference_integrations", self.n_references),
        ):
            object.__setattr__(self, name, _counts(name, getattr(self, name), count))
        if self.shape is not None:
            object.__setattr__(self, "shape", _shape(self.shape))
        if self.planets is not None:
            object.__setattr__(self, "planets", tuple(_planet(p) for p in self.planets))
        for name in (
            "star_flux_jy",
            "wavefront_nm",
            "drift_nm",
            "background_left",
            "saturation_mjysr",
            "reference_brightness",
            "dither_px",
            "acquisition_px",
            "jitter_px",
        ):
            if getattr(self, name) is not None:
                _number(name, getattr(self, name), 0.0)
        _number("roll_step", self.roll_step, -360.0)


def _number(name, value, least):
    right = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not right or value < least:
        raise ParameterError(f"{name} is {value!r}, expected a number of {least:g} or more")


def _integer(name, value, least):
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ParameterError(f"{name} is {value!r}, expected a whole number of {least} or more")


def _counts(name, value, exposures):
    """One number of integrations per exposure."""
    if isinstance(value, Integral):
        _integer(name, value, 1)
        return (int(value),) * exposures
    values = tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(values) != exposures:
        raise ParameterError(
            f"{name} is {value!r}, expected a whole number or {exposures} of them, one per exposure"
        )
    for v in values:
        _integer(name, v, 1)
    return tuple(int(v) for v in values)


def _shape(value):
    try:
        ny, nx = value
    except (TypeError, ValueError):
        raise ParameterError(
            f"shape is {value!r}, expected two whole numbers (rows, columns)"
        ) from None
    for side in (ny, nx):
        _integer("shape", side, MIN_SIDE)
    return int(ny), int(nx)


def _planet(value):
    try:
        planet = value if isinstance(value, Planet) else Planet(*value)
    except TypeError:
        raise ParameterError(
            f"planet is {value!r}, expected (separation in arcsec, angle in degrees, contrast)"
        ) from None
    _number("planet separation", planet.separation, 0.0)
    _number("planet angle", planet.angle, -360.0)
    _number("planet contrast", planet.contrast, 0.0)
    return planet
