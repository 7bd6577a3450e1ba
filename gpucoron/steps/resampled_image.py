"""The combined image, and the errors of means over its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpucoron.core.display import ArrayFields

__all__ = ["ResampledImage"]


@dataclass(frozen=True, eq=False, repr=False)
class ResampledImage(ArrayFields):
    """The combined image; (ny, nx) float32 in MJy/sr and its square, but `con` and `dq`.

    `data` is the weighted mean, `wht` the sum of weights, `con` (nplanes, ny, nx) int32 has bit
    k % 32 of plane k // 32 set where integration k took part. `err` and the variances are NaN where
    they are not known. `correlation` has factors by the side of a square of pixels, 0 for large
    areas: by how much the scatter of means over such a square exceeds that of independent pixels;
    `speckle_correlation` those of the speckles.
    `dq` (ny, nx) uint32 is 0 where any took part, DO_NOT_USE where only bad pixels fall, with
    NON_SCIENCE where no science pixel of any exposure falls.
    """

    data: npt.NDArray[Any]
    err: npt.NDArray[Any]
    wht: npt.NDArray[Any]
    con: npt.NDArray[np.int32]
    var_poisson: npt.NDArray[Any]
    var_rnoise: npt.NDArray[Any]
    var_flat: npt.NDArray[Any]
    dq: npt.NDArray[np.uint32] | None = None
    var_ref: npt.NDArray[Any] | None = None
    var_speckle: npt.NDArray[Any] | None = None
    correlation: tuple[tuple[int, float], ...] = ()
    speckle_correlation: tuple[tuple[int, float], ...] = ()

    def err_correlation(self, pixels: float | None = None, of: str = "noise") -> float | None:
        """Return by what factor the error of a mean exceeds that of independent pixels.

        Parameters
        ----------
        pixels : float, optional
            Number of pixels of a compact area, such as an aperture. Default: a large area.
        of : {"noise", "speckles"}
            What is averaged: all but VAR_SPECKLE, or that.

        Returns
        -------
        float or None
            The error of the mean is ``factor * sqrt(sum(variance)) / pixels``; `error_of_mean` adds
            both. None with the preset, and of speckles where there is no VAR_SPECKLE.
        """
        known = self.speckle_correlation if of == "speckles" else self.correlation
        if not known:
            return None
        sides, factors = np.array(known).T
        inverse = np.where(sides > 0, 1.0 / np.maximum(sides, 1.0), 0.0)
        order = np.argsort(inverse)
        at = 0.0 if pixels is None else 1.0 / np.sqrt(max(pixels, 1.0))
        return float(np.sqrt(np.interp(at, inverse[order], factors[order] ** 2)))

    def error_of_mean(self, err: Any, var_speckle: Any) -> Any:
        """Return the standard deviation of means over pixels, from the planes at these pixels.

        Parameters
        ----------
        err, var_speckle : (..., n) floating
            `err` and `var_speckle` (0 where it is None) of the n pixels of each mean, which lie
            together, as in an aperture.

        Returns
        -------
        (...) float64, MJy/sr

        Notes
        -----
        ``sqrt(N^2 sum(err^2 - var_speckle) + S^2 sum(var_speckle)) / n``, with the factors of noise
        and of speckles from `err_correlation`, 1 where these are not known.
        """
        square, speckle = np.asarray(err, np.float64) ** 2, np.asarray(var_speckle, np.float64)
        n = square.shape[-1]
        factors = [(self.err_correlation(n, of) or 1.0) ** 2 for of in ("noise", "speckles")]
        noise = np.maximum(square - speckle, 0.0).sum(axis=-1)
        return np.sqrt(factors[0] * noise + factors[1] * speckle.sum(axis=-1)) / n
