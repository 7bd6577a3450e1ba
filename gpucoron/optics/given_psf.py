"""PSF of an off-axis source that is given as images: one, or one for each of several places."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from gpucoron.errors import InputError
from gpucoron.optics.pixel_sampling import fwhm_of
from gpucoron.optics.sampled_images import SampledImages

if TYPE_CHECKING:
    from gpucoron.optics.off_axis import OffAxisPSF

__all__ = ["GivenPSF", "check_light", "places_grid", "places_ray"]

_BATCH = 256  # images that are in memory at a time
_LEAST_BOX = 3  # px
_LIGHT = (0.3, 1.1)  # of the brightest image: sums that can be fractions of a source's light
_LEAST_LIGHT = -0.02  # of each, as interpolation may leave it
_AT_ONE_PLACE = 1e-6  # px


class GivenPSF:
    """PSF of an off-axis source from images, with the methods of `OffAxisPSF`.

    Parameters
    ----------
    images : (ny, nx) or (n, ny, nx) floating
        The source is in the middle, at ((ny - 1) / 2, (nx - 1) / 2), unless `centre` says where.
        Values are fractions of the light that the source has without the mask but with the Lyot
        stop, summed over an infinite detector, as for `OffAxisPSF`.
    places : (n, 2) floating, px, or None
        Offset (y, x) of the source from the mask's centre in each image. None for one image.
    oversample : float
        Samples per pixel of the detector, along each axis.
    convolved : bool
        As for `gpucoron.optics.sampled_images.SampledImages`.
    centre : (y, x) or None
    mask : OffAxisPSF or None
        Optics whose throughput multiplies the images, which are those of a source without the mask.
        None: the mask is in the images.
    source : str
        What the images are, in words.

    Raises
    ------
    InputError
        Images or places cannot be used.

    Notes
    -----
    Between places on a full grid of rows and columns (of any distances) images are interpolated by
    cubic polynomials through the nearest four along each axis, as those of `OffAxisPSF`; between
    others linearly on Delaunay's triangles. Beyond the places that of the nearest edge is taken.
    Where all places have x = 0 or y = 0 they stand for all of the same distance from the mask.
    `without_mask` is the image of the farthest place.
    """

    def __init__(
        self,
        images: np.ndarray,
        places: np.ndarray | None = None,
        *,
        oversample: float = 1.0,
        convolved: bool = False,
        centre: tuple[float, float] | None = None,
        mask: OffAxisPSF | None = None,
        source: str = "given images",
    ):
        images = _as_images(images)
        n, ny, nx = images.shape
        centre = ((ny - 1) / 2, (nx - 1) / 2) if centre is None else centre
        self.box = _box(images.shape[1:], centre, oversample, convolved)
        self.source, self._mask = source, mask
        self._places = _as_places(places, n)
        self._images = SampledImages(images, oversample, centre, convolved, self.box)
        check_light(self._images.light)
        self._shares = _shares_between(self._places)
        if mask is not None:
            self.instrument = mask.instrument  # its symmetry

    def images(
        self, offsets: np.ndarray, within: np.ndarray | None = None, *, exact: bool = False
    ) -> np.ndarray:
        """Return images of sources of unit flux; see `OffAxisPSF.images`."""
        offsets = np.asarray(offsets, np.float64)
        within = np.zeros_like(offsets) if within is None else np.asarray(within, np.float64)
        found = np.empty((len(offsets), self.box, self.box), np.float32)
        for first in range(0, len(offsets), _BATCH):
            some = slice(first, first + _BATCH)
            found[some] = self._images.read(self._shares(offsets[some]), within[some])
        if self._mask is not None:
            found *= self._mask.throughput(offsets, exact=exact)[:, None, None].astype(np.float32)
        return found

    def throughput(self, offsets: np.ndarray, *, exact: bool = False) -> np.ndarray:
        """Return the light (m,) of sources relative to that without the mask.

        With a table of places it is the sum of an image over that of the farthest one.
        """
        offsets = np.asarray(offsets, np.float64)
        if self._mask is not None:
            return self._mask.throughput(offsets, exact=exact)
        light = self._images.light
        return self._shares(offsets) @ light / light[self._farthest]

    @property
    def _farthest(self) -> int:
        return int(np.argmax(np.hypot(*self._places.T)))

    @functools.cached_property
    def without_mask(self) -> np.ndarray:
        """Image (box, box) of a source without the mask, in the middle of its pixel."""
        return self._far(np.zeros((1, 2)))[0]

    @functools.cached_property
    def fwhm_px(self) -> float:
        """Full width at half maximum of `without_mask`: of a circle of the same area."""
        return fwhm_of(self._far)

    def _far(self, within: np.ndarray) -> np.ndarray:
        share = np.zeros((len(within), len(self._places)))
        share[:, self._farthest] = 1.0
        return self._images.read(share, within)


def check_light(light: np.ndarray) -> None:
    """Raise InputError where sums of images (n,) cannot be fractions of a source's light."""
    least, most = _LIGHT
    if not (
        np.isfinite(light).all() and least <= light.max() <= most and light.min() >= _LEAST_LIGHT
    ):
        raise InputError(
            f"the images add up to {light.min():.3g} to {light.max():.3g}, expected fractions of "
            f"the source's light without the mask (but with the Lyot stop), the largest {least:g} "
            f"to {most:g}"
        )


