"""Images of a star behind a coronagraph, with their derivatives: what `fit_star` fits.

The field behind the Lyot stop is linear in the field of the pupil. The derivative of the image with
respect to a mode of the wavefront is therefore one more propagation through the same mask, of the
pupil's field times the mode: ``dI = 2 Re(conj(E) dE)``. Fields are computed on a pupil of 100
samples, their derivatives on one of 40: errors of a few percent in a derivative slow the fit but
do not move its solution far.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gpucoron.optics.instruments import Filter, Instrument
from gpucoron.optics.telescope import N_PUPIL, Coronagraph, Pupil, make_pupil
from gpucoron.optics.wavefront import (
    fourier_frequencies,
    fourier_modes,
    level,
    segment_modes,
    zernikes,
)

DIAMETER_M = 6.5
DIFFUSION_PX = 0.25  # charge diffusion and capacitive coupling, as in gpucoron.simulate
PAD = 3  # samples on each side of the grid that the response of the pixel reaches
FIELD_SAMPLES, DERIVATIVE_SAMPLES = 100, 40  # across the pupil
LOW_NM, SEGMENT_NM, MIDDLE_NM = 27.0, 8.0, 75.0  # rms of each mode, each mode, all together
MIDDLE_CYCLES = (3.0, 40.0)  # across the pupil, over which MIDDLE_NM are spread as f^-3.2
HIGHEST_CYCLES = 5.0  # of the modes that are fitted, across the pupil
N_LOW = 64  # modes that are no Fourier modes
WIDE_BAND = 0.1  # relative width from which one wavelength does not stand for a filter


@dataclass(frozen=True)
class Grid:
    """Pixels at which images are computed: columns `x` and rows `y` of the array, equidistant."""

    x: np.ndarray
    y: np.ndarray

    @property
    def stride(self) -> int:
        """Distance between samples, px."""
        return int(self.x[1] - self.x[0])

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Columns and rows with PAD more samples on each side."""
        reach = self.stride * np.arange(1, PAD + 1)
        x, y = (np.concatenate([v[0] - reach[::-1], v, v[-1] + reach]) for v in (self.x, self.y))
        return x, y


class StarModel(Protocol):
    """What the fit needs of a model: images of a star of unit flux, and their derivatives."""

    sigma_nm: np.ndarray  # (modes,) prior standard deviation of each coefficient

    def low_orders(self) -> StarModel:
        """Return the model with fewer modes, the first ones, for a start."""

    def wavefront_nm(self, modes_nm) -> float:
        """Return the rms of a wavefront over the pupil, nm."""

    def fields(self, modes_nm, star, mask) -> Any:
        """Return what `image` and `derivatives` take, for positions (x, y) in px of the array."""

    def image(self, fields) -> np.ndarray:
        """Return the image (ny, nx), as a fraction of the star's light."""

    def derivatives(self, fields, modes_nm, star, mask) -> np.ndarray:
        """Return (modes + 4, ny, nx): by each mode (1/nm), star x and y, mask x and y (1/px)."""


