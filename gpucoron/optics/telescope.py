"""Images of point sources through JWST's coronagraphs: segmented pupil, masks, Lyot stops.

Light is propagated from the pupil to the Lyot stop through the masks of `gpucoron.optics.masks`.
A last matrix Fourier transform samples the field at the detector's pixel centres. Lengths are
in metres, angles in arcseconds; the pupil's x and y are parallel to the detector's, or turned
against them with the edges of a phase mask (`Pupil.turn_deg`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from gpucoron.ops.kriging_tables import CUTOFF
from gpucoron.optics.detector_transform import DetectorTransform
from gpucoron.optics.instruments import Bar, Filter, Instrument, load_aperture, optics_of
from gpucoron.optics.masks import MASKS, RAD, BarMask

if TYPE_CHECKING:
    from gpucoron.io.exposures import ExposureMeta

SEGMENT_M = 1.32
GAP_M = 0.003
STRUT_M = 0.11
WIDTH_M = 6.72
COARSEST = 0.25  # cycles per pixel, of `cutoff_of`
N_PUPIL = 200
_FINE = 3
_LEAST_PERIOD, _PERIOD = 1.05, 1.25  # of an image from a sampled pupil, in fields of view


@dataclass(frozen=True)
class Pupil:
    """Entrance pupil and Lyot stop on one grid."""

    aperture: np.ndarray  # (n, n) float32, transmission 0 to 1
    stop: np.ndarray  # (n, n) float32, likewise
    segment: np.ndarray  # (n, n) int8, index of the nearest mirror segment, 0 to 17
    centres: np.ndarray  # (18, 2) float64, segment centres (x, y), m
    axis: np.ndarray  # (n,) float64, coordinate of the samples along either axis, m
    turn_deg: float = 0.0  # of the grid on the detector, counter-clockwise

    @property
    def step(self) -> float:
        """Distance between samples, m."""
        return float(self.axis[1] - self.axis[0])

    @property
    def turn(self) -> tuple[float, float]:
        """Cosine and sine of the grid's angle on the detector."""
        angle = np.deg2rad(self.turn_deg)
        return float(np.cos(angle)), float(np.sin(angle))

    def tilts(self, scale: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
        """Path difference of a source one detector pixel along x, and along y: (n, n) each, m."""
        (c, s), x, y = self.turn, self.axis, self.axis[:, None]
        return (c * x - s * y) * (scale[0] * RAD), (s * x + c * y) * (scale[1] * RAD)


def _segment_centres():
    pitch = SEGMENT_M + GAP_M
    axes = np.deg2rad([30.0, 90.0])
    basis = pitch * np.stack([np.cos(axes), np.sin(axes)], axis=1)
    cells = [
        (i, j) for i in range(-2, 3) for j in range(-2, 3) if abs(i + j) <= 2 and (i, j) != (0, 0)
    ]
    return np.array([i * basis[0] + j * basis[1] for i, j in cells])


def _hexagon_depth(x, y):
    """Distance inside the edge of a segment centred on the origin, m; negative outside."""
    angles = np.deg2rad([30.0, 90.0, 150.0])
    reach = [np.abs(x * np.cos(a) + y * np.sin(a)) for a in angles]
    return SEGMENT_M / 2 - np.max(reach, axis=0)


def _strut_depth(x, y):
    """Distance inside the edge of the nearest strut, m; negative outside."""
    depth, from_centre = [], np.hypot(x, y)
    for angle in np.deg2rad([90.0, 240.0, 300.0]):
        along = x * np.cos(angle) + y * np.sin(angle)
        across = np.abs(-x * np.sin(angle) + y * np.cos(angle))
        depth.append(np.where(along > 0, STRUT_M / 2 - across, -from_centre))
    return np.max(depth, axis=0)


def _to_detector(points, rotation_deg):
    """Turn points (n, 2) of the telescope to the axes of the detector."""
    turn = np.deg2rad(rotation_deg)
    return points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])


