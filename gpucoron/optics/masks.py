"""Coronagraph masks: fields of the pupil behind each kind of mask.

Light is propagated from the pupil to the Lyot stop, where possible without sampling the focal plane
of the mask. A mask that multiplies the focal-plane field convolves the pupil-plane
field with its own Fourier transform, and each of the masks here has a short or separable one:

- round band-limited mask, amplitude ``1 - (2 J1(s r) / (s r))^2``: the second term is the
  autocorrelation of a disk, a compact kernel, applied with one FFT pair;
- tapered bar, amplitude ``1 - sinc^2(y / w(x))``: the second term's transform is a triangle across
  the bar, as short as the kernel of a round mask, so that one FFT pair on a grid that is little
  larger than the pupil holds it (band-limited masks: Kuchner & Traub 2002, ApJ 570, 900; shapes and
  sizes of NIRCam's: Krist et al. 2010, Proc. SPIE 7731, 77313J);
- four-quadrant phase mask, ``sign(x) sign(y)``: one Hilbert transform along each axis, applied
  as two small matrix products;
- opaque spot: the light that hits the spot is computed on the spot alone with matrix Fourier
  transforms and subtracted (semi-analytic method, Soummer et al. 2007, Opt. Express 15, 15935).

Lengths are in metres, angles in arcseconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import fft

from gpucoron.optics.instruments import Bar

RAD = np.pi / 180 / 3600
_HALF_SINC = 1.7996025  # where 1 - sinc^2 is half, in intensity


class RoundMask:
    """Band-limited mask, transmission one half (in intensity) at `half_radius` arcseconds."""

    def __init__(self, half_radius, wavelength, pupil):
        reach = 2.1005 / (half_radius * RAD) * wavelength / np.pi
        n = fft.next_fast_len(pupil.axis.size + int(np.ceil(reach / pupil.step)))
        axis = fft.fftfreq(n, 1 / n) * pupil.step
        q = np.minimum(np.hypot(axis, axis[:, None]) / reach, 1.0)
        kernel = np.arccos(q) - q * np.sqrt(1 - q * q)
        self.transfer = fft.fft2(kernel / kernel.sum()).real.astype(np.float32)
        self.n = n

    def __call__(self, field):
        """Return fields (..., n, n) of the pupil behind the mask."""
        size = field.shape[-1]
        blocked = fft.ifft2(fft.fft2(field, (self.n, self.n)) * self.transfer)
        return field - blocked[..., :size, :size]


class PhaseMask:
    """Four quadrants of alternating sign, edges along the axes of the pupil's grid."""

    def __init__(self, unused_radius, unused_wavelength, pupil):
        n = pupil.axis.size
        lag = np.subtract.outer(np.arange(n), np.arange(n))
        with np.errstate(divide="ignore", invalid="ignore"):
            hilbert = np.where(lag % 2 == 1, 2 / (np.pi * lag), 0.0)
        self.matrix = hilbert.astype(np.float32)

    def __call__(self, field):
        """Return fields (..., n, n) of the pupil behind the mask."""

        def transform(part):
            return self.matrix @ part @ self.matrix.T

        return -(transform(field.real) + 1j * transform(field.imag))


class Spot:
    """Opaque disk of `radius` arcseconds."""

    SAMPLES = 72

    def __init__(self, radius, wavelength, pupil):
        n, fine = self.SAMPLES, 8
        step = 2 * radius / n
        x = (np.arange(n * fine) - (n * fine - 1) / 2) * (step / fine)
        disk = np.hypot(x, x[:, None]) <= radius
        self.disk = disk.reshape(n, fine, n, fine).mean(axis=(1, 3)).astype(np.float32)
        angle = x.reshape(n, fine).mean(axis=1) * RAD
        phase = 2j * np.pi * np.outer(angle, pupil.axis) / wavelength
        self.forward = np.exp(-phase).astype(np.complex64)
        scale = pupil.step * step * RAD / wavelength
        self.back = (np.exp(phase).T * scale).astype(np.complex64)
        self.scale = scale

    def __call__(self, field):
        """Return fields (..., n, n) of the pupil behind the mask."""
        hit = self.forward @ field @ self.forward.T * self.disk
        return field - self.back @ hit @ self.back.T


def bar_half_width(bar: Bar, x: np.ndarray) -> np.ndarray:
    """Half width (arcsec) of a bar at an offset x (arcsec) from the star; 0 beyond its ends."""
    from_middle = np.asarray(x) - bar.middle
    tapered = np.clip(from_middle, -bar.tapered / 2, bar.tapered / 2)
    half_width = bar.half_width + bar.taper * tapered
    return np.where(np.abs(from_middle) <= bar.length / 2, half_width, 0.0)


def bar_opacity(bar: Bar, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fraction of the amplitude that a bar blocks at offsets (arcsec) from the star's place.

    ``sinc^2``, one on the axis; 0 beyond the ends of the bar. The transmission in intensity is
    ``(1 - opacity)^2``, one half at the bar's half width.
    """
    half_width = bar_half_width(bar, x)
    there = half_width > 0
    return there * np.sinc(_HALF_SINC / np.pi * np.asarray(y) / np.where(there, half_width, 1)) ** 2


class BarMask:
    """Band-limited bar along the detector's x, whose half width varies along it."""

    def __init__(self, bar, wavelength, pupil):
        narrowest = bar.half_width - abs(bar.taper) * bar.tapered / 2
        reach = _HALF_SINC / (narrowest * RAD) * wavelength / np.pi
        n = fft.next_fast_len(pupil.axis.size + int(np.ceil(reach / pupil.step)))
        angle = fft.fftfreq(n, pupil.step) * wavelength / RAD
        self.opacity = bar_opacity(bar, angle, angle[:, None]).astype(np.float32)
        self.n = n

    def __call__(self, field):
        """Return fields (..., n, n) of the pupil behind the mask."""
        size = field.shape[-1]
        blocked = fft.ifft2(fft.fft2(field, (self.n, self.n)) * self.opacity)
        return field - blocked[..., :size, :size]


#: Each takes fields of the pupil, (..., n, n) complex64, and returns them behind the mask.
MASKS: dict[str, Any] = {"round": RoundMask, "4qpm": PhaseMask, "spot": Spot}
