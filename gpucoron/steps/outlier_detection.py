"""outlier_detection: flag pixels that deviate from the exposure's median."""

from __future__ import annotations

from typing import Any, NamedTuple

from gpucoron.core.display import short_html, short_repr
from gpucoron.core.stack import VARIANCES, IntegrationStack
from gpucoron.ops.kriging_tables import CUTOFF
from gpucoron.ops.outliers import flag_outliers

__all__ = ["OutlierResult", "outlier_detection"]


class OutlierResult(NamedTuple):
    """The result of outlier_detection."""

    stack: IntegrationStack
    median: Any  # (ny, nx), units of the data
    flagged: Any  # (n,) int, number of outliers in each integration

    def __repr__(self) -> str:
        return short_repr(self)

    def _repr_html_(self) -> str:
        return short_html(self)


def outlier_detection(
    stack: IntegrationStack,
    *,
    snr: float = 5.0,
    maskpt: float = 0.7,
    good_bits: str | int | None = "~DO_NOT_USE",
    preset: str | None = None,
    cutoff: float = CUTOFF,
) -> OutlierResult:
    """Flag pixels of an exposure that deviate from the median of its integrations.

    Parameters
    ----------
    stack : IntegrationStack
        The integrations of one exposure.
    snr : float
        The threshold in units of `err`: from the median of the integrations; of two integrations
        from each other; of one from its neighbours.
    maskpt : float
        Pixels whose weight (1 good, 0 bad) is below this share of the mean weight stay out of the
        median; 0 lets bad pixels in.
    good_bits : str or int or None
        DQ flags that a pixel may carry and still enter the median.
    preset : {None, "jwst"}
        "jwst" flags all that exceeds the threshold, also where `err` is not above 0 (NaN counts as
        0), lets infinite values into the median and leaves them standing, as the package does.
    cutoff : float, cycles per pixel
        Images have no structure beyond it (`gpucoron.optics.telescope.cutoff_of` knows those of
        JWST); the default is right for any image. Not used with the preset.

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
    the threshold, and its neighbours, are flagged if neither other integrations nor neighbours
    predict them (`gpucoron.ops.outliers`): where a bright star moves by a hundredth of a pixel,
    jwst flags the speckles of its core. With one integration the preset flags nothing; with two it
    flags a pixel in both or in neither, here the one that is hit.
    """
    names = [name for name in VARIANCES if getattr(stack, name) is not None]
    result = flag_outliers(
        stack.data,
        stack.err,
        stack.dq,
        [getattr(stack, name) for name in names],
        snr=snr,
        good_bits=good_bits,
        maskpt=maskpt,
        neighbours=preset != "jwst",
        cutoff=cutoff,
    )
    variances = dict(zip(names, result.variances, strict=True))
    flagged = stack.replace(data=result.data, err=result.err, dq=result.dq, **variances)
    return OutlierResult(flagged, result.median, result.flagged)