def _grid(n, rotation_deg):
    axis = (np.arange(n) - (n - 1) / 2) * (WIDTH_M / n)
    turn = np.deg2rad(rotation_deg)
    x = axis * np.cos(turn) + axis[:, None] * np.sin(turn)
    y = -axis * np.sin(turn) + axis[:, None] * np.cos(turn)
    return axis, x, y


def longest(turn_deg: float) -> float:
    """Return how much longer a square's side is along the axes of a turned one that holds it."""
    return float(abs(np.cos(np.deg2rad(turn_deg))) + abs(np.sin(np.deg2rad(turn_deg))))


def pupil_samples(wavelength: float, field: float) -> int:
    """Samples across the pupil that a field of view (arcsec) needs at a wavelength (m).

    The image computed from a sampled pupil repeats itself; its period has to be larger than the
    field, twice the distance from the star to the farthest pixel. `N_PUPIL` if that is enough, else
    a multiple of 20.
    """
    samples = field * RAD * WIDTH_M / wavelength
    if _LEAST_PERIOD * samples <= N_PUPIL:
        return N_PUPIL
    return 20 * int(np.ceil(_PERIOD * samples / 20))


def _stop(n, rotation_deg, erosion_m, along_m):
    axis, x, y = _grid(n * _FINE, rotation_deg)
    mirror, centres = np.zeros(x.shape, bool), _segment_centres()
    reach = (SEGMENT_M / 2 + GAP_M) / np.cos(np.pi / 6) + GAP_M  # of a corner, and more
    for (cx, cy), place in zip(centres, _to_detector(centres, rotation_deg), strict=True):
        columns, rows = (slice(*np.searchsorted(axis, (v - reach, v + reach))) for v in place)
        box = rows, columns
        mirror[box] |= _hexagon_depth(x[box] - cx, y[box] - cy) > -GAP_M
    step = axis[1] - axis[0]
    clear = mirror & (_strut_depth(x, y) < 0)
    if along_m is None:
        inside = ndimage.distance_transform_edt(clear) * step >= erosion_m
    else:
        scaled = (step / erosion_m, step / along_m)
        inside = ndimage.distance_transform_edt(clear, sampling=scaled) >= 1
    return inside.reshape(n, _FINE, n, _FINE).mean(axis=(1, 3), dtype=np.float32)


def make_pupil(
    rotation_deg: float,
    erosion_m: float,
    n: int = N_PUPIL,
    along_m: float | None = None,
    turn_deg: float = 0.0,
) -> Pupil:
    """Make the segmented pupil and a Lyot stop: the pupil, eroded from every edge.

    Parameters
    ----------
    rotation_deg : float
        Angle of the pupil on its grid, counter-clockwise.
    erosion_m : float
        Distance of the stop from the outer edge, the central obscuration and the struts. Gaps
        between segments are ignored.
    n : int
        Samples across ``WIDTH_M``; see `pupil_samples`.
    along_m : float or None
        Distance along the detector's x, where it differs: behind a bar along x, light is diffracted
        across the bar only, and `erosion_m` is the distance along y.
    turn_deg : float
        Angle of the grid on the detector, counter-clockwise.
    """
    axis, x, y = _grid(n, rotation_deg)
    step = axis[1] - axis[0]
    centres = _segment_centres()
    depth = np.array([_hexagon_depth(x - cx, y - cy) for cx, cy in centres])
    aperture = np.clip(0.5 + depth / step, 0, 1).sum(axis=0)
    strut = _strut_depth(x, y)
    half_width = np.clip(0.5 - np.abs(strut) / step, 0, 1)
    clear = np.where(strut > 0, half_width, 1 - half_width)
    return Pupil(
        (aperture * clear).astype(np.float32),
        _stop(n, rotation_deg, erosion_m, along_m),
        np.argmax(depth, axis=0).astype(np.int8),
        _to_detector(centres, rotation_deg),
        axis,
        turn_deg,
    )


