"""Which pixels the test for outliers looks at; for arrays anywhere."""

import numpy as np

from gpucoron.backend import cuda
from gpucoron.ops import dq as dq_bits

DO_NOT_USE = np.uint32(dq_bits.DO_NOT_USE)
ODD = np.uint32(1 << 11 | 1 << 12 | 1 << 30)  # HOT, WARM, OTHER_BAD_PIXEL
GROWS = 4  # suspects among eight neighbours: then a pixel is tested, too
#: Thresholds of the rounds in units of snr; the first is for suspects where nothing changes.
FACTORS = (0.9, 72.9, 24.3, 8.1, 2.7, 0.9, 0.9, 0.9, 0.9)


def usable_pixels(data, err, dq):
    """Return which pixels take part: not DO_NOT_USE, finite, and of a known error above 0.

    Of a single integration also not flagged HOT, WARM or OTHER_BAD_PIXEL: their excess stays the
    same in all integrations, but one alone cannot tell it from a hit.
    """
    xp = cuda.array_namespace(data)
    bits = DO_NOT_USE if len(data) > 1 else DO_NOT_USE | ODD
    return ((dq & bits) == 0) & xp.isfinite(data) & xp.isfinite(err) & (err > 0)


def suspected_outliers(data, err, middle, usable, snr):
    """Find pixels that deviate by more than `snr` errors.

    From the median of the integrations; of two, from each other; a single one upwards from the
    mean of the eight neighbours.

    Parameters
    ----------
    data, err : (n, ny, nx) floating
        The integrations and their standard deviations.
    middle : (ny, nx) floating
        The median of the integrations.
    usable : (n, ny, nx) bool
        From `usable_pixels`; others are no suspects.
    snr : float
        The threshold.

    Returns
    -------
    (n, ny, nx) bool
    """
    xp = cuda.array_namespace(data)
    limit = data.dtype.type(snr)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        if len(data) > 2:
            return (xp.abs(data - middle) > limit * err) & usable
        if len(data) == 2:
            spread = limit * xp.sqrt(err[0] * err[0] + err[1] * err[1])
            deviates = (xp.abs(data[0] - data[1]) > spread) & usable[0] & usable[1]
            return xp.stack([deviates, deviates])
        return (data - _ring_mean(data, usable) > limit * err) & usable


def _ring_mean(data, usable):
    """Mean of the eight neighbours that are usable, without the highest and the lowest."""
    xp = cuda.array_namespace(data)
    ny, nx = data.shape[1:]
    edge = ((0, 0), (1, 1), (1, 1))
    values, counts = xp.pad(data.astype(np.float64), edge), xp.pad(usable, edge)
    total, count, low, high = 0.0, 0.0, np.inf, -np.inf
    for v, u in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)):
        part = np.s_[:, v : v + ny, u : u + nx]
        value, good = values[part], counts[part]
        total = total + xp.where(good, value, 0.0)
        count = count + good.astype(np.float64)
        low = xp.minimum(low, xp.where(good, value, np.inf))
        high = xp.maximum(high, xp.where(good, value, -np.inf))
    return xp.where(count > 2, (total - high - low) / xp.maximum(count - 2, 1.0), np.nan)
