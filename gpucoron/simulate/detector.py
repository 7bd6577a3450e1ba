"""Simulate the detector: noise, cosmic rays, bad pixels, reference pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpucoron.optics.instruments import Filter, Instrument
from gpucoron.simulate.geometry import Window

DO_NOT_USE, SATURATED, JUMP_DET, NON_SCIENCE = 1, 2, 4, 512
DEAD, HOT, WARM, OTHER, REFERENCE_PIXEL = 1 << 10, 1 << 11, 1 << 12, 1 << 30, 1 << 31

FLAT_ERROR = 1e-3
CORE_PX = 12
HITS_PER_PIXEL = 2.5e-4
JUMPS_PER_PIXEL = 0.01
LOST_PER_PIXEL = 5e-5


@dataclass(frozen=True)
class Frames:
    """Integrations of one exposure after ramp fitting and calibration; (n, ny, nx), MJy/sr."""

    data: np.ndarray
    err: np.ndarray
    dq: np.ndarray
    var_poisson: np.ndarray
    var_rnoise: np.ndarray
    var_flat: np.ndarray
    cosmic_rays: np.ndarray  # bool: an undetected hit of more than half a sigma


class Detector:
    """One detector with its static bad pixels.

    Parameters
    ----------
    rng : numpy.random.Generator
        For everything that does not change between exposures.
    subtracted : (ny, nx) float64, MJy/sr
        Background that contributes noise and is then subtracted.
    bad_pixels, noise, cosmic_rays : bool
        Which effects to add. Variances and ERR always include the noise.
    saturation_mjysr : float or None
        Scene brightness from which a pixel is saturated.
    """

    def __init__(
        self,
        instrument: Instrument,
        bandpass: Filter,
        window: Window,
        integration_s: float,
        rng: np.random.Generator,
        *,
        subtracted: np.ndarray,
        bad_pixels: bool,
        noise: bool,
        cosmic_rays: bool,
        saturation_mjysr: float | None,
    ):
        self.window, self.noise, self.cosmic_rays = window, noise, cosmic_rays
        self.subtracted = subtracted
        self.saturation = saturation_mjysr
        self.electrons = instrument.gain * integration_s / bandpass.photmjsr  # e- per MJy/sr
        shape = window.shape
        self.read_sigma = (
            instrument.read_noise * bandpass.photmjsr * np.exp(0.08 * rng.standard_normal(shape))
        )
        self.flat_error = FLAT_ERROR * rng.standard_normal(shape)
        border, self.border_is_dark = _border(instrument, window)
        flags, warmth = _faults(rng, window)
        if not bad_pixels:
            flags[:], warmth[:] = 0, 0
        self.flags = border | flags
        self.excess = warmth * bandpass.photmjsr  # MJy/sr of unsubtracted dark current
        self.silent_nan = np.zeros(shape, bool)
        if bad_pixels and instrument.name == "nircam":
            self.flags[:, 0] |= DO_NOT_USE
            self.silent_nan[-1, :] = True

    @property
    def science_area(self) -> np.ndarray:
        """(ny, nx) bool: pixels that are not NON_SCIENCE."""
        return self.flags & NON_SCIENCE == 0

    def expose(self, scenes: list[np.ndarray], rngs: dict[str, np.random.Generator]) -> Frames:
        """Simulate the integrations of an exposure from noiseless images (MJy/sr) of all light.

        `rngs` are ``noise``, ``hits`` and ``jumps``: switching one effect off does not change the
        others.
        """
        planes = [self._integrate(np.where(self.border_is_dark, 0.0, s), rngs) for s in scenes]
        names = ("data", "err", "dq", "var_poisson", "var_rnoise", "var_flat", "cosmic_rays")
        return Frames(
            **{n: np.stack(p) for n, p in zip(names, zip(*planes, strict=True), strict=True)}
        )

    def _integrate(self, scene, rngs):
        light = np.maximum(scene, 0) + self.excess
        dq = self.flags.copy()
        poisson, rnoise = light / self.electrons, self.read_sigma**2
        flat = (FLAT_ERROR * light) ** 2
        jumps = rngs["jumps"].random(light.shape)
        if self.cosmic_rays:
            jumped = jumps < JUMPS_PER_PIXEL
            dq[jumped] |= JUMP_DET
            dq[jumps < LOST_PER_PIXEL] |= DO_NOT_USE | SATURATED
            # a ramp with a detected jump gives a noisier slope
            poisson, rnoise = poisson * (1 + 0.2 * jumped), rnoise * (1 + 1.0 * jumped)
        data = scene + self.excess
        if self.noise:
            data = self._noisy(light, rngs["noise"], poisson, rnoise)
        total = poisson + rnoise + flat
        hits = np.zeros(light.shape)
        if self.cosmic_rays:
            hits = _cosmic_rays(rngs["hits"], self.window) / self.electrons
            hits[self.border_is_dark] = 0
        if self.saturation is not None:
            dq[scene > self.saturation] |= DO_NOT_USE | SATURATED
        data = data + hits - self.subtracted
        gone = (dq & DO_NOT_USE != 0) | self.silent_nan
        planes = [
            np.where(gone, np.nan, p).astype(np.float32)
            for p in (data, np.sqrt(total), poisson, rnoise, flat)
        ]
        return planes[0], planes[1], dq, *planes[2:], (hits > 0.5 * np.sqrt(total)) & ~gone

    def _noisy(self, light, rng, poisson, rnoise):
        """Draw Poisson photon noise, and Gaussian noise for the jumps and the readout."""
        counts = rng.poisson(light * self.electrons) / self.electrons
        extra = np.maximum(poisson - light / self.electrons, 0) + rnoise
        return counts + np.sqrt(extra) * rng.standard_normal(light.shape) + self.flat_error * light


def _border(instrument, window):
    """Flags of the pixels outside the illuminated field, and where they are."""
    native = np.zeros(window.aperture.shape, np.uint32)
    if instrument.metadata["name"] == "MIRI":
        native[:] = NON_SCIENCE | DO_NOT_USE
        if instrument.kind == "spot":
            native[32:301, 8:279] = 0
        else:
            native[4:220, 9:228] = 0
            row, column = np.indices(native.shape)
            native[(row - 4) + (column - 9) < 14] = NON_SCIENCE | DO_NOT_USE
        native[:, :4] |= np.uint32(REFERENCE_PIXEL)
    x0, y0 = (window.corner[k] - window.aperture.corner[k] for k in (0, 1))
    ny, nx = window.shape
    flags = native[y0 : y0 + ny, x0 : x0 + nx].copy()
    return flags, flags & NON_SCIENCE != 0


def _faults(rng, window):
    """Draw static bad pixels: flags, and the dark current (DN/s) of hot and warm ones."""
    ny, nx = window.shape
    flags = np.zeros((ny, nx), np.uint32)
    warmth = np.zeros((ny, nx))
    row, column = np.indices((ny, nx))
    near = np.hypot(column - window.centre[0], row - window.centre[1]) < CORE_PX
    draw = rng.random((ny, nx)) / np.where(near, 4.0, 1.0)
    limits = (
        (DO_NOT_USE | DEAD, 0.0030),
        (DO_NOT_USE | HOT, 0.0050),
        (DO_NOT_USE | OTHER, 0.0065),
        (HOT, 0.0075),
        (WARM, 0.0105),
        (OTHER, 0.0130),
    )
    below = 0.0
    for bits, limit in limits:
        flags[(draw >= below) & (draw < limit)] = bits
        below = limit
    only_hot, only_warm = flags == HOT, flags == WARM
    warmth[only_hot] = rng.lognormal(-1.0, 0.6, only_hot.sum())
    warmth[only_warm] = rng.lognormal(-2.5, 0.5, only_warm.sum())
    for _ in range(2):
        y, x = rng.integers(2, ny - 6), rng.integers(2, nx - 6)
        height, width = rng.integers(3, 6, 2)
        if not near[y : y + height, x : x + width].any():
            flags[y : y + height, x : x + width] = DO_NOT_USE | OTHER
            warmth[y : y + height, x : x + width] = 0
    return flags, warmth


def _cosmic_rays(rng, window):
    """Draw undetected cosmic rays, electrons: points, tracks, in some frames one in the core."""
    ny, nx = window.shape
    image = np.zeros((ny, nx))
    count = rng.poisson(HITS_PER_PIXEL * ny * nx)
    starts = rng.random((count, 2)) * (nx, ny)
    if rng.random() < 0.25:
        starts = np.vstack([starts, window.centre + rng.uniform(-8, 8, 2)])
    for x, y in starts:
        length = rng.exponential(2.5)
        angle = rng.uniform(0, 2 * np.pi)
        energy = rng.lognormal(np.log(3000.0), 0.9)
        along = np.arange(0, length + 0.25, 0.25)
        columns = np.rint(x + along * np.cos(angle)).astype(int)
        rows = np.rint(y + along * np.sin(angle)).astype(int)
        inside = (columns >= 0) & (columns < nx) & (rows >= 0) & (rows < ny)
        np.add.at(image, (rows[inside], columns[inside]), energy / (1 + along.size / 4))
    return image