def _as_images(images) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype.kind not in "iuf" or images.ndim not in (2, 3) or 0 in images.shape:
        raise InputError(
            f"the images have shape {images.shape}, expected numbers, (ny, nx) or (n, ny, nx)"
        )
    images = images.reshape(-1, *images.shape[-2:]).astype(np.float64)
    if not np.isfinite(images).all():
        bad = np.count_nonzero(~np.isfinite(images))
        raise InputError(f"{bad} samples of the images are not finite, expected none")
    return images


def _as_places(places, n: int) -> np.ndarray:
    if places is None:
        if n > 1:
            raise InputError(f"{n} images without places, expected a place (y, x) for each")
        return np.zeros((1, 2))
    places = np.asarray(places, np.float64)
    if places.shape != (n, 2) or not np.isfinite(places).all():
        raise InputError(
            f"the places have shape {places.shape}, expected {(n, 2)}, all finite: y and x of the "
            "source from the mask in each image"
        )
    apart = np.unique(np.round(places / _AT_ONE_PLACE), axis=0)
    if len(apart) < n:
        raise InputError(f"{n} images have {len(apart)} different places, expected as many")
    return places


def _box(shape, centre, oversample, convolved) -> int:
    """Return the odd number of pixels that the samples hold about the source."""
    if not oversample >= 0.5:
        raise InputError(f"{oversample:g} samples per pixel, expected 1 or more")
    reach = min(min(c, n - 1 - c) for c, n in zip(centre, shape, strict=True)) / oversample
    # the source may be at the edge of its pixel; samples of small squares reach half of their side
    reach -= 0.5 if convolved else 0.5 - 0.5 / oversample
    box = 2 * math.floor(reach + 1e-6) + 1
    if not box >= _LEAST_BOX:
        y, x = centre
        raise InputError(
            f"images of {shape[0]} x {shape[1]} samples, {oversample:g} per pixel, with the source "
            f"at y, x = {y:g}, {x:g}, expected {_LEAST_BOX} pixels or more about it"
        )
    return box


# ---- between places


def _shares_between(places):
    """Return the function from offsets (m, 2) to how much each place counts, sparse (m, n)."""
    if len(places) == 1:
        return lambda offsets: sparse.csr_array(np.ones((len(offsets), 1)))
    for axis in (0, 1):
        if not places[:, 1 - axis].any():  # on a ray
            return _Ray(abs(places[:, axis]))
    axes = [np.unique(places[:, k].round(6)) for k in (0, 1)]
    if len(places) == len(axes[0]) * len(axes[1]):
        return _Grid(places, axes)
    return _Scattered(places)


