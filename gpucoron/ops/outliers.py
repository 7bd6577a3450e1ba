"""Outliers that are sharp, and differences that are not: cosmic rays and moving speckles."""

from __future__ import annotations

import numpy as np

from gpucoron.errors import InputError
from gpucoron.ops._host import require_host
from gpucoron.ops._threads import over_items
from gpucoron.ops.bad_pixels import krige

__all__ = ["sharp_outliers"]

WEAK = 1.5  # times the threshold: differences below it need a better explanation,
LEFT = 0.6  # one that leaves at most this share of them
MAX_ROUNDS = 8


def sharp_outliers(difference, err, candidates, usable, snr):
    """Of pixels that differ from a median, keep those that their neighbours do not explain.

    Parameters
    ----------
    difference : (n, ny, nx) floating
        Each integration less the median of all.
    err : (n, ny, nx) floating
        Standard deviations.
    candidates : (n, ny, nx) bool
        Pixels whose difference exceeds `snr` times `err`.
    usable : (n, ny, nx) bool
        Pixels that may tell what their neighbours should be.
    snr : float
        The threshold again.

    Returns
    -------
    (n, ny, nx) bool
        The candidates that exceed the threshold, too, against what kriging predicts from the pixels
        round them, the uncertainty of that included; and those just above it of which that explains
        less than 40%.

    Raises
    ------
    InputError
        Shapes that differ.

    Notes
    -----
    When a star moves by a hundredth of a pixel behind a coronagraph, its bright speckles change by
    many times the noise. These changes are as smooth as diffraction makes them: a pixel is
    foretold by its neighbours. A cosmic ray is not. Candidates are tested against pixels that are
    none first; those that pass may then vouch for others, so that a wide patch is cleared from
    its edge inwards, and the test is repeated until nothing changes (eight rounds at most).
    """
    require_host("sharp_outliers", difference, err, candidates, usable)
    if not difference.shape == err.shape == candidates.shape == usable.shape:
        raise InputError(f"difference has shape {difference.shape}, err {err.shape}, candidates "
                         f"{candidates.shape}, usable {usable.shape}; expected the same of all")
    out = np.array(candidates)
    some = np.flatnonzero(candidates.any(axis=(1, 2)))
    found = over_items(
        lambda k: _sharp(difference[k], err[k], candidates[k], usable[k], snr), some)
    for k, sharp in zip(some, found, strict=True):
        out[k] = sharp
    return out


def _sharp(difference, err, candidates, usable, snr):
    """Do one integration."""
    y, x = np.nonzero(candidates)
    noise = np.nan_to_num(err[y, x]).astype(np.float64) ** 2
    guilty = np.ones(len(y), dtype=bool)
    for _ in range(MAX_ROUNDS):
        witnesses = usable & np.isfinite(difference)
        witnesses[y[guilty], x[guilty]] = False
        expected, variance = krige(difference, witnesses, err, y, x)
        left = np.abs(difference[y, x] - expected)
        before = guilty
        explained = left <= snr * np.sqrt(noise + variance)  # unknown (NaN) is not
        weak = np.abs(difference[y, x]) < WEAK * snr * np.sqrt(noise)
        guilty = ~(explained & (~weak | (left <= LEFT * np.abs(difference[y, x]))))
        if (guilty == before).all():
            break
    out = np.zeros_like(candidates)
    out[y[guilty], x[guilty]] = True
    return out
