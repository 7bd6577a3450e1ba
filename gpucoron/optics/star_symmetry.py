"""Centre of point symmetry of an image: where a star is, without a model of it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_STEP_PX, _TOLERANCE_PX, _ITERATIONS, _LONGEST_PX = 0.05, 1e-4, 30, 0.5


def symmetry_centre(
    image: np.ndarray, guess: tuple[float, float], radius_px: float
) -> tuple[tuple[float, float], float]:
    """Find the point about which an image differs least from itself turned by 180 degrees.

    Parameters
    ----------
    image : (ny, nx) float
        Without bad pixels.
    guess : (float, float), px
        First guess of the centre (x, y), from 0.
    radius_px : float
        Pixels up to this distance from the centre are compared.

    Returns
    -------
    centre : (float, float), px
    asymmetry : float
        Rms of the difference over rms of the sum: 0 for a symmetric image, 1 for noise.

    Notes
    -----
    The image without aberrations of a pupil with real transmission is point-symmetric: it is the
    modulus of the Fourier transform of a real function. Behind a mask this holds where the star is
    at the mask's centre, and aberrations of odd order break it. Gauss-Newton on cubic splines.
    """
    spline = ndimage.spline_filter(np.asarray(image, np.float64), order=3)
    reach = np.arange(-np.floor(radius_px), np.floor(radius_px) + 1)
    x, y = (v.ravel() for v in np.meshgrid(reach, reach))
    inside = np.hypot(x, y) <= radius_px
    x, y = x[inside], y[inside]
    centre = np.array(guess, float)

    def compared(at):
        there, turned = (
            ndimage.map_coordinates(
                spline, (at[1] + s * y, at[0] + s * x), order=3, prefilter=False, mode="nearest"
            )
            for s in (1, -1)
        )
        return there - turned, there + turned

    for _ in range(_ITERATIONS):
        difference, total = compared(centre)
        slopes = np.array(
            [
                (compared(centre + e)[0] - compared(centre - e)[0]) / (2 * _STEP_PX)
                for e in _STEP_PX * np.eye(2)
            ]
        )
        step = -np.linalg.lstsq(slopes.T, difference, rcond=None)[0]
        step *= min(1.0, _LONGEST_PX / max(np.hypot(*step), 1e-12))
        centre += step
        if np.hypot(*step) < _TOLERANCE_PX:
            break
    asymmetry = np.sqrt(np.sum(difference**2) / max(np.sum(total**2), 1e-300))
    return (float(centre[0]), float(centre[1])), float(asymmetry)
