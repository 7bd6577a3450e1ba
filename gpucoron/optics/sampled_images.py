"""Images that are given as samples, read at the pixels of a detector wherever the source is."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.interpolate import BSpline, make_interp_spline

__all__ = ["SampledImages"]

_DEGREE = 5  # of splines: with one sample a pixel 3 leaves errors of 0.5 % of the peak


class SampledImages:
    """Images of a source on a fine grid, read at the pixels of a detector.

    Parameters
    ----------
    images : (n, ny, nx) floating
    oversample : float
        Samples per pixel of the detector, along each axis.
    centre : (y, x)
        The source in the images, samples from 0.
    convolved : bool
        Each sample is what a whole pixel centred on it has (an "effective PSF"); else a sample is
        the light on its own small square.
    box : int, px
        Odd side of the images that are read.

    Notes
    -----
    The sum over samples up to a place is interpolated by a spline (degree 5), and a pixel is the
    difference of that between its edges, so that light is conserved wherever the pixels are, and
    whole samples are added up where the edges are theirs. Beyond the samples an image is 0.
    Effective PSFs are interpolated themselves, and beyond the samples are as at their edge.
    """

    def __init__(
        self,
        images: np.ndarray,
        oversample: float,
        centre: tuple[float, float],
        convolved: bool,
        box: int,
    ):
        values = np.asarray(images, np.float64)
        self.box, self._over, self._convolved = box, float(oversample), convolved
        #: (n,) light in each image
        self.light = values.sum(axis=(1, 2)) / (oversample**2 if convolved else 1.0)
        self._centre = np.asarray(centre, np.float64)
        if not convolved:  # up to the edges of samples, the first of which is at -0.5
            self._centre = self._centre + 0.5
            values = np.pad(values.cumsum(axis=1).cumsum(axis=2), ((0, 0), (1, 0), (1, 0)))
        self._splines = [_Spline(n) for n in values.shape[1:]]
        rows, columns = (spline.solve for spline in self._splines)
        self._coefficients = (rows @ values @ columns.T).reshape(len(values), -1)

    def read(self, share: Any, within: np.ndarray) -> np.ndarray:
        """Return weighted sums of the images, integrated over pixels.

        Parameters
        ----------
        share : (m, n) array or sparse array
            How much of each image is in each sum.
        within : (m, 2) floating, px
            Place (y, x) of each source in the middle pixel, from its centre.

        Returns
        -------
        (m, box, box) float32
        """
        shape = tuple(spline.size for spline in self._splines)
        mixed = (share @ self._coefficients).reshape(-1, *shape)
        steps = np.arange(self.box) - float(self.box // 2)
        if not self._convolved:
            steps = np.append(steps, steps[-1] + 1) - 0.5
        matrices = []
        for axis, spline in enumerate(self._splines):
            places = (steps - within[:, axis, None]) * self._over + self._centre[axis]
            read = spline.read(places)
            matrices.append(read if self._convolved else np.diff(read, axis=1))
        rows, columns = matrices
        return (rows @ mixed @ columns.transpose(0, 2, 1)).astype(np.float32)


class _Spline:
    """Splines through values at 0, 1, ..., size - 1, constant beyond."""

    def __init__(self, size: int):
        spline = make_interp_spline(
            np.arange(size), np.eye(size), k=min(_DEGREE, size - 1 - size % 2)
        )
        self.size, self._knots, self._degree = size, spline.t, spline.k
        self.solve = spline.c  # (size, size), from values to coefficients

    def read(self, places: np.ndarray) -> np.ndarray:
        """Return the matrices (m, k, size) from coefficients to values at places (m, k)."""
        flat = np.clip(places.ravel(), 0, self.size - 1)
        matrix = BSpline.design_matrix(flat, self._knots, self._degree).toarray()
        return matrix.reshape(*places.shape, self.size)
