"""PSF and transmission of an off-axis source from those at few offsets from the mask, for maps."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.ops.apertures import aperture_sums
from gpucoron.ops.fourier_shift import fourier_shift
from gpucoron.optics.off_axis import along_axes, mask_rotation

if TYPE_CHECKING:
    from gpucoron.analysis.forward import OffAxisImages

__all__ = ["CoarsePSF"]

#: Separations from the mask, or distances from its axes, at which a source is computed; FWHM.
_ROUND = (*np.arange(0, 6, 0.5), 6, 7, 8, 9.5, 11, 13, 15, 20, 27, 36, 50, 70, 100)
_ACROSS = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4.5, 7, 11, 18, 30)
_ALONG = (0, 4.5, 11, 18, 30)  # a bar
_QUADRANT = np.pi / 2 * np.arange(4) / 3
_EDGE = 2  # px around an image while it is shifted
_FAINTEST = 1e-6  # light that images are divided by


class CoarsePSF:
    """PSF and transmission interpolated between few offsets from the mask.

    Parameters
    ----------
    psf : OffAxisImages
        Round masks and spots are taken as symmetric about their centre, bars about their length;
        phase masks are unchanged by half a turn.
    phases : int, optional
        Faster, for maps of many sources: the image of the nearest offset, with the place of the
        source in its pixel rounded to so many along each axis. Default: linear between the nearest
        offsets, any place.

    Notes
    -----
    Nodes are polar for round masks and spots, else along the axes of the mask. Images over their
    light are interpolated, and multiplied by the light, which is interpolated by itself. Images are
    computed when first needed. Errors of sums in an aperture are in
    tests/analysis/test_coarse_psf.py.
    """

    def __init__(self, psf: OffAxisImages, phases: int | None = None):
        self._psf, self._phases = psf, phases
        self.fwhm_px, self.without_mask = psf.fwhm_px, psf.without_mask
        kind = getattr(getattr(psf, "instrument", None), "kind", "")
        self._polar = kind in ("round", "spot")
        self._mirrored = (
            kind in ("round", "spot", "bar"),
            kind in ("round", "spot"),
        )
        self._half_turn, self._rotation = kind == "4qpm", mask_rotation(psf)
        across, along = np.array(_ACROSS), np.array(_ALONG)
        both = np.r_[-across[:0:-1], across]
        axes = {"4qpm": (across, both), "bar": (across, np.r_[-along[:0:-1], along])}
        if self._polar:
            self._axes = (np.array(_ROUND) * psf.fwhm_px, _QUADRANT)
        else:
            y, x = axes.get(kind, (both, both))
            self._axes = (y * psf.fwhm_px, x * psf.fwhm_px)
        self._images: dict[tuple[int, ...], np.ndarray] = {}

    def with_phases(self, phases: int) -> CoarsePSF:
        """Return the faster one, which has the same images."""
        other = CoarsePSF(self._psf, phases)
        other._images, other.__dict__["_at_nodes"] = self._images, self._at_nodes
        return other

    def light(self, offsets: np.ndarray) -> np.ndarray:
        """Return the light (m,) of sources relative to that without the mask; NaN at NaN.

        Offsets (m, 2) are y and x from the mask, px.
        """
        return self._interpolated(0, offsets)

    def core(self, offsets: np.ndarray) -> np.ndarray:
        """Return the sum (m,) in an aperture of one FWHM on sources, over their light without mask.

        Beside the edges of a phase mask less of the light is in it than elsewhere.
        """
        return self._interpolated(1, offsets)

    def _interpolated(self, which: int, offsets: np.ndarray) -> np.ndarray:
        from scipy.ndimage import map_coordinates

        known = np.isfinite(offsets).all(axis=1)
        at, _ = self._indices(np.where(known[:, None], offsets, 0.0))
        found = map_coordinates(self._at_nodes[which], at.T, order=1, mode="nearest")
        return np.where(known, found, np.nan)

    def images(self, offsets: np.ndarray, within: np.ndarray, **unused: Any) -> np.ndarray:
        """Return images (m, box, box), as `OffAxisImages.images`."""
        at, mirrored = self._indices(offsets)
        light = self.light(offsets)[:, None, None]
        if self._phases is None:
            return _shifted(self._between(at, mirrored), within) * light
        steps = np.rint(within * self._phases)
        keys = np.column_stack([np.rint(at), mirrored, steps]).astype(int)
        keys, inverse = np.unique(keys, axis=0, return_inverse=True)
        nodes = np.stack([self._node(*key[:4]) for key in keys.tolist()])
        return _shifted(nodes, keys[:, 4:] / self._phases)[inverse.reshape(-1)] * light

    def _indices(self, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the place of offsets among the nodes, and whether they are mirrored, (m, 2)."""
        offsets = along_axes(offsets, self._rotation)
        if self._half_turn:
            mirrored = np.repeat(offsets[:, :1] < 0, 2, axis=1)
        else:
            mirrored = (offsets < 0) & np.array(self._mirrored)
        folded = np.where(mirrored, -offsets, offsets)
        if self._polar:
            folded = np.stack([np.hypot(*folded.T), np.arctan2(*folded.T)], axis=1)
        found = [
            np.interp(values, nodes, np.arange(len(nodes)))
            for values, nodes in zip(folded.T, self._axes, strict=True)
        ]
        return np.stack(found, axis=1), mirrored

    @cached_property
    def _at_nodes(self) -> np.ndarray:
        """Light and sum in an aperture at the nodes (2, n, n); of round masks at one angle."""
        first, second = self._axes
        if self._polar:
            found = self._measured(_offsets(first, np.full(len(first), np.pi / 4)))
            return np.repeat(found[:, :, None], len(second), axis=2)
        if self._half_turn:  # the pupil is its own mirror image: these are those of a quadrant
            second = second[second >= 0]
        places = np.stack(np.meshgrid(first, second, indexing="ij"), axis=-1)
        places = along_axes(places.reshape(-1, 2), -self._rotation)
        found = self._measured(places).reshape(2, len(first), len(second))
        return np.concatenate([found[:, :, :0:-1], found], axis=2) if self._half_turn else found

    def _measured(self, offsets: np.ndarray) -> np.ndarray:
        """Return light and sum in an aperture (2, m) of sources in the middle of their pixels."""
        found = []
        for offset in offsets[:, None]:  # one by one, as both are of one image
            (light,) = self._psf.throughput(offset, exact=True)
            image = self._psf.images(offset, exact=True)[0]
            middle = len(image) // 2
            found.append((light, *aperture_sums(image, [(middle, middle)], self.fwhm_px / 2)))
        return np.transpose(found)

    def _between(self, at: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """Interpolate linearly between the four nodes around each place."""
        first = np.minimum(at.astype(int), [len(axis) - 2 for axis in self._axes])
        share = at - first
        total: Any = 0.0
        for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
            weight = np.prod(np.where(step, share, 1 - share), axis=1)
            keys = np.column_stack([np.where(weight[:, None] > 0, first + step, first), mirrored])
            images = np.stack([self._node(*key) for key in keys.tolist()])
            total = total + weight[:, None, None] * images
        return total

    def _node(self, row: int, column: int, below: int, left: int) -> np.ndarray:
        """Return the image of a node over its light, mirrored to the side of the source."""
        if (row, column) not in self._images:
            offset = np.array([[self._axes[0][row], self._axes[1][column]]])
            if self._polar:
                offset = _offsets(*offset.T)
            offset = along_axes(offset, -self._rotation)
            image = self._psf.images(offset, exact=True)[0].astype(np.float64)
            light = float(self._at_nodes[0, row, column])
            self._images[row, column] = image / max(light, _FAINTEST)
        return self._images[row, column][:: -1 if below else 1, :: -1 if left else 1]


def _offsets(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return y and x (m, 2) of polar coordinates."""
    return radius[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)


def _shifted(images: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Return images moved by less than a pixel."""
    around = np.pad(images, ((0, 0), (_EDGE, _EDGE), (_EDGE, _EDGE)))
    return fourier_shift(around, within)[:, _EDGE:-_EDGE, _EDGE:-_EDGE]
