"""Chebyshev series of Fourier phases: a cross-correlation as a small polynomial."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy.special import jv

__all__ = ["PhaseSeries", "nodes_and_projection"]

TOLERANCE = 1e-15


@dataclass(frozen=True)
class PhaseSeries:
    """Coefficients of exp(-2 pi i k t S / N) in T_j(t), |t| <= 1, by frequency of an axis."""

    even: np.ndarray  # (size // 2 + 1, terms / 2) float64, of T_0, T_2, ...
    odd: np.ndarray  # of T_1, T_3, ..., to be multiplied by -i
    sine: np.ndarray  # (terms,), coefficients of sin(pi t S): the Nyquist phase's other half
    terms: int  # length of the whole series

    @classmethod
    @functools.cache  # few axes, many plans
    def of_axis(cls, size: int, half_width: float, *, half_spectrum: bool) -> PhaseSeries:
        """Build the series of an axis of `size` samples, for shifts within `half_width` (S) of 0.

        `half_spectrum` weights each frequency by how often it occurs in the full spectrum (the axis
        that a real transform halves).

        exp(-i theta t) = sum_j (2 - [j = 0]) (-i)^j J_j(theta) T_j(t), the Jacobi-Anger expansion;
        it ends where J_j is below 1e-15 for the highest frequency. The Nyquist frequency of an
        even size has a cosine for its phase (the real part of a Fourier shift) and so no odd terms.
        """
        theta = 2 * np.pi * np.arange(size // 2 + 1) * half_width / size
        terms = _terms(np.pi * half_width)
        order = np.arange(terms)
        sign = np.where(order == 0, 1.0, 2.0) * np.array([1.0, 1.0, -1.0, -1.0])[order % 4]
        bessel = jv(order[None, :], theta[:, None]) * sign
        sine = np.where(order % 2 == 1, jv(order, np.pi * half_width) * sign, 0.0)
        if size % 2 == 0:
            bessel[-1, 1::2] = 0.0
        if half_spectrum:
            twice = np.full(len(theta), 2.0)
            twice[0] = 1.0
            if size % 2 == 0:
                twice[-1] = 1.0
            bessel *= twice[:, None]
        return cls(
            np.ascontiguousarray(bessel[:, 0::2]),
            np.ascontiguousarray(bessel[:, 1::2]),
            sine,
            terms,
        )


def _terms(theta_max: float) -> int:
    order = np.arange(int(theta_max) + 60)
    first = order[(np.abs(jv(order, theta_max)) < TOLERANCE) & (order > theta_max)][0]
    return int(first + 1) // 2 * 2


def nodes_and_projection(terms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chebyshev nodes, the polynomials on them, and the matrix from values to coefficients.

    Returns t_i = cos(pi (i + 1/2) / terms), T_j(t_i) at [i, j], and the matrix in
    ``coefficients = projection @ values``.
    """
    angle = np.pi * (np.arange(terms) + 0.5) / terms
    polynomials = np.cos(np.outer(angle, np.arange(terms)))
    projection = polynomials.T * (2.0 / terms)
    projection[0] /= 2.0
    return np.cos(angle), polynomials, projection
