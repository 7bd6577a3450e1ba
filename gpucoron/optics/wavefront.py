"""Wavefront errors: a static part and a slow drift."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import fft, special

from gpucoron.optics.telescope import WIDTH_M, Pupil

N_SCREENS = 8
HOURS = 1 / 24
EXPECTED_NM, EXPECTED_ERROR_NM = 75.0, 15.0  # rms of the wavefront where it is not measured
EXPECTED_CYCLES = (1.0, 40.0)  # across the pupil, over which it is spread
SLOPE = 3.2  # its power falls with the frequency to this power


def zernikes(pupil: Pupil) -> list[np.ndarray]:
    """Low orders, defocus to secondary astigmatism, unit rms over the aperture."""
    x = pupil.axis / (WIDTH_M / 2)
    r2 = x**2 + x[:, None] ** 2
    xx, yy = np.broadcast_to(x, r2.shape), np.broadcast_to(x[:, None], r2.shape)
    return [
        2 * r2 - 1,
        xx**2 - yy**2,
        2 * xx * yy,
        (3 * r2 - 2) * xx,
        (3 * r2 - 2) * yy,
        xx**3 - 3 * xx * yy**2,
        3 * xx**2 * yy - yy**3,
        6 * r2**2 - 6 * r2 + 1,
        (4 * r2 - 3) * (xx**2 - yy**2),
        (4 * r2 - 3) * 2 * xx * yy,
    ]


def segment_modes(pupil: Pupil) -> list[np.ndarray]:
    """Piston, tip and tilt of every segment, (n, n) each."""
    modes = []
    for k, (cx, cy) in enumerate(pupil.centres):
        here = pupil.segment == k
        modes += [here * 1.0, here * (pupil.axis - cx), here * (pupil.axis - cy)[:, None]]
    return modes


def fourier_frequencies(lowest: float, highest: float) -> np.ndarray:
    """Whole numbers of cycles (x, y) across the pupil, one of each opposite pair: (m, 2) int."""
    most = int(highest)
    pairs = [(x, y) for x in range(most + 1) for y in range(-most, most + 1) if x > 0 or y > 0]
    return np.array([p for p in pairs if lowest <= np.hypot(*p) <= highest], int).reshape(-1, 2)


def fourier_modes(pupil: Pupil, frequencies: np.ndarray) -> list[np.ndarray]:
    """Cosine and sine of each of these frequencies, cycles per ``WIDTH_M``: (n, n) each."""
    turns = 2 * np.pi * pupil.axis / WIDTH_M
    return [
        wave(x * turns + y * turns[:, None]) for x, y in frequencies for wave in (np.cos, np.sin)
    ]


def _screens(pupil, rng, count):
    """Random screens with power proportional to f^-3.2, 3 to 40 cycles per aperture."""
    n = pupil.axis.size
    cycles = np.hypot(fft.fftfreq(n, 1 / n), fft.fftfreq(n, 1 / n)[:, None])
    power = np.maximum(cycles, 1) ** -SLOPE
    amplitude = np.where((cycles >= 3) & (cycles <= 40), np.sqrt(power), 0.0)
    noise = rng.standard_normal((count, n, n))
    return list(fft.ifft2(fft.fft2(noise) * amplitude).real)


def mean_transfer(
    separation_m: np.ndarray,
    wavelength_m: float,
    rms_nm: float = EXPECTED_NM,
    lowest_cycles: float = EXPECTED_CYCLES[0],
) -> np.ndarray:
    """Return what an unknown wavefront leaves of an image at each spatial frequency, on average.

    The mean over Gaussian wavefronts of the optical transfer function, relative to that without
    them: ``exp(-D(s) / 2)``, with the structure function D of the phase [1]_.

    Parameters
    ----------
    separation_m : ndarray
        Distance of points of the pupil that interfere: wavelength times spatial frequency (cycles
        per radian), m.
    wavelength_m : float
    rms_nm : float
        Of the wavefront from 1 to 40 cycles across the pupil, over which its power falls with the
        frequency to the power 3.2.
    lowest_cycles : float
        Below which it is known.

    Returns
    -------
    ndarray of the shape of `separation_m`
        1 at 0.

    References
    ----------
    .. [1] Goodman 2015, Statistical Optics, chapter 8.
    """
    all_cycles, cycles = (
        np.geomspace(low, EXPECTED_CYCLES[1], 500) for low in (EXPECTED_CYCLES[0], lowest_cycles)
    )
    total = np.trapezoid(all_cycles ** (1 - SLOPE), all_cycles)
    lags = np.linspace(0, 1, 300)  # of the pupil's width; nothing interferes beyond
    waves = special.j0(2 * np.pi * cycles * lags[:, None]) * cycles ** (1 - SLOPE)
    covariance = np.trapezoid(waves, cycles, axis=1) / total
    variance = (2e-9 * np.pi * rms_nm / wavelength_m) ** 2
    at = np.interp(np.asarray(separation_m) / WIDTH_M, lags, covariance)
    return np.exp(-variance * (covariance[0] - at))


class Wavefront:
    """Optical path difference over the pupil as a function of time.

    A static part (all modes at their given rms) plus a drift: every mode follows its own
    Ornstein-Uhlenbeck process, so that integrations close in time share nearly the same speckles
    and those hours apart do not. Piston and tilt over the Lyot stop are removed from every mode:
    the position of the star is part of the pointing.

    Parameters
    ----------
    static_nm, drift_nm : float
        Rms of the static part and of the drift over the aperture.
    times_days : (nt,) float64
        Times of the states, ascending.
    correlation_hours : float
        Correlation time of the drift.
    """

    def __init__(
        self,
        pupil: Pupil,
        static_nm: float,
        drift_nm: float,
        times_days: np.ndarray,
        rng: np.random.Generator,
        correlation_hours: float = 3.0,
    ):
        groups = [zernikes(pupil), segment_modes(pupil), _screens(pupil, rng, 2 * N_SCREENS)]
        counts = [len(g) for g in groups]
        weights = np.repeat(np.sqrt(np.divide((0.45, 0.2, 0.35), counts)), counts)
        modes = [m for g in groups for m in g]
        self._modes = level(modes, pupil)
        self._modes *= weights[:, None, None].astype(np.float32)
        n = len(modes)
        figure = rng.standard_normal(n)
        self._figure = static_nm * figure / np.sqrt(np.sum((figure * weights) ** 2))
        self._drift = drift_nm * _ou_process(
            rng, n, np.asarray(times_days), correlation_hours * HOURS
        )

    def opd(self, state: int) -> np.ndarray:
        """Optical path difference at the time of this index: (n, n) float32, m."""
        coefficients = (self._figure + self._drift[state]).astype(np.float32) * np.float32(1e-9)
        return np.tensordot(coefficients, self._modes, axes=1)


def level(modes: Sequence[np.ndarray] | np.ndarray, pupil: Pupil) -> np.ndarray:
    """Remove piston and tilt over the stop from each mode, and scale its rms to one.

    The tilt is that of a plane fitted by least squares, which sets the position of the core of the
    image; the mean slope would set its centroid, wings included.
    """
    aperture = pupil.aperture > 0.5
    inside = (pupil.stop > 0.5) & aperture
    y, x = np.meshgrid(pupil.axis, pupil.axis, indexing="ij")
    plane = np.stack([np.ones(inside.sum()), x[inside], y[inside]], axis=1)
    solve = np.linalg.pinv(plane)
    levelled = np.empty((len(modes), *aperture.shape), np.float32)
    for out, mode in zip(levelled, modes, strict=True):
        piston, slope_x, slope_y = solve @ mode[inside]
        flat = mode - (piston + slope_x * x + slope_y * y)
        out[:] = flat / np.sqrt(np.mean(flat[aperture] ** 2))
    return levelled


def _ou_process(rng, n, times, correlation):
    values = rng.standard_normal((len(times), n))
    for i in range(1, len(times)):
        memory = np.exp(-(times[i] - times[i - 1]) / correlation)
        values[i] = memory * values[i - 1] + np.sqrt(1 - memory**2) * values[i]
    return values
