"""Noiseless images of star, planets, disk and background through the coronagraph."""

from __future__ import annotations

import numpy as np
from scipy import fft

from gpucoron.optics.instruments import Filter, Instrument
from gpucoron.optics.masks import bar_opacity
from gpucoron.optics.telescope import coronagraph_of, pupil_of
from gpucoron.optics.wavefront import Wavefront
from gpucoron.simulate.geometry import Pointing, Window

MARGIN = 8  # px around the window, so that FFTs do not wrap around into it
DIFFUSION_PX = 0.25  # charge diffusion and capacitive coupling


def offset_sky(ra: float, dec: float, separation: float, angle_deg: float) -> tuple[float, float]:
    """Sky position (deg) at a separation (arcsec) and position angle (north over east)."""
    d, s, a = np.deg2rad(dec), np.deg2rad(separation / 3600), np.deg2rad(angle_deg)
    dec2 = np.arcsin(np.sin(d) * np.cos(s) + np.cos(d) * np.sin(s) * np.cos(a))
    turn = np.arctan2(np.sin(a) * np.sin(s) * np.cos(d), np.cos(s) - np.sin(d) * np.sin(dec2))
    return float(ra + np.rad2deg(turn)) % 360, float(np.rad2deg(dec2))


class Scene:
    """Noiseless images (MJy/sr) of one instrument configuration."""

    def __init__(self, instrument: Instrument, bandpass: Filter, window: Window):
        self.instrument, self.bandpass, self.window = instrument, bandpass, window
        scale = window.aperture.scale
        self.pixel_sr = scale[0] * scale[1] * (np.pi / 180 / 3600) ** 2
        ny, nx = (n + 2 * MARGIN for n in window.shape)
        self._columns, self._rows = np.arange(nx) - MARGIN, np.arange(ny) - MARGIN
        offsets = self._arcsec(self._columns, self._rows)
        self.pupil = pupil_of(instrument, bandpass, 2 * max(np.abs(o).max() for o in offsets))
        self.coronagraph = coronagraph_of(
            instrument,
            bandpass,
            self.pupil,
            scale,
            self._columns - window.centre[0],
            self._rows - window.centre[1],
        )
        self._fy, self._fx = fft.fftfreq(ny)[:, None], fft.rfftfreq(nx)
        blur = np.exp(-2 * (np.pi * DIFFUSION_PX) ** 2 * (self._fx**2 + self._fy**2))
        self._otf = np.sinc(self._fx) * np.sinc(self._fy) * blur
        self.background = self._background()

    def flux_to_pixels(self, flux_jy: float) -> float:
        """Sum over the pixels of the image of a source, MJy/sr."""
        return flux_jy * 1e-6 / self.pixel_sr

    def star(self, flux_jy: float, opd: np.ndarray, position: tuple[float, float]) -> np.ndarray:
        """Fourier transform of the image of a star behind the mask, as `image` takes it.

        `opd` is the wavefront error (n, n), m; `position` is x, y in pixels from 0.
        """
        image = self.coronagraph.image(opd, self._offset(position))
        return fft.rfft2(self.flux_to_pixels(flux_jy) * image)

    def companions(
        self,
        sources: list[tuple[float, tuple[float, float]]],
        opd: np.ndarray,
        disk: np.ndarray | None = None,
    ) -> np.ndarray:
        """Fourier transform of the image of planets (Jy, (x, y)) and disk (from `ring`)."""
        image = np.zeros((self._rows.size, self._columns.size))
        reach = self.coronagraph.reach_px
        for flux, position in sources:
            offset = self._offset(position)
            if abs(offset[0]) < reach[0] and abs(offset[1]) < reach[1]:
                image += self.flux_to_pixels(flux) * self.coronagraph.image(opd, offset)
        spectrum = fft.rfft2(image)
        if disk is not None:
            home = [round(c) for c in self.window.centre]
            psf = self.coronagraph.image(opd, self._offset(home), masked=False)
            shift = np.exp(
                2j * np.pi * (self._fx * (home[0] + MARGIN) + self._fy * (home[1] + MARGIN))
            )
            spectrum += fft.rfft2(disk) * fft.rfft2(psf) * shift
        return spectrum

    def image(
        self,
        spectrum: np.ndarray,
        companions: np.ndarray | None = None,
        jitter_px: tuple[float, float] = (0.0, 0.0),
    ) -> np.ndarray:
        """Integrate over pixels and add the background: (ny, nx) float64, MJy/sr.

        Companions are shifted by `jitter_px` (x, y).
        """
        if companions is not None:
            phase = np.exp(-2j * np.pi * (self._fx * jitter_px[0] + self._fy * jitter_px[1]))
            spectrum = spectrum + companions * phase
        shape = (self._rows.size, self._columns.size)
        inner = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
        return fft.irfft2(spectrum * self._otf, shape)[inner] + self.background

    def ring(
        self, pointing: Pointing, star: tuple[float, float], inclination_deg: float = 77.0
    ) -> np.ndarray:
        """Surface brightness of an inclined debris ring behind the mask, before convolution.

        An inclination of 90 is edge-on. Returns (ny + 2 margin, nx + 2 margin) float64, MJy/sr.
        """
        total = np.zeros(())
        for dx, dy in ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25)):
            x, y = np.meshgrid(self._columns + dx, self._rows + dy)
            ra, dec = pointing.pixel_to_sky(x, y)
            east = (ra - star[0]) * 3600 * np.cos(np.deg2rad(star[1]))
            north = (dec - star[1]) * 3600
            shine = self._ring_brightness(east, north, inclination_deg)
            total = total + shine * self._transmission(*self._arcsec(x, y)) / 4
        return total

    def _ring_brightness(self, east, north, inclination_deg):
        radius = self.instrument.ring_radius
        angle = np.deg2rad(self.instrument.ring_angle_deg)
        tilt = np.deg2rad(inclination_deg)
        along = east * np.sin(angle) + north * np.cos(angle)
        across = (east * np.cos(angle) - north * np.sin(angle)) / np.cos(tilt)
        r = np.hypot(along, across)
        profile = np.where(
            r < radius,
            np.exp(-0.5 * ((r - radius) / (0.06 * radius)) ** 2),
            np.exp(-(r - radius) / (0.16 * radius)),
        )
        forward = 0.25  # Henyey-Greenstein
        cosine = -np.sin(tilt) * across / np.maximum(r, 1e-9)
        phase = (1 + forward**2 - 2 * forward * cosine) ** -1.5
        return self.instrument.ring_brightness * profile * phase

    def _transmission(self, x, y):
        """Transmission of the mask at an offset from its centre (arcsec)."""
        r = np.hypot(x, y)
        if self.instrument.bar is not None:
            return (1 - bar_opacity(self.instrument.bar, x, y)) ** 2
        if self.instrument.kind == "spot":
            return np.clip((r - self.instrument.mask_radius) / 0.3 + 0.5, 0, 1)
        if self.instrument.kind == "4qpm":
            width = 0.5 * self.bandpass.centre_um * 1e-6 / 6.0 / (np.pi / 180 / 3600)
            turn = np.deg2rad(self.instrument.mask_rotation_deg)
            x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
            return 1 - np.exp(-((np.minimum(np.abs(x), np.abs(y)) / width) ** 2))
        return 1 - np.exp2(-((r / self.instrument.mask_radius) ** 2))

    def _background(self):
        """Zodiacal and thermal background, with stray light along an edge of a phase mask."""
        level = np.full(self.window.shape, self.bandpass.background)
        if self.instrument.kind != "4qpm":
            return level
        x, y = self._arcsec(
            *np.meshgrid(np.arange(self.window.shape[1]), np.arange(self.window.shape[0]))
        )
        turn = np.deg2rad(self.instrument.mask_rotation_deg)
        across = y * np.cos(turn) - x * np.sin(turn)
        glow = np.exp(-0.5 * (across / 0.45) ** 2) * (0.4 + 0.6 * np.exp(-np.abs(x) / 4.0))
        return level * (1 + 0.06 * glow)

    def _arcsec(self, x, y):
        scale = self.window.aperture.scale
        return (x - self.window.centre[0]) * scale[0], (y - self.window.centre[1]) * scale[1]

    def _offset(self, position):
        return position[0] - self.window.centre[0], position[1] - self.window.centre[1]

    def wavefront(
        self, times_days: np.ndarray, static_nm: float, drift_nm: float, rng: np.random.Generator
    ) -> Wavefront:
        """Wavefront errors for this pupil; see `Wavefront`."""
        return Wavefront(self.pupil, static_nm, drift_nm, times_days, rng)
