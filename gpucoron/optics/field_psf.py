"""PSF behind a mask as a sum of few kernels whose strength depends on the place."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucoron.optics.given_psf import places_grid, places_ray
from gpucoron.optics.off_axis import OffAxisPSF, along_axes, mask_rotation

__all__ = ["FieldPSF"]

_RADIUS = 20.0  # of the kernel without the mask, lambda / D: 94 to 97 % of the light
_LARGEST_BOX = 301  # px
_FWHM = 1.25  # of the images on the detector, lambda / D, about
#: Offsets at which images are computed, and those at which the throughput is, lambda / D
_NODES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.5, 7.5, 10.0, 14.0, 20.0, 30.0, 60.0)
_FINE = np.concatenate([np.arange(0, 4, 0.4), np.arange(4, 12, 0.8), np.geomspace(12, 60, 12)])
_ROUND, _SMOOTH = ("round", "spot"), ("round", "bar")
_LEFT = 5e-3  # of the peak without the mask, that kernels may leave of the images


class FieldPSF:
    """PSF behind a mask: throughput times the PSF without it, and kernels for what differs.

    Parameters
    ----------
    psf : OffAxisImages
    varying : bool
        Include the kernels for what differs.

    Notes
    -----
    ``psf(place) = T(place) P + sum_k c_k(place) E_k`` with throughput T, the image P without the
    mask (in a box of 40 lambda / D, where it comes from the optics), and the singular vectors E_k
    of the images at a grid of places less ``T P``, as many as leave less than 0.5 % of P's peak.
    Round masks and bars of NIRCam need none: they leave 0.3 % at most.
    """

    def __init__(self, psf: Any, varying: bool = True):
        kind = getattr(getattr(psf, "instrument", None), "kind", "")
        unit = float(psf.fwhm_px) / _FWHM
        self._plain = _wide(psf).without_mask.astype(np.float64)
        if kind in _ROUND:
            self._light_shares, places = places_ray(_FINE * unit)
        else:
            axis = _both_ways(np.array(_NODES) if kind == "4qpm" else _FINE[::2]) * unit
            self._light_shares, places = places_grid([axis, axis])
        self._turn = mask_rotation(psf)
        self._light = psf.throughput(along_axes(places, -self._turn), exact=True)
        self._kernels = np.empty((0, *np.shape(psf.without_mask)))
        if varying and kind not in _SMOOTH:
            self._decompose(psf, _both_ways(np.array(_NODES)) * unit)

    def _decompose(self, psf: Any, axis: np.ndarray) -> None:
        """Find the kernels of what the images have beside throughput times P."""
        self._shares, places = places_grid([axis, axis])
        plain = psf.without_mask.astype(np.float64)
        images = psf.images(along_axes(places, -self._turn), exact=True).astype(np.float64)
        images -= (self._light_shares(places) @ self._light)[:, None, None] * plain
        u, s, v = np.linalg.svd(images.reshape(len(images), -1), full_matrices=False)
        left, count = images.reshape(len(images), -1), 0
        while count < len(s) and abs(left).max() > _LEFT * plain.max():
            left = left - np.outer(u[:, count] * s[count], v[count])
            count += 1
        self._kernels = v[:count].reshape(count, *plain.shape)
        self._strengths = u[:, :count] * s[:count]

    def terms(self, offsets: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return strengths (n,) and kernel (box, box) of each term at offsets (n, 2)."""
        offsets = along_axes(np.asarray(offsets, dtype=np.float64), self._turn)
        found = [(self._light_shares(offsets) @ self._light, self._plain)]
        if len(self._kernels):
            strengths = self._shares(offsets) @ self._strengths
            found += [(strengths[:, k], kernel) for k, kernel in enumerate(self._kernels)]
        return found


def _both_ways(half: np.ndarray) -> np.ndarray:
    return np.concatenate([-half[:0:-1], half])


def _wide(psf: Any) -> Any:
    """Return the PSF of the optics in a large box; another as it is."""
    if not isinstance(psf, OffAxisPSF):
        return psf
    box = min(2 * round(_RADIUS * psf.fwhm_px / _FWHM) + 1, _LARGEST_BOX)
    known = {name: getattr(psf, name) for name in ("scale", "modes_nm", "unknown_nm")}
    return OffAxisPSF(psf.instrument, psf.bandpass, box=box, **known)
