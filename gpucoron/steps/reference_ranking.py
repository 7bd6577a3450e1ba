"""Rank reference exposures: which resemble the target, and which may have a background source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.core.stack import PlaneSource
from gpucoron.ops.leave_one_out import combine, exposure_means, prediction_errors

__all__ = ["LIKELY_SOURCE", "RANKING_DTYPE", "rank_references", "with_shares"]

#: One row for each reference exposure, the most similar one first.
RANKING_DTYPE = np.dtype(
    [
        ("exposure", "U80"),
        ("integrations", "i4"),
        ("correlation", "f8"),
        ("share", "f8"),
        ("left", "f8"),
        ("source", "f8"),
        ("x", "f8"),
        ("y", "f8"),
    ]
)
#: `source` from which an exposure is suspected; references without one reach 16 in 62 simulated
#: cases (NIRCam, 4QPM, Lyot).
LIKELY_SOURCE = 20.0
MOST_EXPOSURES = 64  # that are left out one by one; with more nothing is
_INNER = 6.0  # px from the star, within which no source is looked for
_RIM = 8  # px at the edges, where none is either
_RING = 2.5  # px, half the width of an annulus
_FEWEST = 30  # pixels of an annulus that has a scatter
_LEAST = 4.0  # times the scatter of the annulus, of a point that is looked at
_OTHERS = 3.0  # times the scatter, which the largest of other exposures' values may be by chance
_GAUSSIAN = 1.4826  # standard deviation over median of absolute deviations


def rank_references(
    targets: Any,
    references: Any,
    sources: Sequence[PlaneSource],
    center: tuple[float, float],
    *,
    truncate: int,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """Compare aligned references with the target, and each reference exposure with the others.

    Parameters
    ----------
    targets : (n, ny, nx) floating
        The science integrations, on the host or a GPU, as the references.
    references : (nref, ny, nx) floating
        Aligned references; those that are not finite throughout are left out.
    sources : sequence of PlaneSource
        Of the references.
    center : (x, y), pixels counted from 0
        About where the star is.
    truncate : int
        Number of KL modes.
    weight : (ny, nx) floating, optional
        Of the pixels, as in KLIP. Default: ones.

    Returns
    -------
    (n_exposures,) structured array of `RANKING_DTYPE`, by decreasing correlation
        ``correlation``: of an exposure's mean image with that of the target (Pearson). ``left``:
        rms of what remains when the exposure's mean is predicted by KLIP from those of the others
        (a jackknife), over its own rms. ``source``: the brightest point that remains of this
        exposure alone, a mean of 3 x 3 pixels over the scatter of such means at the same distance
        from the star, at ``x``, ``y`` (pixels of the science exposure, from 1; NaN with 0, where
        nothing stands out). NaN where an exposure has no others. ``share`` is NaN: see
        `with_shares`.

    Notes
    -----
    A source in one reference exposure is predicted by none of the others, so it remains with its
    whole flux; in what the other exposures leave it is negative. KLIP subtracts it from the science
    images in proportion to ``share``.
    """
    xp = cuda.array_namespace(targets, references)
    usable = to_host(xp.isfinite(references).all(axis=(1, 2)))
    names = np.array([source.exposure for source in sources])
    roots = list(dict.fromkeys(names[usable].tolist()))
    groups = np.array([roots.index(name) for name in names[usable].tolist()])
    table = np.zeros(len(roots), dtype=RANKING_DTYPE)
    table["exposure"], table["integrations"] = roots, np.bincount(groups)
    means = exposure_means(references[xp.asarray(usable)], groups)
    target = xp.where(xp.isfinite(targets), targets, 0.0).mean(axis=0, dtype=np.float64)
    square = xp.ones(target.shape) if weight is None else xp.asarray(weight) ** 2
    for name in ("share", "left", "source", "x", "y"):
        table[name] = np.nan
    table["correlation"] = _correlations(target, means, square)
    if 1 < len(roots) <= MOST_EXPOSURES:
        (rows,) = prediction_errors(means, [truncate], weight)
        left = combine(rows, means)
        rms = xp.sqrt((left**2 * square).sum(axis=(1, 2)) / (means**2 * square).sum(axis=(1, 2)))
        table["left"] = to_host(rms)
        found = _find_sources(to_host(left), rows, to_host(square) > 0, center)
        table["source"], table["x"], table["y"] = zip(*found, strict=True)
    return table[np.argsort(-table["correlation"], kind="stable")]


def _correlations(target: Any, means: Any, square: Any) -> np.ndarray:
    """Pearson correlations, weighted, of an image with others."""
    xp = cuda.array_namespace(means)
    total = square.sum()
    a = target - (target * square).sum() / total
    b = means - ((means * square).sum(axis=(1, 2)) / total)[:, None, None]
    product = (a * b * square).sum(axis=(1, 2))
    size = xp.sqrt((a * a * square).sum() * (b * b * square).sum(axis=(1, 2)))
    return to_host(product / xp.where(size > 0, size, np.inf))


def _find_sources(
    left: np.ndarray,
    rows: np.ndarray,
    used: np.ndarray,
    center: tuple[float, float],
) -> list[tuple[float, float, float]]:
    """Return for each exposure the brightest point that it alone has: `source`, x and y from 1.

    `left` (n, ny, nx) is what the predictions leave, ``rows @ means``. A source S in exposure e is
    ``rows[g, e] S`` in what is left of g. What the others have beyond that is theirs, such as a
    speckle, and counts as scatter. Coefficients below -1 make a source brighter in what is left of
    another exposure than in its own: it is that one's which explains all of them best.
    """
    from scipy.ndimage import uniform_filter

    y, x = (np.asarray(axis) for axis in np.indices(left.shape[1:]))
    r = np.hypot(x - center[0], y - center[1])
    inner = used & (r >= _INNER)
    for axis in (0, 1):  # shifts leave traces at the rim
        np.moveaxis(inner, axis, 0)[:_RIM] = np.moveaxis(inner, axis, 0)[-_RIM:] = False
    rings = (r / (2 * _RING)).astype(int)[inner]
    smooth = np.array([uniform_filter(image, 3, mode="nearest")[inner] for image in left])
    places = np.stack([x[inner], y[inner]], axis=1) + 1
    scatters = _scatter_in_rings(smooth, rings)
    found = []
    for e, (values, scatter) in enumerate(zip(smooth, scatters, strict=True)):
        bright = np.flatnonzero(values > _LEAST * scatter)
        rest = smooth[:, bright] - np.outer(rows[:, e], values[bright])
        others = np.abs(np.delete(rest, e, axis=0)).max(axis=0)
        ratio = values[bright] / np.hypot(scatter[bright], others / _OTHERS)
        best = int(bright[int(np.argmax(ratio))]) if ratio.size else None
        if best is not None and _owner(smooth[:, best], scatters[:, best], rows) == e:
            found.append((float(ratio.max()), *places[best].tolist()))
        else:
            found.append((0.0, np.nan, np.nan))
    return found


def _owner(values: np.ndarray, scatter: np.ndarray, rows: np.ndarray) -> int:
    """Return the exposure whose source explains best what is left of all at one place."""
    patterns = rows / scatter[:, None]
    values = values / scatter
    flux = (values @ patterns) / (patterns**2).sum(axis=0)
    chi2 = ((values[:, None] - patterns * flux) ** 2).sum(axis=0)
    return int(np.argmin(np.where(flux > 0, chi2, np.inf)))


def _scatter_in_rings(values: np.ndarray, rings: np.ndarray) -> np.ndarray:
    """Return the scatter of all values (n, npix) of the same ring, infinite in rings with few."""
    out = np.full(values.shape, np.inf)
    order = np.argsort(rings, kind="stable")
    for own in np.split(order, np.flatnonzero(np.diff(rings[order])) + 1):
        if own.size >= _FEWEST:
            of_ring = values[:, own]
            away = abs(of_ring - np.median(of_ring, axis=1, keepdims=True))
            scatter = _GAUSSIAN * np.median(away, axis=1, keepdims=True)
            out[:, own] = np.maximum(scatter, np.finfo(float).tiny)
    return out


def with_shares(
    table: np.ndarray, sources: Sequence[PlaneSource], coefficients: np.ndarray
) -> np.ndarray:
    """Add to a ranking the share of each exposure in the PSF that was subtracted.

    Parameters
    ----------
    table : structured array
        From `rank_references`.
    sources : sequence of PlaneSource
    coefficients : (n, nref) or (nzones, n, nref) floating
        Of the references in the models, on the host.

    Returns
    -------
    structured array
        ``share`` is the sum of an exposure's coefficients over that of all, a mean over
        integrations (and zones); some may be negative.
    """
    mean = coefficients.reshape(-1, coefficients.shape[-1]).mean(axis=0)
    total = mean.sum()
    table = table.copy()
    for row in table:
        own = [s.exposure == row["exposure"] for s in sources]
        row["share"] = mean[own].sum() / total if total else np.nan
    return table