class Coronagraph:
    """Images of point sources through one coronagraph, sampled at pixel centres.

    Parameters
    ----------
    pupil : Pupil
    kind : str
        ``round``, ``bar``, ``4qpm`` or ``spot``.
    radius : float, arcsec
        Half-transmission radius of a round mask, half width of a bar at the star's place, radius of
        a spot; unused for ``4qpm``.
    wavelengths : (nw,) float64, m
        With equal weights.
    scale : (float, float), arcsec
        Pixel size along x and y.
    columns, rows : (nx,), (ny,) float64, px
        Pixel centres counted from the mask centre.
    bar : Bar or None
        Taper and ends of a bar; None is a uniform bar of `radius` across the field.
    """

    def __init__(self, pupil, kind, radius, wavelengths, scale, columns, rows, bar=None):
        self.pupil = pupil
        self.wavelengths = np.asarray(wavelengths, dtype=np.float64)
        self.scale = scale
        if kind == "bar":
            bar = bar or Bar(half_width=radius, taper=0.0, length=np.inf)
            self.masks = [BarMask(bar, w, pupil) for w in self.wavelengths]
        else:
            self.masks = [MASKS[kind](radius, w, pupil) for w in self.wavelengths]
        used_y, used_x = (np.flatnonzero(pupil.stop.any(axis=a)) for a in (1, 0))
        self._box = (slice(used_y[0], used_y[-1] + 1), slice(used_x[0], used_x[-1] + 1))
        self._stop = pupil.stop[self._box]
        self._transforms = [self._transform(w, columns, rows) for w in self.wavelengths]

    def _transform(self, wavelength, columns, rows):
        # of edges that are finer than the samples, too: the square would lose their light
        energy = float(np.sum(self.pupil.aperture[self._box] * self._stop, dtype=np.float64))
        steps = (self.scale[0] * RAD, self.scale[1] * RAD)
        pixel = np.sqrt(steps[0] * steps[1] / energy) * self.pupil.step / wavelength
        x, y = (np.asarray(v) * s for v, s in zip((columns, rows), self.scale, strict=True))
        return DetectorTransform(self.pupil, self._box, wavelength, x, y, pixel)

    @cached_property
    def reach_px(self) -> tuple[float, float]:
        """Largest source offset (x, y) from the mask that the pupil sampling supports, px."""
        limit = 0.45 * self.wavelengths.min() / self.pupil.step / RAD / longest(self.pupil.turn_deg)
        return limit / self.scale[0], limit / self.scale[1]

    def image(
        self, opd: np.ndarray, offset_px: tuple[float, float], masked: bool = True
    ) -> np.ndarray:
        """Intensity of a point source at an offset (x, y) in pixels from the mask centre.

        `opd` is the wavefront error over the pupil, (n, n) float32, m; without `masked` there is no
        mask (but the Lyot stop). Returns (ny, nx) float64, the fraction of the light per pixel; 1
        is the light of a source far from the mask after the Lyot stop.
        """
        total: Any = 0.0
        fields = self.fields_behind_mask(opd, offset_px, masked)
        for field, transform in zip(fields, self._transforms, strict=True):
            amplitude = transform(field)
            total = total + (amplitude.real**2 + amplitude.imag**2)
        return total.astype(np.float64) / len(self.wavelengths)

    def fields_behind_mask(
        self, opd: np.ndarray | float, offset_px: tuple[float, float], masked: bool = True
    ) -> Iterator[np.ndarray]:
        """Yield the field behind the Lyot stop at each wavelength; arguments as for `image`.

        It is that of the part of the pupil that the stop leaves, (rows, columns) complex64.
        """
        tilt = [self.pupil.axis * (o * RAD) for o in self._on_grid(offset_px)]
        path = opd + tilt[0].astype(np.float32) + tilt[1].astype(np.float32)[:, None]
        for wavelength, mask in zip(self.wavelengths, self.masks, strict=True):
            phase = path * np.float32(2 * np.pi / wavelength)
            field = np.empty(phase.shape, np.complex64)
            field.real, field.imag = np.cos(phase), np.sin(phase)
            field *= self.pupil.aperture
            yield (mask(field) if masked else field)[self._box] * self._stop

    def _on_grid(self, offset_px):
        """Offset (x, y) in arcsec along the axes of the pupil's grid."""
        (c, s), (x, y) = (
            self.pupil.turn,
            (o * w for o, w in zip(offset_px, self.scale, strict=True)),
        )
        return c * x + s * y, c * y - s * x

    def image_about_source(
        self, opd: np.ndarray | float, offset_px: tuple[float, float], masked: bool = True
    ) -> tuple[np.ndarray, float]:
        """Image with `columns` and `rows` counted from the source, and all light behind the stop.

        Arguments and unit as for `image`. The light is a fraction of that without the mask, also
        outside of the columns and rows.
        """
        total: Any = 0.0
        light = 0.0
        open_pupil = self.pupil.aperture[self._box] * self._stop
        for field, wavelength, transform in zip(
            self.fields_behind_mask(opd, offset_px, masked),
            self.wavelengths,
            self._transforms,
            strict=True,
        ):
            light += np.vdot(field, field).real / np.vdot(open_pupil, open_pupil)
            turns = [o * RAD / wavelength for o in self._on_grid(offset_px)]
            back = [
                np.exp(-2j * np.pi * t * self.pupil.axis[b]).astype(np.complex64)
                for t, b in zip(turns, self._box[::-1], strict=True)
            ]
            amplitude = transform(field * back[0] * back[1][:, None])
            total = total + (amplitude.real**2 + amplitude.imag**2)
        return total / len(self.wavelengths), float(light) / len(self.wavelengths)


