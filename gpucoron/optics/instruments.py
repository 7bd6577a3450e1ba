"""Coronagraphs that can be simulated: masks, filters, detectors, SIAF apertures."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources

__all__ = ["Aperture", "Filter", "Instrument", "INSTRUMENTS", "load_aperture"]


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


def _by_name(*filters):
    return {f.name: f for f in filters}


_NIRCAM = Instrument(
    name="nircam",
    kind="round",
    mask_radius=0.64,
    hole_radius=0.64,
    pupil_rotation_deg=0.0,
    stop_erosion_m=0.6,
    filters=_by_name(
        Filter("F410M", 4.084, 0.436, 4.8, 0.35, 4, "NRCA5_MASK335R", "SUB320A335R", "MASKA335R"),
        Filter("F444W", 4.402, 1.024, 2.516, 0.55, 8, "NRCA5_MASK335R", "SUB320A335R", "MASKA335R"),
    ),
    default_filter="F444W",
    metadata={
        "name": "NIRCAM",
        "detector": "NRCALONG",
        "module": "A",
        "channel": "LONG",
        "pupil": "MASKRND",
        "template": "NIRCam Coronagraphic Imaging",
        "readpatt": "SHALLOW4",
        "suffix": "nrcalong",
        "fastaxis": -1,
        "slowaxis": 2,
    },
    exp_type="NRC_CORON",
    exposure_id={"science": "03108", "psf": "0310a"},
    asn_rule="candidate_Asn_Lv3NRCCoron",
    frame_time_s=1.06904,
    n_groups=10,
    frames_per_group=10,
    gain=1.82,
    read_noise=0.018,
    star_flux_jy=4.5,
    wavefront_nm=85.0,
    drift_nm=2.0,
    dither_px=1.0,
    acquisition_px=0.3,
    background_left=1.0,
    planets=((1.0, 70.0, 4.0e-5), (1.7, 140.0, 2.0e-5), (3.1, 318.0, 3.0e-6)),
    ring_radius=2.4,
    ring_angle_deg=25.0,
    ring_brightness=9.0,
)

_MIRI: dict[str, str | int] = {
    "name": "MIRI",
    "detector": "MIRIMAGE",
    "template": "MIRI Coronagraphic Imaging",
    "readpatt": "FASTR1",
    "suffix": "mirimage",
    "fastaxis": 1,
    "slowaxis": 2,
}

_QPM = Instrument(
    name="miri-4qpm",
    kind="4qpm",
    mask_radius=0.0,
    hole_radius=0.45,
    pupil_rotation_deg=4.84,
    stop_erosion_m=0.2,
    filters=_by_name(
        Filter("F1065C", 10.575, 0.75, 3.1, 18.0, 3, "MIRIM_MASK1065", "MASK1065", "4QPM_1065"),
        Filter("F1140C", 11.30, 0.8, 2.9, 24.0, 3, "MIRIM_MASK1140", "MASK1140", "4QPM_1140"),
        Filter("F1550C", 15.50, 0.9, 3.6, 75.0, 3, "MIRIM_MASK1550", "MASK1550", "4QPM_1550"),
    ),
    default_filter="F1140C",
    metadata=_MIRI,
    exp_type="MIR_4QPM",
    exposure_id={"science": "04101", "psf": "04101"},
    asn_rule="candidate_Asn_Lv3MIRCoron",
    frame_time_s=0.23968,
    n_groups=400,
    frames_per_group=1,
    gain=4.0,
    read_noise=0.06,
    star_flux_jy=3.0,
    wavefront_nm=90.0,
    drift_nm=2.0,
    dither_px=0.5,
    acquisition_px=0.15,
    background_left=0.01,
    planets=((1.6, 75.0, 5.0e-4), (2.7, 255.0, 1.5e-4), (5.0, 345.0, 5.0e-5)),
    ring_radius=3.6,
    ring_angle_deg=165.0,
    ring_brightness=12.0,
)

_LYOT = Instrument(
    name="miri-lyot",
    kind="spot",
    mask_radius=2.16,
    hole_radius=2.3,
    pupil_rotation_deg=4.84,
    stop_erosion_m=0.14,
    filters=_by_name(
        Filter("F2300C", 22.75, 5.0, 1.8, 240.0, 4, "MIRIM_MASKLYOT", "MASKLYOT", "LYOT_2300"),
    ),
    default_filter="F2300C",
    metadata=_MIRI,
    exp_type="MIR_LYOT",
    exposure_id={"science": "05101", "psf": "05101"},
    asn_rule="candidate_Asn_Lv3MIRCoron",
    frame_time_s=0.32352,
    n_groups=150,
    frames_per_group=1,
    gain=4.0,
    read_noise=0.1,
    star_flux_jy=6.0,
    wavefront_nm=110.0,
    drift_nm=3.0,
    dither_px=1.0,
    acquisition_px=0.3,
    background_left=0.01,
    planets=((3.4, 55.0, 6.0e-4), (4.6, 205.0, 2.0e-4), (7.0, 320.0, 1.6e-4)),
    ring_radius=6.5,
    ring_angle_deg=25.0,
    ring_brightness=25.0,
)

INSTRUMENTS = {i.name: i for i in (_NIRCAM, _QPM, _LYOT)}


@functools.cache
def load_aperture(name: str) -> Aperture:
    """Read one aperture from ``apertures.json``.

    Parameters
    ----------
    name : str
        SIAF aperture name.

    Returns
    -------
    Aperture
    """
    text = resources.files(__package__).joinpath("apertures.json").read_text(encoding="utf-8")
    entry = json.loads(text)["apertures"][name]
    return Aperture(name, **{key: _hashable(value) for key, value in entry.items()})


def _hashable(value):
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
