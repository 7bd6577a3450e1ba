"""Zones of an image for KLIP: annuli about the star, cut into sections."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from gpucoron.backend.arrays import to_host
from gpucoron.errors import ParameterError
from gpucoron.ops.zone_sums import Areas, find_areas

__all__ = ["SPACINGS", "Zones", "annuli_bounds", "make_zones"]

#: How the widths of annuli grow outwards.
SPACINGS = ("constant", "log", "linear")
LEAST_WIDTH = 1.0  # px


@dataclass(frozen=True, eq=False)
class Zones:
    """Zones in which KLIP is done one by one, on the host.

    Attributes
    ----------
    labels : (ny, nx) int
        The zone in which a pixel is subtracted, from 0; -1 in none.
    radii : (nzones,) float64, pixels
        Mean of the inner and outer radius: where a companion's movement is computed.
    optimise : (nzones, ny, nx) bool or None
        The pixels of each zone's KL modes and coefficients, where they are others than its own.
    """

    labels: np.ndarray
    radii: np.ndarray
    optimise: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.radii)

    @functools.cached_property
    def pixels(self) -> list[np.ndarray]:
        """The pixels of each zone, counted along rows."""
        return [np.flatnonzero(self.labels == zone) for zone in range(len(self))]

    @functools.cached_property
    def areas(self) -> list[np.ndarray]:
        """The pixels on which each zone is optimised, counted along rows."""
        return self.pixels if self.optimise is None else [np.flatnonzero(a) for a in self.optimise]

    @functools.cached_property
    def parts(self) -> Areas:
        """The areas that the borders of all optimisation zones cut out."""
        if self.optimise is None:
            return find_areas(to_host(self.labels).ravel(), len(self))
        return find_areas(to_host(self.optimise).reshape(len(self), -1), len(self))


def annuli_bounds(
    annuli: int, iwa: float, owa: float, spacing: str = "constant"
) -> list[tuple[float, float]]:
    """Return inner and outer radii of annuli between two radii.

    Parameters
    ----------
    annuli : int
        How many.
    iwa, owa : float, pixels
        Inner and outer working angle.
    spacing : {"constant", "log", "linear"}
        Annuli of equal width; of widths in proportion to 1 + ln(i), as pyKLIP's log; or to i, the
        number of the annulus from 1. (The annuli of pyKLIP 2.10 with "linear" have the first one's
        width, and end far inside of `owa`.)

    Raises
    ------
    ParameterError
        An annulus narrower than a pixel, or another spacing.
    """
    number = np.arange(1, annuli + 1)
    if spacing not in SPACINGS:
        raise ParameterError(
            f"klip.annuli_spacing is {spacing!r}, expected {' or '.join(SPACINGS)}"
        )
    widths = {"constant": np.ones(annuli), "log": 1 + np.log(number), "linear": 1.0 * number}
    unit = (owa - iwa) / widths[spacing].sum()
    edges = iwa + unit * np.concatenate([[0.0], np.cumsum(widths[spacing])])
    if np.diff(edges).min() < LEAST_WIDTH:
        raise ParameterError(
            f"klip.annuli is {annuli}: between {iwa:.4g} and {owa:.3g} px an annulus would be "
            f"{np.diff(edges).min():.2g} px wide, expected at least {LEAST_WIDTH:g} px"
        )
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def make_zones(
    shape: tuple[int, int],
    center: tuple[float, float],
    annuli: int = 1,
    subsections: int = 1,
    *,
    spacing: str = "constant",
    iwa: float = 0.0,
    owa: float | None = None,
    optimise: float = 0.0,
    guard: float = 0.0,
) -> Zones:
    """Divide an image into annuli about the star and these into sections.

    Parameters
    ----------
    shape : (ny, nx)
    center : (x, y), pixels counted from 0
        The star.
    annuli, subsections : int
        Number of annuli, and of sections of equal angle in each, the first from +x towards +y.
    spacing : str
        As for `annuli_bounds`.
    iwa, owa : float, pixels
        Inner and outer radius; outside of these no pixel is in any zone. Without `owa` the annuli
        reach to the farthest pixel.
    optimise : float, pixels
        Pixels up to this distance from a zone take part in its modes and coefficients.
    guard : float, pixels
        Pixels up to this distance, those of the zone included, do not: a companion in the zone then
        moves no coefficient. 0: all that `optimise` allows do.

    Raises
    ------
    ParameterError
        Radii that leave nothing, annuli narrower than a pixel, or a guard that leaves no pixel.

    Notes
    -----
    A pixel belongs to a zone if its centre has ``r_in <= r < r_out`` and the angle of a section, as
    in pyKLIP. Sections in the corners of the image may have few pixels, or none.

    A guard between the zone that is subtracted and the pixels that are fitted is that of LOCI's
    variants (Marois et al. 2010, SPIE 7736, 77361J; Pueyo et al. 2012, ApJS 199, 6).
    """
    y, x = np.indices(shape, dtype=np.float64)
    y, x = y - center[1], x - center[0]
    r, farthest = np.hypot(y, x), float(np.hypot(y, x).max())
    if guard > 0 and not guard < optimise:
        raise ParameterError(
            f"klip.guard is {guard:g} px and klip.optimise {optimise:g} px, which leaves no pixel "
            "for KL modes; expected a guard smaller than klip.optimise"
        )
    if not iwa < (farthest if owa is None else min(owa, farthest)):
        limit = "" if owa is None else f"klip.owa is {owa:g} px, "
        raise ParameterError(
            f"klip.iwa is {iwa:g} px, {limit}and the farthest pixel is {farthest:.1f} px from the "
            "star; expected an inner radius below the outer one and that"
        )
    bounds = annuli_bounds(annuli, iwa, farthest if owa is None else owa, spacing)
    if owa is None:
        bounds[-1] = bounds[-1][0], np.inf
    edges = np.array([bound[0] for bound in bounds] + [bounds[-1][1]])
    ring = np.searchsorted(edges, r, side="right") - 1
    angle = np.arctan2(y, x) % (2 * np.pi)
    section = np.minimum((angle / (2 * np.pi / subsections)).astype(int), subsections - 1)
    inside = (ring >= 0) & (ring < annuli)
    labels = np.where(inside, ring * subsections + section, -1)
    outer = [min(bound[1], farthest) for bound in bounds]
    middle = (np.array([bound[0] for bound in bounds]) + outer) / 2
    areas = _grown(labels, annuli * subsections, optimise, guard) if optimise > 0 else None
    return Zones(labels, np.repeat(middle, subsections), areas)


def _grown(labels: np.ndarray, n_zones: int, distance: float, guard: float) -> np.ndarray:
    """Return the pixels up to a distance from each zone and beyond a guard, (nzones, ny, nx)."""
    from scipy.ndimage import distance_transform_edt

    areas = np.zeros((n_zones, *labels.shape), dtype=bool)
    for zone in np.unique(labels[labels >= 0]):
        away = distance_transform_edt(labels != zone)
        areas[zone] = (away <= distance) & (away > (guard or -1.0))
    return areas
