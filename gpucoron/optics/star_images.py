"""A user's images of a star as the model that `fit_star` fits, in place of the optics."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from gpucoron.errors import InputError
from gpucoron.optics.coronagraph_model import Grid, StarModel

_STEP_PX = 0.05


class ImageModel(StarModel):
    """Images of a star at known offsets from the mask, measured or from another simulation.

    Between the offsets the image is a polynomial in each pixel: of second order from six images on,
    of first order from three, else their mean. One image moves as a whole with the star, so that
    nothing is learnt on the mask.

    Parameters
    ----------
    images : (ny, nx) or (n, ny, nx) float
        In units of the star's light, or any other; pixels as those of the exposures.
    positions : (2,) or (n, 2) float, px
        Position (x, y) of the star in each image, from 0.
    grid : Grid
        Where images are computed: see `fit_star`.
    mask : (float, float) or None
        Centre of the mask in all the images; needed where there are several.

    Raises
    ------
    InputError
        Shapes that do not fit together, or values that are not finite.
    """

    def __init__(self, images, positions, grid: Grid, mask=None):
        images = np.array(images, np.float64, ndmin=3)
        positions = np.array(positions, np.float64, ndmin=2)
        if images.ndim != 3 or positions.shape != (len(images), 2):
            raise InputError(
                f"star model has images {images.shape} and positions {positions.shape}, expected "
                "(n, ny, nx) and (n, 2): x and y of the star in each image"
            )
        if not (np.isfinite(images).all() and np.isfinite(positions).all()):
            raise InputError("star model has values that are not finite, expected numbers only")
        if len(images) > 1 and mask is None:
            raise InputError(
                f"star model has {len(images)} images and no mask centre, expected its x and y"
            )
        self.grid, self.sigma_nm = grid, np.zeros(0)
        self._follows_star = len(images) == 1
        self._centre = positions[0] if self._follows_star else np.asarray(mask, float)
        terms = _terms(positions - self._centre, self._order(len(images)))
        flat = images.reshape(len(images), -1)
        coefficients = np.linalg.lstsq(terms, flat, rcond=None)[0]
        self._splines = [
            ndimage.spline_filter(c.reshape(images.shape[1:]), order=3) for c in coefficients
        ]
        self._count = len(images)

    @staticmethod
    def _order(count):
        return 2 if count >= 6 else 1 if count >= 3 else 0

    def low_orders(self) -> ImageModel:
        """Return the model itself: it has no modes."""
        return self

    def fields(self, modes_nm, star, mask):
        """Return the image: there are no fields."""
        star, mask = np.asarray(star, float), np.asarray(mask, float)
        origin = star if self._follows_star else mask
        rows = self.grid.y - origin[1] + self._centre[1]
        columns = self.grid.x - origin[0] + self._centre[0]
        place = np.meshgrid(rows, columns, indexing="ij")
        weights = _terms((star - mask)[None], self._order(self._count))[0]
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


def _terms(offsets, order):
    """Return the polynomial's terms at offsets (n, 2): (n, 1, 3 or 6)."""
    x, y = offsets.T
    terms = [np.ones_like(x), x, y, x * x, x * y, y * y]
    return np.stack(terms[: (1, 3, 6)[order]], axis=1)
