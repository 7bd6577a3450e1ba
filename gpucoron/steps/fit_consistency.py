"""Find alignment fits that converged and still cannot be right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpucoron.ops.registration import CONVERGED, INCONSISTENT

__all__ = ["Finding", "find_inconsistent_fits", "mark_inconsistent"]

# Limits, with what was measured. Good: 24 simulated NIRCam, MIRI 4QPM and MIRI Lyot sets (seeds 0
# to 9) with their psfmask, and AU Mic. Bad: references 9 and 14 px away that were not found, stars
# fainter than the noise, ERR that is 0, pairs without a psfmask that are 0.8 to 7 px off.

#: Uncertainty of a shift, px. Good 0.0005 to 0.02, at the noise 0.1 to 0.7.
MOST_UNCERTAIN = 0.5
#: Residual over the reference's own rms. Good 0.04 to 0.70, and to 0.79 where the noise is a good
#: part of the image; bad 0.78 to 1. At 0.92 the shifts are a tenth of the true ones.
MOST_LEFT = 0.8
#: The same over its median of all pairs, from 0.5 on. Good to 3; one displaced integration 4 to 30.
MOST_ABOVE_MEDIAN, ALWAYS_GOOD = 4.0, 0.5
#: Factor between the brightness ratio and that which the two images have with others. Good 1.000
#: to 1.012, one displaced integration 1.5 and more.
MOST_BRIGHTNESS = 1.5
#: Standard deviations between a shift and that which the two images have with others. A standard
#: deviation is that of the shifts' own scatter, but not below their uncertainty or 0.02 px, nor
#: above three times the uncertainty. Left of the shifts: good 0.0004 to 0.006 px (4QPM 0.015),
#: without a psfmask to 0.042, at the noise 0.1 to 2.
MOST_SIGMA, LEAST_SIGMA_PX, MOST_SCATTER = 5.0, 0.02, 3.0


class Finding(NamedTuple):
    """Fits that are inconsistent for one reason."""

    #: "uncertainty", "residual", "brightness" or "closure"
    reason: str
    #: Which rows of the table, (n,) bool.
    pairs: np.ndarray
    #: Worst value of these, and the largest that is accepted: px, a share of the reference's rms,
    #: a factor, px.
    worst: float
    limit: float


def mark_inconsistent(fits: np.ndarray, findings: list[Finding]) -> np.ndarray:
    """Return the table with the status of these fits set to `INCONSISTENT`."""
    fits = fits.copy()
    for finding in findings:
        fits["status"][finding.pairs] = INCONSISTENT
    return fits


def find_inconsistent_fits(fits: np.ndarray, reference_rms: np.ndarray) -> list[Finding]:
    """Find fits that converged but explain nothing, or contradict the other fits.

    Parameters
    ----------
    fits : (nsci nref,) structured array
        `gpucoron.steps.align_refs.FITS_DTYPE`, all pairs of a science exposure, science
        integrations outermost.
    reference_rms : (nref,) floating
        Rms of each reference within the psfmask, in units of the residual
        (`gpucoron.steps.Alignment.reference_rms`).

    Returns
    -------
    list of Finding
        Empty if all is well. A fit may be in several.

    Notes
    -----
    A shift between two images is the difference of their positions, and a brightness ratio that of
    their brightnesses: ``s_ij = a_j - b_i``. The positions are found by medians along rows and
    columns in turn (median polish [1]_), from the fits that nothing else speaks against; what is
    left of the shifts is their closure. One integration alone, or one reference, has none.

    References
    ----------
    .. [1] Tukey 1977, Exploratory Data Analysis, chapter 11.
    """
    table = fits.reshape(-1, len(reference_rms))
    converged = table["status"] == CONVERGED
    if not converged.any():
        return []
    uncertainty = np.maximum(table["x_err"], table["y_err"])
    uncertainty = np.where(np.isnan(uncertainty), np.inf, uncertainty)
    left = np.where(reference_rms > 0, table["residual"] / np.fmax(reference_rms, 1e-300), 1.0)
    of_median = MOST_ABOVE_MEDIAN * float(np.median(left[converged]))
    limit = min(MOST_LEFT, max(ALWAYS_GOOD, of_median))
    found = [
        _finding("uncertainty", uncertainty, MOST_UNCERTAIN, converged),
        _finding("residual", left, limit, converged),
    ]
    good = converged & ~found[0].pairs.reshape(table.shape) & ~found[1].pairs.reshape(table.shape)
    beta = np.where(good, table["beta"], 1.0)
    factor = np.exp(np.abs(_closure(np.log(beta), good)))
    found.append(_finding("brightness", factor, MOST_BRIGHTNESS, good))
    good &= ~found[2].pairs.reshape(table.shape)
    if good.any():
        rest = np.stack([np.abs(_closure(table[name], good)) for name in ("x", "y")])
        allowed = [
            MOST_SIGMA * _sigma(own[good], table[f"{name}_err"][good])
            for name, own in zip(("x", "y"), rest, strict=True)
        ]
        ratio = rest / np.reshape(allowed, (2, 1, 1))
        worst = int(np.argmax(ratio.max(axis=(1, 2))))
        over = _finding("closure", ratio.max(axis=0), 1.0, good)
        found.append(over._replace(worst=float(rest[worst].max()), limit=float(allowed[worst])))
    return [finding for finding in found if finding.pairs.any()]


def _finding(reason: str, values: np.ndarray, limit: float, tried: np.ndarray) -> Finding:
    over = tried & (values > limit)
    return Finding(reason, over.ravel(), float(values[over].max(initial=limit)), limit)


def _sigma(rest: np.ndarray, stated: np.ndarray) -> float:
    """Standard deviation of what is left of shifts, px; `rest` holds absolute values."""
    typical = float(np.median(stated))
    own = min(1.4826 * float(np.median(rest)), MOST_SCATTER * typical)
    return max(own, typical, LEAST_SIGMA_PX)


def _closure(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """What is left of values (nsci, nref) after one number for each row and each column.

    Rows and columns are fitted to the good values alone; 0 where a value is not good.
    """
    rest = np.where(good, values, np.nan)
    rows, columns = good.any(axis=1), good.any(axis=0)
    inner = rest[np.ix_(rows, columns)]
    for _ in range(10):
        inner = inner - _medians(inner)
        inner = inner - _medians(inner.T)[:, None]
    rest[np.ix_(rows, columns)] = inner
    return np.where(good, rest, 0.0)


def _medians(values: np.ndarray) -> np.ndarray:
    """Median of each column (n, m) without its NaN, of which it has fewer than n.

    What `numpy.nanmedian` gives, in a tenth of the time for some hundred columns.
    """
    ordered = np.sort(values, axis=0)  # NaN last
    count, columns = (~np.isnan(values)).sum(axis=0), np.arange(values.shape[1])
    return (ordered[(count - 1) // 2, columns] + ordered[count // 2, columns]) / 2