class CoronagraphModel(StarModel):
    """Images from the optics of a coronagraph, with modes of the wavefront.

    The modes are ten low orders, piston and tilt of every segment, and Fourier modes up to `cycles`
    across the pupil. Piston and tilt over the Lyot stop are taken out of every mode, so that the
    position of the star is that of the core of its image without the mask.

    Parameters
    ----------
    instrument, bandpass : Instrument, Filter
    scale : (float, float), arcsec
        Pixel size along x and y.
    grid : Grid
    cycles : float
        Highest spatial frequency of the modes.
    rotation_deg, stop_scale, radius_scale : float
        Errors of the model, to find out what they do: of the angle of the pupil, of the erosion of
        the Lyot stop and of the size of the mask.
    """

    def __init__(
        self,
        instrument: Instrument,
        bandpass: Filter,
        scale: tuple[float, float],
        grid: Grid,
        cycles: float = HIGHEST_CYCLES,
        *,
        rotation_deg: float = 0.0,
        stop_scale: float = 1.0,
        radius_scale: float = 1.0,
    ):
        self.grid, self.scale = grid, scale
        count = 2 if bandpass.width_um > WIDE_BAND * bandpass.centre_um else 1
        spread = (np.arange(count) + 0.5) / count - 0.5
        wavelengths = (bandpass.centre_um + bandpass.width_um * spread) * 1e-6
        turn = instrument.mask_rotation_deg
        rotation = instrument.pupil_rotation_deg + rotation_deg - turn
        erosion, along = instrument.stop_erosion_m, instrument.stop_erosion_along_m
        stop = erosion * stop_scale, along and along * stop_scale
        radius = instrument.mask_radius * radius_scale
        optics = instrument.kind, radius, wavelengths, scale, instrument.bar
        self._fine, self._coarse = (
            _Propagator((rotation, *stop, samples, turn), optics, grid, cycles)
            for samples in (FIELD_SAMPLES, DERIVATIVE_SAMPLES)
        )
        self.sigma_nm = _prior(cycles)
        self._blur = [_pixel_response(v.size, grid.stride) for v in (grid.y, grid.x)]

    def low_orders(self) -> CoronagraphModel:
        """Return the same model with low orders and segments alone."""
        model = copy.copy(self)
        model.sigma_nm = self.sigma_nm[:N_LOW]
        model._fine, model._coarse = (p.first(N_LOW) for p in (self._fine, self._coarse))
        return model

    def wavefront_nm(self, modes_nm):
        """Return the rms of a wavefront over the pupil, nm; modes are not orthogonal."""
        return 1e9 * self._coarse.path_rms(modes_nm)

    def fields(self, modes_nm, star, mask):
        """Return the fields (wavelengths, ny + pad, nx + pad) on the detector."""
        return self._fine.fields(modes_nm, np.subtract(star, mask), mask)

    def image(self, fields):
        """Return the image (ny, nx), as a fraction of the star's light per pixel."""
        return self._integrate(np.mean(fields.real**2 + fields.imag**2, axis=0))

    def derivatives(self, fields, modes_nm, star, mask):
        """Return the derivatives of the image (modes + 4, ny, nx): see `StarModel`."""
        by = self._coarse.derivatives(fields, modes_nm, np.subtract(star, mask), mask)
        by[-2:] = -by[-2:] - by[-4:-2]  # the mask moves: under the pixels, and under the star
        return self._integrate(by)

    def _integrate(self, images):
        return self._blur[0] @ images @ self._blur[1].T


class _Propagator(Coronagraph):
    """Fields on the detector, and their derivatives, from one sampling of the pupil."""

    def __init__(self, sampling, optics, grid, cycles):
        self._x, self._y = grid.padded()
        kind, radius, wavelengths, scale, bar = optics
        super().__init__(
            binned_pupil(*sampling), kind, radius, wavelengths, scale, self._x, self._y, bar
        )
        self._modes = _modes(*sampling, cycles) * np.float32(1e-9)
        self._tilts = [tilt.astype(np.float32) for tilt in self.pupil.tilts(scale)]
        self._centre: tuple[float, float] | None = None

    def first(self, count):
        """Return the same with the first `count` modes."""
        other = copy.copy(self)
        other._modes = self._modes[:count]
        return other

    def path_rms(self, modes_nm):
        """Return the rms of the path difference over the aperture, m."""
        return float(np.std(self._opd(modes_nm)[self.pupil.aperture > 0.5]))

    def _opd(self, modes_nm):
        return np.tensordot(np.asarray(modes_nm, np.float32), self._modes, axes=1)

    def _pupil_fields(self, modes_nm, offset):
        """Yield wave number, field of the pupil and mask of every wavelength."""
        opd = self._opd(modes_nm)
        tilt_x, tilt_y = self._tilts
        path = opd + tilt_x * np.float32(offset[0]) + tilt_y * np.float32(offset[1])
        for wavelength, mask in zip(self.wavelengths, self.masks, strict=True):
            k = np.float32(2 * np.pi / wavelength)
            field = np.empty(path.shape, np.complex64)
            field.real, field.imag = np.cos(k * path), np.sin(k * path)
            yield k, field * self.pupil.aperture, mask

    def _stopped(self, mask, fields):
        return mask(fields)[(..., *self._box)] * self._stop

    def _to_detector(self, centre):
        """Return the transforms to the detector of every wavelength; the last ones are kept."""
        centre = float(centre[0]), float(centre[1])
        if centre != self._centre:
            x, y = self._x - centre[0], self._y - centre[1]
            self._transforms = [self._transform(w, x, y) for w in self.wavelengths]
            self._centre = centre
        return self._transforms

    def fields(self, modes_nm, offset, centre):
        fields = []
        pupil_fields = self._pupil_fields(modes_nm, offset)
        for transform, (_, field, mask) in zip(
            self._to_detector(centre), pupil_fields, strict=True
        ):
            fields.append(transform(self._stopped(mask, field)))
        return np.array(fields)

    def derivatives(self, fields, modes_nm, offset, centre):
        """Return those by the modes, by the star's offset and by the pixels' position."""
        tilt_x, tilt_y = self._tilts
        total = np.zeros((len(self._modes) + 4, *fields.shape[1:]), np.float32)
        pupil_fields = self._pupil_fields(modes_nm, offset)
        transforms = self._to_detector(centre)
        for image_field, transform, (k, field, mask) in zip(
            fields, transforms, pupil_fields, strict=True
        ):
            m = len(self._modes)
            changed = np.empty((m + 3, *field.shape), np.complex64)
            np.multiply(self._modes, field, out=changed[:m])
            changed[m:] = field * tilt_x, field * tilt_y, field
            behind = np.empty((m + 4, *self._stop.shape), np.complex64)
            behind[: m + 3] = self._stopped(mask, changed)
            behind[m + 3] = -behind[m + 2] * tilt_y[self._box]
            behind[m + 2] *= -tilt_x[self._box]
            change = transform(behind)
            total += (-2 * k / len(fields)) * (
                image_field.real * change.imag - image_field.imag * change.real
            )
        return total


