"""The hole of a psfmask: compared with where the star is, and moved there."""

from __future__ import annotations

import logging
import math

import numpy as np

__all__ = ["center_hole", "find_hole", "move_mask"]

log = logging.getLogger("gpucoron")

_AWAY_PX = 2.0  # between hole and star; the psfmasks of simulated sets are 0 to 0.6 px off
_LEAST_PIXELS = 9  # of a hole; less is a bad pixel or a few
_HALF = 0.5  # of the largest weight

Pair = tuple[float, float]


def center_hole(
    mask: np.ndarray,
    star: tuple[Pair, str] | None,
    *,
    name: str,
    bar: bool = False,
    move: bool = False,
) -> tuple[np.ndarray, str]:
    """Compare the hole of a psfmask with the star; with `move`, move the mask by whole pixels.

    Parameters
    ----------
    mask : (ny, nx) float64
    star : ((x, y), str) or None
        Where the star is, pixels counted from 1, and what says so, for messages.
    name : str
        Of the mask's file, for messages.
    bar : bool
        The coronagraph is a bar along x: only y is compared and moved.
    move : bool
        Without it a warning says how far a hole is from the star, if that is more than 2 px.

    Returns
    -------
    mask : (ny, nx) float64
        The same array where nothing is moved.
    how : str
        By how much it was moved, in words; empty where it was not.
    """
    hole = None if star is None else find_hole(mask, star[0], bar)
    if star is None or hole is None:
        if move:
            what = "the star's position is not known" if star is None else "it has no hole"
            log.warning("%s: the psfmask is used as it is, because %s", name, what)
        return mask, ""
    away = np.where(np.isnan(hole), 0.0, np.subtract(star[0], hole))
    if not move:
        if math.hypot(*away) > _AWAY_PX:
            _warn(name, star, hole, away)
        return mask, ""
    dx, dy = np.rint(away).astype(int).tolist()
    if not (dx or dy):
        return mask, ""
    how = f"moved by x, y = {dx}, {dy} px onto the star"
    log.info("%s: the psfmask is %s at x, y = %.1f, %.1f (%s)", name, how, *star[0], star[1])
    return move_mask(mask, dx, dy), how


def _warn(name: str, star: tuple[Pair, str], hole: Pair, away: np.ndarray) -> None:
    (x, y), source = star
    place = f"at x, y = {hole[0]:.1f}, {hole[1]:.1f}"
    if math.isnan(hole[0]):
        place = f"along y = {hole[1]:.1f}"
    log.warning(
        "%s: the hole of the psfmask is %s, %.1f px from the star at x, y = %.1f, %.1f (%s); "
        "--psfmask-center star moves it there",
        *(name, place, math.hypot(*away), x, y, source),
    )


def find_hole(mask: np.ndarray, star: Pair, bar: bool = False) -> Pair | None:
    """Return the centre of the hole of a psfmask nearest to the star, pixels counted from 1.

    A hole is a connected region of weights below half of the largest that does not touch the
    edges of the image. That of a bar has x NaN, and y is the median over the columns of the
    middle of the region nearest to the star. None where there is no hole.
    """
    low = mask < _HALF * mask.max()
    if bar:
        rows = [row for column in low.T if (row := _middle(column, star[1] - 1)) is not None]
        return (math.nan, float(np.median(rows)) + 1) if rows else None
    from scipy import ndimage

    labels, _ = ndimage.label(low)
    edges = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    sizes = np.bincount(labels.ravel())
    sizes[[0, *np.unique(edges)]] = 0
    holes = np.flatnonzero(sizes >= _LEAST_PIXELS)
    if not len(holes):
        return None
    y, x = np.array(ndimage.center_of_mass(low, labels, holes)).T + 1
    nearest = int(np.argmin(np.hypot(x - star[0], y - star[1])))
    return float(x[nearest]), float(y[nearest])


def _middle(column: np.ndarray, y: float) -> float | None:
    """Return the middle of the run of True nearest to `y` that does not touch the ends."""
    steps = np.diff(column.astype(np.int8))
    starts, ends = np.flatnonzero(steps == 1) + 1, np.flatnonzero(steps == -1)
    ends = ends[ends >= starts[0]] if len(starts) else ends[:0]
    middles = (starts[: len(ends)] + ends) / 2
    return float(middles[np.argmin(np.abs(middles - y))]) if len(middles) else None


def move_mask(mask: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """Move a mask by whole pixels; what comes in at the edges repeats the outermost pixels."""
    ny, nx = mask.shape
    rows, columns = np.arange(ny) - dy, np.arange(nx) - dx
    return mask[np.ix_(np.clip(rows, 0, ny - 1), np.clip(columns, 0, nx - 1))]
