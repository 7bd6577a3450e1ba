"""PSF of an off-axis source from images at few offsets from the mask, for maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.ops.fourier_shift import fourier_shift

if TYPE_CHECKING:
    from gpucoron.analysis.forward import OffAxisImages, Transmission

__all__ = ["CoarsePSF"]

#: Separations from the mask at which images are computed, FWHM.
RADII = (0.7, 1, 1.5, 2, 2.7, 3.5, 4.5, 6, 8, 11, 15, 20, 27, 36, 50, 70, 100)
_QUADRANT = 3  # steps between images over 90 degrees
_EDGE = 2  # px around an image while it is shifted
_FAINTEST = 1e-6  # light that images are divided by


class CoarsePSF:
    """PSF at few offsets in one quadrant of the mask, mirrored into the others.

    The light is that at the very offset. Sums in an aperture differ from those of images computed
    anew by some percent at the edge of the mask, and by less than one beyond.

    Parameters
    ----------
    psf : OffAxisImages
    light : Transmission
        Of the same.
    phases : int, optional
        Places of a source within its pixel are rounded to so many along each axis, and images at
        these are made once. Default: any place.
    """

    def __init__(self, psf: OffAxisImages, light: Transmission, phases: int | None = None):
        self._psf, self._light, self._phases = psf, light, phases
        self.fwhm_px, self.without_mask = psf.fwhm_px, psf.without_mask
        self._radii = np.array(RADII) * psf.fwhm_px
        self._images: dict[tuple[int, int], np.ndarray] = {}

    def images(self, offsets: np.ndarray, within: np.ndarray, **unused: Any) -> np.ndarray:
        """Return images (m, box, box), as `OffAxisImages.images`."""
        distance, angle = np.hypot(*offsets.T), np.arctan2(*abs(offsets).T)
        ring = np.abs(np.log(np.maximum(distance, 1e-3)[:, None] / self._radii)).argmin(axis=1)
        step = np.rint(angle / (np.pi / 2) * _QUADRANT).astype(int)
        nodes = np.column_stack([ring, step, offsets < 0])
        light = self._light(offsets)[:, None, None]
        if self._phases is None:
            return self._shifted(nodes, within) * light
        steps = np.rint(within * self._phases).astype(int)
        keys, inverse = np.unique(np.column_stack([nodes, steps]), axis=0, return_inverse=True)
        return self._shifted(keys[:, :4], keys[:, 4:] / self._phases)[inverse.reshape(-1)] * light

    def _shifted(self, nodes: np.ndarray, within: np.ndarray) -> np.ndarray:
        images = np.stack([self._node(*node) for node in nodes.tolist()])
        around = np.pad(images, ((0, 0), (_EDGE, _EDGE), (_EDGE, _EDGE)))
        return fourier_shift(around, within)[:, _EDGE:-_EDGE, _EDGE:-_EDGE]

    def _node(self, ring: int, step: int, below: int, left: int) -> np.ndarray:
        """Return an image over its light, mirrored to the quadrant of the source."""
        if (ring, step) not in self._images:
            angle = step * np.pi / 2 / _QUADRANT
            offset = self._radii[ring] * np.array([[np.sin(angle), np.cos(angle)]])
            image = self._psf.images(offset, exact=True)[0].astype(np.float64)
            self._images[ring, step] = image / max(float(self._light(offset)[0]), _FAINTEST)
        return self._images[ring, step][:: -1 if below else 1, :: -1 if left else 1]