def cutoff_of(meta: ExposureMeta) -> float:
    """Return the spatial frequency beyond which an exposure's images hold no structure.

    That is D / lambda at the blue edge of the filter, with D the width of the pupil and a margin of
    2 % for the slopes of the edge, in cycles per pixel; 0.5, which is right for any image, where
    this is finer or the optics are not modelled. It is 0.25 at least: how smooth coarser images are
    is known less well than their pixels.
    """
    known = optics_of(meta)
    if known is None:
        return CUTOFF
    bandpass = known.bandpass
    blue_m = (bandpass.centre_um - bandpass.width_um / 2) * 1e-6
    pixel = max(load_aperture(bandpass.aperture).scale) * RAD
    return min(CUTOFF, max(COARSEST, 1.02 * WIDTH_M / blue_m * pixel))


def wavelengths_of(bandpass: Filter) -> np.ndarray:
    """Wavelengths that stand for a filter, with equal weights: (nw,) float64, m."""
    n = bandpass.n_wavelengths
    spread = (np.arange(n) + 0.5) / n - 0.5
    return (bandpass.centre_um + bandpass.width_um * spread) * 1e-6


def pupil_of(instrument: Instrument, bandpass: Filter, field: float = 0.0) -> Pupil:
    """Pupil and Lyot stop of a coronagraph, sampled for a field of view of `field` arcsec."""
    return make_pupil(
        instrument.pupil_rotation_deg - instrument.mask_rotation_deg,
        instrument.stop_erosion_m,
        pupil_samples(
            wavelengths_of(bandpass).min(), field * longest(instrument.mask_rotation_deg)
        ),
        instrument.stop_erosion_along_m,
        instrument.mask_rotation_deg,
    )


def coronagraph_of(
    instrument: Instrument, bandpass: Filter, pupil: Pupil, scale, columns, rows
) -> Coronagraph:
    """Coronagraph of a mode and filter; see `Coronagraph` for `scale`, `columns` and `rows`."""
    return Coronagraph(
        pupil,
        instrument.kind,
        instrument.mask_radius,
        wavelengths_of(bandpass),
        scale,
        columns,
        rows,
        instrument.bar,
    )
