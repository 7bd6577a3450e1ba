"""PSF of an off-axis source through a coronagraph, one place after another."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import fft, ndimage

from gpucoron.optics.instruments import Filter, Instrument
from gpucoron.optics.telescope import RAD, coronagraph_of, pupil_of

__all__ = ["PlainPSF"]

_DIFFUSION_PX = 0.25  # charge diffusion and capacitive coupling


class PlainPSF:
    """Images of a source as a function of its offset from the mask, without wavefront errors."""

    def __init__(self, instrument: Instrument, bandpass: Filter, scale: tuple, box: int = 65):
        self.box, self._scale = box, scale
        self.pupil = pupil_of(instrument, bandpass)
        axis = np.arange(box + 8) - (box + 8) // 2
        self._optics: Any = coronagraph_of(instrument, bandpass, self.pupil, scale, axis, axis)
        f = fft.fftfreq(box + 8)
        blur = np.exp(-2 * (np.pi * _DIFFUSION_PX) ** 2 * (f[:, None] ** 2 + f**2))
        self._otf = np.sinc(f)[:, None] * np.sinc(f) * blur
        alone = self.images(np.array([[0.0, 60.0]]))[0]
        self.fwhm_px = _fwhm(alone)

    mask_centre = (0.0, 0.0)

    def corners(self, offsets: np.ndarray) -> np.ndarray:
        """Return the first pixel (m, 2) of each image on the array."""
        return np.rint(offsets + np.array(self.mask_centre[::-1])).astype(int) - self.box // 2

    def images(self, offsets: np.ndarray, exact: bool = True) -> np.ndarray:
        """Return images (m, box, box) of sources at offsets (m, 2), y and x, px from the mask."""
        offsets = np.asarray(offsets, float)
        places = offsets + np.array(self.mask_centre[::-1])
        moved = places - np.rint(places)
        images = np.stack([self._image(*offset) for offset in offsets])
        f = fft.fftfreq(self.box)
        phase = np.exp(-2j * np.pi * (moved[:, :1] * f))[:, :, None]
        phase = phase * np.exp(-2j * np.pi * (moved[:, 1:] * f))[:, None]
        return fft.ifft2(fft.fft2(images) * phase).real

    def throughput(self, offsets: np.ndarray, exact: bool = True) -> np.ndarray:
        """Return the light (m,) of sources relative to that without the mask."""
        return self.images(offsets).sum(axis=(1, 2))

    @property
    def without_mask(self) -> np.ndarray:
        """Image of a source far from the mask."""
        return self._image(0.0, 60.0)

    def _image(self, dy, dx):
        optics, total = self._optics, 0.0
        axis, box = self.pupil.axis, optics._box
        tilt_x = axis * (dx * self._scale[0] * RAD)
        tilt_y = axis[:, None] * (dy * self._scale[1] * RAD)
        for wavelength, mask, (left, right) in zip(
            optics.wavelengths, optics.masks, optics._transforms, strict=True
        ):
            phase = np.exp(2j * np.pi / wavelength * (tilt_x + tilt_y)).astype(np.complex64)
            field = mask(self.pupil.aperture * phase) * phase.conj()
            amplitude = left @ (field[box] * optics._stop) @ right
            total = total + amplitude.real**2 + amplitude.imag**2
        image = total / len(optics.wavelengths)
        blurred = fft.ifft2(fft.fft2(image) * self._otf).real
        return blurred[4 : 4 + self.box, 4 : 4 + self.box]


def _fwhm(image):
    """Return the FWHM of a PSF, px: the diameter of a disk of the area above half of its peak."""
    fine = ndimage.zoom(image, 8, order=3, grid_mode=True, mode="nearest")
    return float(np.sqrt(4 / np.pi * (fine > fine.max() / 2).sum()) / 8)
