"""A user's images of a star as the model that `fit_star` fits, in place of the optics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from gpucoron.errors import InputError
from gpucoron.optics.coronagraph_model import Grid, StarModel

_STEP_PX = 0.05
_MOST_CONDITION = 100.0  # of the terms at the images' offsets: few, or on one circle, say little


@dataclass(frozen=True)
class StarImages:
    """Images of a star behind a coronagraph, measured or from another simulation.

    Parameters
    ----------
    images : (ny, nx) or (n, ny, nx) float
        In units of the star's light, or any other; pixels as those of the exposures.
    positions : (2,) or (n, 2) float, px
        Position (x, y) of the star in each image, from 0.
    mask : (float, float) or None
        Centre of the mask in all the images; needed where there are several.

    Raises
    ------
    InputError
        Shapes that do not fit together, or values that are not finite.
    """

    images: np.ndarray
    positions: np.ndarray
    mask: tuple[float, float] | None = None

    def __post_init__(self):
        images = np.array(self.images, np.float64, ndmin=3)
        positions = np.array(self.positions, np.float64, ndmin=2)
        if images.ndim != 3 or positions.shape != (len(images), 2):
            raise InputError(
                f"star model has images {images.shape} and positions {positions.shape}, expected "
                "(n, ny, nx) and (n, 2): x and y of the star in each image"
            )
        if not (np.isfinite(images).all() and np.isfinite(positions).all()):
            raise InputError("star model has values that are not finite, expected numbers only")
        if len(images) > 1 and self.mask is None:
            raise InputError(
                f"star model has {len(images)} images and no mask centre, expected its x and y "
                "(MASKCENX, MASKCENY)"
            )
        if not images.any(axis=(1, 2)).all():
            raise InputError("star model has an image that is 0 everywhere, expected a star")
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "positions", positions)

    @property
    def centre(self) -> np.ndarray:
        """What stays in place in the model: the mask, or the star of a single image; (x, y)."""
        return self.positions[0] if len(self.images) == 1 else np.asarray(self.mask, float)


class ImageModel(StarModel):
    """Images of a star at known offsets from the mask, measured or from another simulation.

    Between the offsets the image is a polynomial in each pixel: of the second order where the
    offsets determine it, of the first where they determine that, else their mean. One image moves
    as a whole with the star, so that nothing is learnt on the mask.
    """

    def __init__(self, star: StarImages, grid: Grid):
        self.grid, self.sigma_nm = grid, np.zeros(0)
        self._follows_star = len(star.images) == 1
        self._centre = star.centre
        offsets = star.positions - self._centre
        self._order = next(k for k in (2, 1, 0) if _determined(_terms(offsets, k)))
        terms = _terms(offsets, self._order)
        flat = star.images.reshape(len(star.images), -1)
        coefficients = np.linalg.lstsq(terms, flat, rcond=None)[0]
        self._splines = [
            ndimage.spline_filter(c.reshape(star.images.shape[1:]), order=3) for c in coefficients
        ]

    def low_orders(self) -> ImageModel:
        """Return the model itself: it has no modes."""
        return self

    def wavefront_nm(self, modes_nm):
        """Return 0: there are no modes."""
        return 0.0

    def fields(self, modes_nm, star, mask):
        """Return the image: there are no fields."""
        star, mask = np.asarray(star, float), np.asarray(mask, float)
        origin = star if self._follows_star else mask
        rows = self.grid.y - origin[1] + self._centre[1]
        columns = self.grid.x - origin[0] + self._centre[0]
        place = np.meshgrid(rows, columns, indexing="ij")
        weights = _terms((star - mask)[None], self._order)[0]
        return sum(
            w * ndimage.map_coordinates(s, place, order=3, prefilter=False, mode="nearest")
            for w, s in zip(weights, self._splines, strict=True)
        )

    def image(self, fields):
        """Return the image."""
        return fields

    def derivatives(self, fields, modes_nm, star, mask):
        """Return the derivatives by star x and y and mask x and y, as differences."""
        slopes = []
        for which in (0, 1):
            for step in _STEP_PX * np.eye(2):
                ends = []
                for sign in (1, -1):
                    places = [np.asarray(star, float), np.asarray(mask, float)]
                    places[which] = places[which] + sign * step
                    ends.append(self.fields(modes_nm, *places))
                slopes.append((ends[0] - ends[1]) / (2 * _STEP_PX))
        return np.array(slopes)


def _determined(terms):
    return len(terms) >= terms.shape[1] and np.linalg.cond(terms) < _MOST_CONDITION


def _terms(offsets, order):
    """Return the polynomial's terms at offsets (n, 2): (n, 1, 3 or 6)."""
    x, y = offsets.T
    terms = [np.ones_like(x), x, y, x * x, x * y, y * y]
    return np.stack(terms[: (1, 3, 6)[order]], axis=1)
