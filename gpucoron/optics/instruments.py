"""Coronagraphs of JWST: masks, filters, detectors, SIAF apertures.

``instruments.json`` holds the fields of `Instrument` and `Filter` (NIRCam's by mask and channel),
``apertures.json`` those of `Aperture`; ``bench/siaf_apertures.py`` makes the latter.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from gpucoron.errors import ParameterError

if TYPE_CHECKING:
    from gpucoron.io.exposures import ExposureMeta


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

    def centre_in(self, corner: tuple[int, int]) -> tuple[float, float]:
        """Return the reference pixel (x, y), from 0, in an array that begins at `corner`."""
        x, y = (self.corner[k] + self.reference_pixel[k] - corner[k] - 1 for k in (0, 1))
        return x, y


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
class Bar:
    """A tapered bar along the detector's x. Lengths in arcsec.

    The half width (half transmission in intensity) changes in proportion to x over the middle part,
    and is constant from there to the ends.
    """

    half_width: float  # in the middle of the bar
    taper: float  # change of the half width with x, arcsec per arcsec
    tapered: float = 15.0  # length of the part that is tapered
    length: float = 20.0
    v2: float = 0.0  # of its middle
    middle: float = 0.0  # x of its middle, from the place of the star: see `place_mask`


@dataclass(frozen=True)
class Instrument:
    """A coronagraphic mode: properties that do not change between exposures."""

    name: str
    kind: str  # round, bar, 4qpm, spot
    mask_radius: float  # arcsec: half transmission (of a bar where the star is), or a spot's edge
    hole_radius: float  # arcsec: inner edge of the psfmask
    pupil_rotation_deg: float  # on the detector, counter-clockwise
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
    mask: str | None = None  # as it is chosen, where the instrument has several
    stop_erosion_along_m: float | None = None  # along the detector's x, where it differs
    mask_rotation_deg: float = 0.0  # of the edges of a phase mask
    bar: Bar | None = None


class ExposureOptics(NamedTuple):
    """The coronagraph of an exposure, and where it is on the array."""

    instrument: Instrument
    bandpass: Filter
    mask_centre: tuple[float, float]  # (x, y) px from 0; of a bar: the star's place along it


@functools.cache
def _read(name: str) -> dict[str, Any]:
    return json.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _instrument(name: str, entry: dict[str, Any]) -> Instrument:
    filters = {key: Filter(key, **value) for key, value in entry["filters"].items()}
    return Instrument(name, **{k: _hashable(v) for k, v in entry.items()} | {"filters": filters})


def _modes(name: str, entry: dict[str, Any]) -> Iterator[Instrument]:
    """Make the modes of an instrument: of each mask in its own channel, then in the other."""
    if "masks" not in entry:
        yield _instrument(name, entry)
        return
    common = dict(entry)
    masks, channels = common.pop("masks"), common.pop("channels")
    for rank in range(len(channels)):
        for mask, optics in masks.items():
            channel = list(optics["channels"])[rank]
            yield _instrument(name, _mask_entry(common, mask, optics, channel, channels[channel]))


def _mask_entry(common, mask, optics, channel, readout):
    """Join what is common to an instrument, of one mask, of one channel, and of both."""
    optics, place = dict(optics), dict(optics["channels"][channel])
    del optics["channels"]
    detector, subarray = place.pop("detector"), place.pop("subarray")
    aperture, without = place.pop("aperture"), place.pop("without", ())
    metadata = common["metadata"] | optics["metadata"] | readout["metadata"]
    entry = common | readout | optics | place | {"mask": mask}
    entry["metadata"] = metadata | {"detector": detector, "suffix": detector.lower()}
    names = {"subarray": subarray, "coronmsk": f"MASKA{mask}"}
    entry["filters"] = {
        key: value | names | {"aperture": aperture.format(filter=key)}
        for key, value in readout["filters"].items()
        if key not in without
    }
    if "bar" in entry:
        entry["bar"] = Bar(half_width=entry["mask_radius"], **entry["bar"])
    return entry


#: Every coronagraph; where several take a filter, or have a mask, the usual one comes first.
MODES = tuple(
    mode for name, entry in _read("instruments.json").items() for mode in _modes(name, entry)
)
#: The usual mode of each instrument that can be simulated, by the name that the user gives.
INSTRUMENTS = {name: next(m for m in MODES if m.name == name) for name in _read("instruments.json")}


@functools.cache
def load_aperture(name: str) -> Aperture:
    """Read the aperture of this SIAF name from ``apertures.json``."""
    entry = _read("apertures.json")["apertures"][name]
    return Aperture(name, **{key: _hashable(value) for key, value in entry.items()})


def choose_optics(
    instrument: str, bandpass: str | None = None, mask: str | None = None
) -> tuple[Instrument, Filter]:
    """Return the coronagraph of these names, its bar placed as the filter wants it.

    Parameters
    ----------
    instrument : str
        One of `INSTRUMENTS`.
    bandpass : str or None
        Filter; None is the usual one of the mask.
    mask : str or None
        Mask of NIRCam, such as ``210R`` or ``MASKA210R``; None is the usual one of the filter.

    Raises
    ------
    ParameterError
        No such instrument, mask or filter, or the filter is not offered with the mask.
    """
    modes = [mode for mode in MODES if mode.name == instrument]
    if not modes:
        known = ", ".join(INSTRUMENTS)
        raise ParameterError(f"instrument is {instrument!r}, expected one of {known}")
    if mask is not None:
        masks = list(dict.fromkeys(mode.mask for mode in modes if mode.mask))
        wanted = mask.upper().removeprefix("MASK").removeprefix("A")
        if wanted not in masks:
            expected = f"one of {', '.join(masks)}" if masks else "none, as the filter decides it"
            raise ParameterError(f"mask is {mask!r}, expected {expected} for {instrument}")
        modes = [mode for mode in modes if mode.mask == wanted]
    name = (bandpass or modes[0].default_filter).upper()
    for mode in modes:
        if name in mode.filters:
            return place_mask(mode, mode.filters[name]), mode.filters[name]
    offered = ", ".join(dict.fromkeys(key for mode in modes for key in sorted(mode.filters)))
    place = f"instrument {instrument}" + (f" with mask {modes[0].mask}" if mask else "")
    raise ParameterError(f"filter is {name!r}, expected one of {offered} for {place}")


def place_mask(instrument: Instrument, bandpass: Filter) -> Instrument:
    """Return the instrument with its bar as seen from the star's place; other masks as they are.

    Where the star is along a bar follows from the aperture of the filter.
    """
    if instrument.bar is None:
        return instrument
    bar = instrument.bar
    middle = load_aperture(bandpass.aperture).v2_ref - bar.v2  # x runs against V2
    half = bar.tapered / 2
    radius = bar.half_width - bar.taper * min(max(middle, -half), half)
    placed = dataclasses.replace(bar, middle=middle)
    return dataclasses.replace(instrument, mask_radius=radius, hole_radius=radius, bar=placed)


def optics_of(meta: ExposureMeta) -> ExposureOptics | None:
    """Return the coronagraph of an exposure from its keywords; None where it is not modelled.

    The detector (or the channel), the filter, and the mask by CORONMSK (or SUBARRAY) have to be
    those of a mode in `MODES`, the pupil that of its mask. Where a bar hides the star follows from
    APERNAME, else from the filter; the array begins at SUBSTRT1 and SUBSTRT2, else where the
    subarray (or the detector, if it is FULL) does.
    """
    for mode in MODES:
        bandpass = mode.filters.get((meta.filter or "").strip().upper())
        if bandpass is not None and _is_mode(meta, mode, bandpass):
            bandpass = dataclasses.replace(bandpass, aperture=_aperture_name(meta, bandpass))
            aperture = load_aperture(bandpass.aperture)
            usual = (1, 1) if _is_full(meta) else aperture.corner
            corner = meta.corner_x or usual[0], meta.corner_y or usual[1]
            placed = place_mask(mode, bandpass)
            return ExposureOptics(placed, bandpass, aperture.centre_in(corner))
    return None


def _is_full(meta):
    return (meta.subarray or "").strip().upper().startswith("FULL")


def _is_mode(meta, mode, bandpass):
    from gpucoron.io.agreement import same_name
    from gpucoron.io.names import says_nothing

    def agrees(theirs, ours):
        return not says_nothing(theirs or "") and same_name(theirs, ours)

    ours = mode.metadata
    detector = meta.detector, ours["detector"]
    if says_nothing(meta.detector or ""):
        detector = meta.channel, ours.get("channel", "")
    mask = meta.coronmsk
    if says_nothing(mask or ""):
        mask = (meta.subarray or "").replace("X256", "")
    pupil = says_nothing(meta.pupil or "") or meta.pupil == ours.get("pupil", meta.pupil)
    others = ((meta.instrument, ours["name"]), (mask, bandpass.coronmsk))
    return pupil and agrees(*detector) and all(agrees(*pair) for pair in others)


def _aperture_name(meta, bandpass):
    """Return the subarray's aperture whose reference pixel is that of the exposure.

    The places of the star in full frames are those in the present subarrays.
    """
    named = (meta.aperture or "").strip().upper()
    named = named.replace("FULL_MASKLWB", "400X256_MASKLWB").replace("_FULL_", "_")
    detector, _, mask = bandpass.aperture.partition("_")
    same_mask = named.startswith(detector) and mask.split("_F")[0] in named
    if same_mask and named in _read("apertures.json")["apertures"]:
        return named
    if _is_full(meta) or (meta.subarray or "").strip().upper() == "SUB400X256ALWB":
        return bandpass.aperture.replace("A5_MASKLWB", "A5_400X256_MASKLWB")
    return bandpass.aperture