def places_grid(axes):
    """Return how much each place of a grid counts at offsets (m, 2), a function, and its places.

    `axes` are the rows' and columns' offsets, ascending; places are (n, 2), y and x.
    """
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    return _Grid(places, [np.round(axis, 6) for axis in axes]), places


def places_ray(radii):
    """Return the same as `places_grid` for places at these distances, ascending, on a diagonal."""
    places = np.stack([radii, radii], axis=1) / math.sqrt(2)
    return _Ray(np.asarray(radii, dtype=np.float64)), places


class _Ray:
    """Places on an axis, which stand for all at the same distance."""

    def __init__(self, radii):
        self._order = np.argsort(radii)
        self._radii = radii[self._order]
        if np.any(np.diff(self._radii) < _AT_ONE_PLACE):
            raise InputError(
                "places on one axis on both sides of the mask, expected different distances"
            )

    def __call__(self, offsets):
        index, weights = _between(self._radii, np.hypot(*offsets.T))
        return _sparse(self._order[index], weights, len(self._radii))


class _Grid:
    """Places at all crossings of rows and columns."""

    def __init__(self, places, axes):
        self._axes = axes
        rows, columns = (np.searchsorted(a, places[:, k].round(6)) for k, a in enumerate(axes))
        self._number = np.empty((len(axes[0]), len(axes[1])), np.int64)
        self._number[rows, columns] = np.arange(len(places))

    def __call__(self, offsets):
        (rows, down), (columns, along) = (
            _between(axis, offsets[:, k]) for k, axis in enumerate(self._axes)
        )
        index = self._number[rows[:, :, None], columns[:, None, :]]
        weights = down[:, :, None] * along[:, None, :]
        m = len(offsets)
        return _sparse(index.reshape(m, -1), weights.reshape(m, -1), self._number.size)


class _Scattered:
    """Places anywhere: linear on triangles, the nearest beyond them."""

    def __init__(self, places):
        from scipy.spatial import Delaunay, QhullError, cKDTree

        try:
            self._triangles = Delaunay(places)
        except QhullError:
            raise InputError(
                f"{len(places)} places on a line, expected a line through the mask along x or y, "
                "or places all round"
            ) from None
        self._nearest, self._n = cKDTree(places), len(places)

    def __call__(self, offsets):
        which = self._triangles.find_simplex(offsets)
        inside = which >= 0
        turn = self._triangles.transform[which]
        two = np.einsum("mij,mj->mi", turn[:, :2], offsets - turn[:, 2])
        weights = np.column_stack([two, 1 - two.sum(axis=1)])
        index = self._triangles.simplices[which]
        index[~inside, 0] = self._nearest.query(offsets[~inside])[1] if not inside.all() else 0
        weights[~inside] = 1.0, 0.0, 0.0
        return _sparse(index, weights, self._n)


def _between(nodes, at):
    """Return which nodes (m, k) count at places (m,), and Lagrange's weights, k up to 4."""
    at = np.clip(at, nodes[0], nodes[-1])
    k = min(4, len(nodes))
    first = np.clip(np.searchsorted(nodes, at, side="right") - k // 2, 0, len(nodes) - k)
    index = first[:, None] + np.arange(k)
    x = nodes[index]
    weights = np.ones(x.shape)
    for i in range(k):
        for j in range(k):
            if i != j:
                weights[:, i] *= (at - x[:, j]) / (x[:, i] - x[:, j])
    return index, weights


def _sparse(index, weights, n):
    rows = np.repeat(np.arange(len(index)), index.shape[1])
    return sparse.csr_array((weights.ravel(), (rows, index.ravel())), (len(index), n))
