"""Flag pixels that deviate from the exposure's median."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import maximum_filter1d

from gpucoron.backend import cuda
from gpucoron.backend.device import on_gpu
from gpucoron.backend.parallel import over_items
from gpucoron.errors import InputError
from gpucoron.ops import dq as dq_bits
from gpucoron.ops.kriging_tables import CUTOFF, NEAR
from gpucoron.ops.median import median
from gpucoron.ops.outlier_suspects import (
    FACTORS,
    GROWS,
    suspected_outliers,
    usable_pixels,
)

__all__ = ["FlaggedExposure", "flag_outliers", "unpredicted_outliers", "suspected_outliers"]

DO_NOT_USE, OUTLIER = np.uint32(dq_bits.DO_NOT_USE), np.uint32(dq_bits.OUTLIER)


class FlaggedExposure(NamedTuple):
    """The result of `flag_outliers`."""

    data: Any  # (n, ny, nx), as the ones below: NaN where any of them is, or dq says DO_NOT_USE
    err: Any
    dq: Any  # (n, ny, nx) uint32
    variances: list
    median: Any  # (ny, nx)
    flagged: Any  # (n,) int: outliers in each integration


def flag_outliers(
    data,
    err,
    dq,
    variances=(),
    *,
    snr: float,
    good_bits: str | int | None = "~DO_NOT_USE",
    maskpt: float = 0.7,
    neighbours: bool = True,
    cutoff: float = CUTOFF,
) -> FlaggedExposure:
    """Flag pixels of an exposure that deviate from the median of its integrations.

    Parameters
    ----------
    data : (n, ny, nx) float32 or float64
        The integrations.
    err : (n, ny, nx) floating
        Standard deviations.
    dq : (n, ny, nx) uint32
        Data quality.
    variances : sequence of (n, ny, nx) floating
        Up to three more arrays that become NaN where data does.
    snr : float
        With `neighbours` a pixel is suspected where it deviates by more than `snr` errors
        (`suspected_outliers`); without, it is an outlier where ``|data - median| > snr * err``, NaN
        in `err` counting as 0.
    good_bits : str, int or None
        DQ flags that a pixel may carry and still enter the median.
    maskpt : float
        0 or less lets all pixels into the median, more than 1 none.
    neighbours : bool
        Keep suspects only where neighbours do not predict them
        (`unpredicted_outliers`), and take infinite data for NaN. Otherwise all that exceeds the
        threshold is an outlier, and infinities enter the median.
    cutoff : float, cycles per pixel
        Images have no structure beyond it; D / lambda of the telescope times the pixel, at most
        0.5, which is right for any image. The less, the better neighbours predict a pixel.

    Returns
    -------
    FlaggedExposure
        With DO_NOT_USE and OUTLIER set on outliers, and DO_NOT_USE wherever anything is NaN.

    Raises
    ------
    InputError
        Shapes that differ, a `dq` that is not uint32; on a GPU also floating arrays of different
        dtypes.
    TypeError
        Host and device arrays are mixed.

    Notes
    -----
    Where no pixel is good, all enter the median.

    On a GPU every array is read once and written once, whatever n; nothing waits for the host.
    ``|data - median|`` and ``snr * err`` are rounded as on the CPU, so suspects are the same;
    denormal float32 numbers count as 0. Predictions are computed in float64 on both, but in another
    order, so that a verdict may differ where it hangs on the 13th digit.
    """
    data, err, dq, *variances = cuda.as_device_arrays(data, err, dq, *variances)
    _check_exposure(data, err, dq, variances)
    if on_gpu(data, err, dq, *variances):
        from gpucoron.ops.cuda import outliers as _outliers_cuda

        dtypes = {str(a.dtype) for a in (data, err, *variances)}
        if len(dtypes) > 1:
            raise InputError(
                f"data, err and variances have dtypes {', '.join(sorted(dtypes))}; "
                "a GPU takes one for all, so convert them with .astype"
            )
        enters = "none" if maskpt > 1 else "all" if maskpt <= 0 else "good"
        return FlaggedExposure(
            *_outliers_cuda.flag_outliers(
                data,
                err,
                dq,
                variances,
                snr,
                dq_bits.bad_mask(good_bits, dq.dtype),
                enters,
                neighbours,
                cutoff,
            )
        )
    return _flag_on_host(data, err, dq, variances, snr, good_bits, maskpt, neighbours, cutoff)


def _check_exposure(data, err, dq, variances):
    if data.ndim != 3 or not all(a.shape == data.shape for a in (err, dq, *variances)):
        shapes = ", ".join(str(a.shape) for a in (data, err, dq, *variances))
        raise InputError(
            f"data, err, dq and variances have shapes {shapes}; "
            "expected (n, ny, nx), the same of all"
        )
    if dq.dtype != np.uint32:
        raise InputError(f"dq has dtype {dq.dtype}, expected uint32")
    if len(variances) > 3:
        raise InputError(f"{len(variances)} variances given, expected up to three")


def _flag_on_host(data, err, dq, variances, snr, good_bits, maskpt, neighbours, cutoff):
    if neighbours and np.isinf(data).any():
        data = np.where(np.isinf(data), data.dtype.type(np.nan), data)
    good = dq_bits.good_pixels(dq, good_bits)
    if maskpt > 1:
        good = np.zeros_like(good)
    elif maskpt <= 0 or not good.any():
        good = None
    middle = median(data, good)
    if neighbours:
        usable = usable_pixels(data, err, dq)
        suspects = suspected_outliers(data, err, middle, usable, snr)
        outlier = unpredicted_outliers(data, err, usable, suspects, snr, cutoff)
    else:
        with np.errstate(invalid="ignore", over="ignore"):
            outlier = np.abs(data - middle) > err.dtype.type(snr) * np.nan_to_num(err)
    flagged = outlier.sum(axis=(1, 2))
    dq = dq | outlier * (DO_NOT_USE | OUTLIER)
    arrays = (data, err, *variances)
    invalid = (dq & DO_NOT_USE) != 0
    for unknown in over_items(np.isnan, arrays):
        invalid |= unknown
    dq[invalid] |= DO_NOT_USE
    data, err, *variances = over_items(lambda a: np.where(invalid, a.dtype.type(np.nan), a), arrays)
    return FlaggedExposure(data, err, dq, variances, middle, flagged)


def unpredicted_outliers(data, err, usable, suspects, snr, cutoff=CUTOFF):
    """Keep suspected outliers unless their neighbours predict them.

    Parameters
    ----------
    data : (n, ny, nx) floating
        The integrations of an exposure.
    err : (n, ny, nx) floating
        Standard deviations; on a GPU of the dtype of `data`.
    usable : (n, ny, nx) bool
        Pixels that take part, from `usable_pixels`.
    suspects : (n, ny, nx) bool
        From `suspected_outliers`. They are tested, and pixels of whose eight neighbours four
        are suspects, unless there is only one integration.
    snr : float
        The threshold. An outlier exceeds 0.9 times as much against what is predicted.
    cutoff : float, cycles per pixel
        As for `flag_outliers`.

    Returns
    -------
    (n, ny, nx) bool

    Raises
    ------
    InputError
        Shapes that differ.
    TypeError
        Host and device arrays are mixed.

    Notes
    -----
    When a star moves by a hundredth of a pixel behind a coronagraph, its bright speckles change by
    many times the noise. These changes are as smooth as diffraction makes them: a pixel is
    predicted by its neighbours. A cosmic ray is not.

    A suspect's difference from the mean of up to four integrations of middling value is known for
    the 48 pixels within 4 px, too. Where these hold no more than noise, their mean is the
    prediction, otherwise simple kriging [1]_ with the noise of each. So no median enters, which
    jumps from one integration to another where they cross and is not smooth. The variance is that
    of the pixel, of the integrations it is compared with and of kriging, and the square of 0.05
    times the kriged value, as the true correlations are not known. The track of a particle must not
    explain itself: of the 12 nearest neighbours those are left out, one after the other, that the
    rest predicts worst and wrong by more than 2.5 standard deviations. In changing surroundings
    deviations count 1.15 times, of three or more integrations downwards 0.6 times that, as hits are
    bright.

    Outliers must not predict others, and nobody knows them beforehand. In a first round all
    suspects are passed over; those whose neighbours then hold nothing but noise are outliers. In
    the next rounds those are too that exceed 73 times `snr`, then 24, 8, 2.7 and 0.9 times, tested
    against pixels that are none so far; an outlier stays one above 0.9 times. The last round is
    repeated up to three times, until nothing changes.

    Of two integrations the higher has the outlier, unless its own image predicts the pixel and the
    lower one's does not. In a single integration only what is higher than predicted is an outlier;
    a tenth of the kriged value counts as its error, and kriging's variance, and what a neighbour
    must exceed to be left out, are multiplied by how much worse than expected the model fits the
    neighbours (their mean square, decorrelated), at least 1.

    References
    ----------
    .. [1] Cressie 1993, Statistics for Spatial Data, sect. 3.4.5.
    """
    arrays = cuda.as_device_arrays(data, err, usable, suspects)
    data, err, usable, suspects = arrays
    if data.ndim != 3 or not all(a.shape == data.shape for a in arrays):
        shapes = ", ".join(str(a.shape) for a in arrays)
        raise InputError(
            f"data, err, usable and suspects have shapes {shapes}; "
            "expected (n, ny, nx), the same of all"
        )
    if on_gpu(*arrays):
        from gpucoron.ops.cuda import outliers as _outliers_cuda

        err = err.astype(data.dtype, copy=False)
        return _outliers_cuda.unpredicted_outliers(data, err, usable, suspects, snr, cutoff)
    return _unpredicted_on_host(data, err, usable, suspects, snr, cutoff)


def _unpredicted_on_host(data, err, usable, suspects, snr, cutoff):
    from gpucoron.ops.cpu.outliers import deviations

    places = np.nonzero((_grown(suspects) if len(data) > 1 else suspects) & usable)
    outliers = suspects & usable
    scores, stale = np.zeros(len(places[0])), np.ones(len(places[0]), bool)
    # read-only arrays, views and mixed dtypes would each compile the test anew
    dtype = np.result_type(data, err)
    data, err = (np.require(a, dtype, ["C", "W"]) for a in (data, err))
    images = data, err, np.require(usable, requirements=["C", "W"])
    for k, factor in enumerate(FACTORS):
        deviations(images, places, outliers, scores, stale, k == 0, cutoff)
        before = outliers[places]
        above = scores > np.where(before, FACTORS[-1], factor) * snr
        changed = above != before
        stale = _near(changed, places, data.shape[1:])
        if k == 0:
            stale |= ~above
        outliers[places] = above
        if k and factor == FACTORS[-1] and not changed.any():
            break
    return outliers


def _grown(suspects):
    """Add pixels of whose eight neighbours four or more are suspects: the image changes there."""
    n, ny, nx = suspects.shape
    rows = np.zeros((n, ny + 2, nx), np.uint8)
    rows[:, 1:-1] = suspects
    rows[:, 1:-1, 1:] += suspects[:, :, :-1]
    rows[:, 1:-1, :-1] += suspects[:, :, 1:]
    return suspects | (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] >= GROWS)


def _near(changed, places, shape):
    """Find places so near to one that changed, in any integration, that their test changes."""
    _, y, x = places
    some = np.zeros(shape, bool)
    some[y[changed], x[changed]] = True
    for axis in (0, 1):
        some = maximum_filter1d(some.astype(np.uint8), 2 * NEAR + 1, axis, mode="constant")
    return some[y, x] > 0
