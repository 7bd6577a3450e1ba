"""Flag pixels that deviate from the exposure's median."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.device import on_gpu
from gpucoron.backend.parallel import over_items
from gpucoron.errors import InputError
from gpucoron.ops import dq as dq_bits
from gpucoron.ops.kriging import krige
from gpucoron.ops.median import median

__all__ = ["FlaggedExposure", "flag_outliers", "sharp_outliers"]

DO_NOT_USE, OUTLIER = np.uint32(dq_bits.DO_NOT_USE), np.uint32(dq_bits.OUTLIER)
WEAK = 1.5  # times the threshold: differences below it need a better explanation,
LEFT = 0.6  # one that leaves at most this share of them
MAX_ROUNDS = 8


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
        A pixel is a candidate where ``|data - median| > snr * err`` and `err` is above 0; without
        `neighbours` also where `err` is not, NaN counting as 0.
    good_bits : str, int or None
        DQ flags that a pixel may carry and still enter the median.
    maskpt : float
        0 or less lets all pixels into the median, more than 1 none.
    neighbours : bool
        Clear candidates that their neighbours explain (`sharp_outliers`), and take infinite data
        for NaN. Otherwise every candidate is an outlier, and infinities enter the median.

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
    ``|data - median|`` and ``snr * err`` are rounded as on the CPU, so candidates are the same;
    denormal float32 numbers count as 0. What the neighbours explain is computed in float64 on both,
    but in another order, so that a verdict may differ where it hangs on the 13th digit.
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
                MAX_ROUNDS,
            )
        )
    return _flag_on_host(data, err, dq, variances, snr, good_bits, maskpt, neighbours)


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


def _flag_on_host(data, err, dq, variances, snr, good_bits, maskpt, neighbours):
    if neighbours and np.isinf(data).any():
        data = np.where(np.isinf(data), data.dtype.type(np.nan), data)
    good = dq_bits.good_pixels(dq, good_bits)
    if maskpt > 1:
        good = np.zeros_like(good)
    elif maskpt <= 0 or not good.any():
        good = None
    middle = median(data, good)
    with np.errstate(invalid="ignore", over="ignore"):
        limit = err.dtype.type(snr) * np.nan_to_num(err)
        difference = data - middle
        outlier = np.abs(difference) > limit
    if neighbours:
        outlier &= err > 0
        usable = (dq & DO_NOT_USE) == 0
        usable &= np.isfinite(difference) & np.isfinite(err)
        outlier &= ~usable | sharp_outliers(difference, err, outlier & usable, usable, snr)
    flagged = outlier.sum(axis=(1, 2))
    dq = dq | outlier * (DO_NOT_USE | OUTLIER)
    arrays = (data, err, *variances)
    invalid = (dq & DO_NOT_USE) != 0
    for array in arrays:
        invalid |= np.isnan(array)
    dq[invalid] |= DO_NOT_USE
    data, err, *variances = (np.where(invalid, a.dtype.type(np.nan), a) for a in arrays)
    return FlaggedExposure(data, err, dq, variances, middle, flagged)


def sharp_outliers(difference, err, candidates, usable, snr):
    """Keep outlier candidates unless kriging from their neighbours predicts the value.

    Parameters
    ----------
    difference : (n, ny, nx) floating
        Each integration less the median of all.
    err : (n, ny, nx) floating
        Standard deviations; on a GPU of the dtype of `difference`.
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
    TypeError
        Host and device arrays are mixed.

    Notes
    -----
    When a star moves by a hundredth of a pixel behind a coronagraph, its bright speckles change by
    many times the noise. These changes are as smooth as diffraction makes them: a pixel is
    foretold by its neighbours. A cosmic ray is not. Candidates are tested against pixels that are
    none first; those that pass may then vouch for others, so that a wide patch is cleared from
    its edge inwards, and the test is repeated until nothing changes (eight rounds at most).
    """
    difference, err, candidates, usable = cuda.as_device_arrays(difference, err, candidates, usable)
    if not difference.shape == err.shape == candidates.shape == usable.shape:
        raise InputError(
            f"difference has shape {difference.shape}, err {err.shape}, candidates "
            f"{candidates.shape}, usable {usable.shape}; expected the same of all"
        )
    if on_gpu(difference, err, candidates, usable):
        from gpucoron.ops.cuda import outliers as _outliers_cuda

        return _outliers_cuda.sharp_outliers(
            difference,
            err.astype(difference.dtype, copy=False),
            candidates,
            usable,
            snr,
            MAX_ROUNDS,
        )
    out = np.array(candidates)
    some = np.flatnonzero(candidates.any(axis=(1, 2)))
    masks = over_items(lambda k: _sharp(difference[k], err[k], candidates[k], usable[k], snr), some)
    for k, sharp in zip(some, masks, strict=True):
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