@functools.lru_cache(maxsize=16)
def binned_pupil(rotation_deg, erosion_m, along_m, samples, turn_deg=0.0) -> Pupil:
    """Make the pupil with this number of samples, means of finer ones where these are few."""
    bins = math.ceil(N_PUPIL / samples)
    if bins == 1:
        return make_pupil(rotation_deg, erosion_m, samples, along_m, turn_deg)
    fine = binned_pupil(rotation_deg, erosion_m, along_m, samples * bins, turn_deg)

    def binned(image):
        shape = samples, bins, samples, bins
        return image.reshape(shape).mean(axis=(1, 3), dtype=np.float32)

    middle = slice(bins // 2, None, bins)
    axis = fine.axis.reshape(samples, bins).mean(axis=1)
    segment = fine.segment[middle, middle]
    aperture, stop = binned(fine.aperture), binned(fine.stop)
    return Pupil(aperture, stop, segment, fine.centres, axis, turn_deg)


@functools.lru_cache(maxsize=8)
def _modes(rotation_deg, erosion_m, along_m, samples, turn_deg, cycles):
    """Return the modes of a pupil, (modes, n, n) float32, of unit rms."""
    pupil = binned_pupil(rotation_deg, erosion_m, along_m, samples, turn_deg)
    return wavefront_modes(pupil, cycles)


def wavefront_modes(pupil: Pupil, cycles: float = HIGHEST_CYCLES) -> np.ndarray:
    """Return the modes of `CoronagraphModel` on a pupil: (modes, n, n) float32, of unit rms."""
    middle = fourier_modes(pupil, fourier_frequencies(MIDDLE_CYCLES[0], cycles))
    return level([*zernikes(pupil), *segment_modes(pupil), *middle], pupil)


def _prior(cycles):
    """Return the standard deviation of each mode, nm."""
    every = np.hypot(*fourier_frequencies(*MIDDLE_CYCLES).T) ** -3.2
    own = np.hypot(*fourier_frequencies(MIDDLE_CYCLES[0], cycles).T) ** -3.2
    middle = MIDDLE_NM * np.sqrt(own / (2 * every.sum()))
    return np.concatenate([np.full(10, LOW_NM), np.full(54, SEGMENT_NM), np.repeat(middle, 2)])


def _pixel_response(size, stride):
    """Return the matrix (size, size + 2 PAD) that integrates samples over pixels along one axis.

    The Fourier transform of the response is a sinc for the pixel times a Gaussian for diffusion, up
    to the highest frequency that the samples have.
    """
    frequency = np.linspace(-0.5, 0.5, 2001) / stride
    transfer = np.sinc(frequency) * np.exp(-2 * (np.pi * DIFFUSION_PX * frequency) ** 2)
    lag = np.arange(-PAD, PAD + 1)
    kernel = (transfer * np.cos(2 * np.pi * frequency * stride * lag[:, None])).mean(axis=1)
    kernel /= kernel.sum()
    matrix = np.zeros((size, size + 2 * PAD), np.float32)
    for shift, value in enumerate(kernel):
        matrix[np.arange(size), np.arange(size) + shift] = value
    return matrix
