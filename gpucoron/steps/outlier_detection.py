"""outlier_detection: flag what one integration has and the exposure's median has not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpucoron.ops import dq as dq_bits
from gpucoron.ops.median import median
from gpucoron.ops.outliers import sharp_outliers
from gpucoron.stack import VARIANCES, IntegrationStack

__all__ = ["OutlierResult", "outlier_detection"]

DO_NOT_USE = np.uint32(dq_bits.DO_NOT_USE)
OUTLIER = np.uint32(dq_bits.OUTLIER)


class OutlierResult(NamedTuple):
    """What outlier_detection gives back."""

    stack: IntegrationStack
    median: np.ndarray  # (ny, nx), units of the data
    flagged: np.ndarray  # (n,) number of outliers in each integration


def outlier_detection(
    stack: IntegrationStack, *, snr: float = 5.0, maskpt: float = 0.7,
    good_bits: str | int | None = "~DO_NOT_USE", preset: str | None = None,
) -> OutlierResult:
    """Flag outliers in one exposure against the per-pixel median of its integrations.

    Parameters
    ----------
    stack : IntegrationStack
        The integrations of one exposure.
    snr : float
        A pixel is an outlier where ``|data - median| > snr * err``; NaN in `err` counts as 0.
    maskpt : float
        Pixels whose weight (1 good, 0 bad) is below this share of the mean weight stay out of the
        median; 0 lets bad pixels in.
    good_bits : str or int or None
        DQ flags that a pixel may carry and still enter the median.
    preset : {None, "jwst"}
        "jwst" flags all that exceeds the threshold, lets infinite values into the median and leaves
        them standing, as the package does.

    Returns
    -------
    OutlierResult
        The stack with DO_NOT_USE and OUTLIER set on outliers; wherever data, err or a variance is
        NaN or DQ says DO_NOT_USE, all of these are NaN and DO_NOT_USE is set. Then the median
        image, and the number of outliers in each integration.

    Raises
    ------
    ParameterError
        `good_bits` that are no DQ flags.

    Notes
    -----
    The median and the threshold are jwst's for coronagraphy, in float32, bit for bit. What exceeds
    the threshold is flagged if its neighbours do not foretell it (`gpucoron.ops.outliers`): where a
    bright star moves by a hundredth of a pixel, jwst flags the speckles of its core. With one
    integration nothing can be flagged; with two, the preset flags a pixel in both or in neither.
    """
    data = stack.data
    if preset != "jwst" and np.isinf(data).any():
        data = np.where(np.isinf(data), data.dtype.type(np.nan), data)
        stack = stack.replace(data=data)
    good = dq_bits.good_pixels(stack.dq, good_bits)
    if maskpt > 1:
        good = np.zeros_like(good)
    elif maskpt <= 0 or not good.any():
        good = None
    middle = median(stack.data, good)
    with np.errstate(invalid="ignore", over="ignore"):
        limit = stack.err.dtype.type(snr) * np.nan_to_num(stack.err)
        difference = stack.data - middle
        outlier = np.abs(difference) > limit
    if preset != "jwst":
        usable = (stack.dq & DO_NOT_USE) == 0
        usable &= np.isfinite(difference) & np.isfinite(stack.err)
        outlier &= ~usable | sharp_outliers(difference, stack.err, outlier & usable, usable, snr)
    flagged = outlier.sum(axis=(1, 2))
    dq = stack.dq | outlier * (DO_NOT_USE | OUTLIER)
    return OutlierResult(_match_nans_and_flags(stack, dq), middle, flagged)


def _match_nans_and_flags(stack, dq):
    """Make NaNs and DO_NOT_USE agree in all arrays."""
    arrays = {name: getattr(stack, name) for name in ("data", "err", *VARIANCES)}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    invalid = (dq & DO_NOT_USE) != 0
    for array in arrays.values():
        invalid |= np.isnan(array)
    dq[invalid] |= DO_NOT_USE
    arrays = {name: np.where(invalid, array.dtype.type(np.nan), array)
              for name, array in arrays.items()}
    return stack.replace(dq=dq, **arrays)
