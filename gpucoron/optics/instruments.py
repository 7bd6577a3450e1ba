"""Coronagraphs that can be simulated: masks, filters, detectors, SIAF apertures.

``instruments.json`` holds the fields of `Instrument` and `Filter`, ``apertures.json`` those of
`Aperture`.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Aperture:
    """Geometry of one subarray from the SIAF.

    Positions of pixels count from 1, angles are arcseconds unless they end in ``_deg``.
    """

    name: str
    degree: int
    vparity: int
    shape: tuple[int, int]  # (ny, nx)
    reference_pixel: tuple[float, float]  # (x, y) in the subarray
    corner: tuple[int, int]  # the subarray's first pixel (x, y) on the full detector
    scale: tuple[float, float]
    v2_ref: float
    v3_ref: float
    v3_idl_yangle_deg: float
    sci2idl: tuple[tuple[float, ...], tuple[float, ...]]  # polynomials of ideal x and y


@dataclass(frozen=True)
class Filter:
    """One filter and its coronagraph mask."""

    name: str
    centre_um: float
    width_um: float
    photmjsr: float  # MJy/sr that give 1 DN/s
    background: float  # MJy/sr
    n_wavelengths: int
    aperture: str
    subarray: str
    coronmsk: str


@dataclass(frozen=True)
class Instrument:
    """A coronagraphic mode: properties that do not change between exposures."""

    name: str
    kind: str  # round, 4qpm, spot
    mask_radius: float  # arcsec: half transmission, or the spot's edge
    hole_radius: float  # arcsec: inner edge of the psfmask
    pupil_rotation_deg: float
    stop_erosion_m: float
    filters: dict[str, Filter]
    default_filter: str
    metadata: dict[str, str | int]
    exp_type: str
    exposure_id: dict[str, str]  # visit group, sequence, activity of science and psf exposures
    asn_rule: str
    frame_time_s: float
    n_groups: int
    frames_per_group: int
    gain: float  # electrons per DN
    read_noise: float  # DN/s per integration
    star_flux_jy: float
    wavefront_nm: float
    drift_nm: float
    dither_px: float  # distance between neighbours of the small-grid dither
    acquisition_px: float
    background_left: float  # fraction of the background that is not subtracted
    planets: tuple[tuple[float, float, float], ...]  # arcsec, degrees east of north, contrast
    ring_radius: float  # arcsec
    ring_angle_deg: float  # major axis, north over east
    ring_brightness: float  # peak surface brightness of the disk, MJy/sr, before convolution


def _read(name: str) -> dict[str, Any]:
    return json.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _instrument(name: str, entry: dict[str, Any]) -> Instrument:
    entry["filters"] = {key: Filter(key, **value) for key, value in entry["filters"].items()}
    return Instrument(name, **{key: _hashable(value) for key, value in entry.items()})


INSTRUMENTS = {name: _instrument(name, entry) for name, entry in _read("instruments.json").items()}


@functools.cache
def load_aperture(name: str) -> Aperture:
    """Read the aperture of this SIAF name from ``apertures.json``."""
    entry = _read("apertures.json")["apertures"][name]
    return Aperture(name, **{key: _hashable(value) for key, value in entry.items()})
