"""Fourier transform of fields behind the Lyot stop to the detector's pixels, turned or not."""

from __future__ import annotations

import numpy as np
from scipy import fft

from gpucoron.optics.masks import RAD

_SHIFT_MARGIN = 12


class DetectorTransform:
    """Fields behind the Lyot stop to the pixels of the detector, at one wavelength.

    Parameters
    ----------
    pupil : Pupil
    box : (slice, slice)
        Part of the pupil's grid (rows, columns) that fields cover.
    wavelength : float, m
    columns, rows : (nx,), (ny,) float64, arcsec
        Pixels along the detector's x and y, from the centre of the mask.
    factor : float
        Of the amplitude.

    Notes
    -----
    The Fourier transform at the pixels is two matrix products. On a grid that is turned by an angle
    a, of cosine c and sine s, the rows of the field are shifted first, by tan(a) times their y:
    with ``u = w + tan(a) v`` the path ``u (c x + s y) + v (c y - s x)`` is ``w (c x + s y) + v y /
    c``, so that a product along v, a phase and a product along w are left. On the pupils of the
    simulator this is the direct sum to single precision (4e-6 of the largest).
    """

    def __init__(self, pupil, box, wavelength, columns, rows, factor):
        (c, s), v, u = pupil.turn, pupil.axis[box[0]], pupil.axis[box[1]]
        self._shift = None
        if s:
            moved = s / c * v / pupil.step  # samples
            before = int(np.ceil(np.abs(moved).max())) + _SHIFT_MARGIN
            n = fft.next_fast_len(u.size + 2 * before)
            u = u[0] + pupil.step * (np.arange(n) - before)
            self._shift = np.exp(2j * np.pi * np.outer(moved, fft.fftfreq(n)))
            self._shift = self._shift.astype(np.complex64)
            self._before, self._n = before, n
            turn = np.exp(-2j * np.pi * np.outer(rows * (s * RAD), u) / wavelength)
            self._turn = turn.astype(np.complex64)
        left = np.exp(-2j * np.pi * np.outer(rows * RAD / c, v) / wavelength) * factor
        right = np.exp(-2j * np.pi * np.outer(u, columns * RAD * c) / wavelength)
        self._left, self._right = left.astype(np.complex64), right.astype(np.complex64)

    def __call__(self, fields: np.ndarray) -> np.ndarray:
        """Return the fields (..., ny, nx) on the detector of fields (..., rows, columns)."""
        if self._shift is not None:
            around = [(0, 0)] * (fields.ndim - 1) + [(self._before, 0)]
            spectrum = fft.fft(np.pad(fields, around), self._n)
            spectrum *= self._shift
            across = self._left @ fft.ifft(spectrum, overwrite_x=True)
            across *= self._turn
            flat = across.reshape(-1, self._n) @ self._right
            return flat.reshape(*across.shape[:-1], -1)
        if fields.ndim == 2:
            return self._left @ fields @ self._right
        flat = fields.reshape(-1, fields.shape[-1]) @ self._right
        return self._left @ flat.reshape(*fields.shape[:-1], -1)
