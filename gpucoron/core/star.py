"""Where the star is: in the integrations of an exposure, and in the combined image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucoron.core.display import ArrayFields
from gpucoron.core.star_flux import StarFlux

__all__ = ["SOURCES", "CombinedStar", "StarPositions"]

#: Where a position comes from: ``--star``, a model of the optics, the point symmetry of the image,
#: or the headers alone (STARCENX and STARCENY, or CRPIX), which is no measurement.
SOURCES = ("given", "model", "symmetry", "wcs")


@dataclass(frozen=True, eq=False, repr=False)
class StarPositions(ArrayFields):
    """The position of the star in each integration of one exposure.

    Attributes
    ----------
    x, y : (n,) float64, pixels of SCI counted from 1
        NaN for an integration in which it is not known.
    x_err, y_err : (n,) float64, pixels
        One standard deviation; NaN where it is not known, as with the source "wcs".
    source : str
        One of `SOURCES`.
    mask : (x, y), pixels counted from 1, or None
        Centre of the coronagraph mask, where it is known.
    flux : StarFlux or None
        Flux density of the star without the mask, as given or fitted, where it is known.
    xy_cov : (n,) float64, pixels^2
        Covariance of x and y; 0 where nothing is known of it. Default: 0.

    Raises
    ------
    ValueError
        Arrays of different lengths, or a source that does not exist.
    """

    x: np.ndarray
    y: np.ndarray
    x_err: np.ndarray
    y_err: np.ndarray
    source: str
    mask: tuple[float, float] | None = None
    flux: StarFlux | None = None
    xy_cov: np.ndarray = None  # type: ignore[assignment]  # zeros unless it is given

    def __post_init__(self) -> None:
        if self.xy_cov is None:
            object.__setattr__(self, "xy_cov", np.zeros(np.shape(self.x)))
        for name in ("x", "y", "x_err", "y_err", "xy_cov"):
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.ndim != 1 or values.shape != np.shape(self.x):
                raise ValueError(f"{name} has shape {values.shape}, expected (n,) as x has")
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        if self.source not in SOURCES:
            raise ValueError(f"source is {self.source!r}, expected one of {', '.join(SOURCES)}")
        if self.mask is not None:
            x, y = self.mask
            object.__setattr__(self, "mask", (round(float(x), 6), round(float(y), 6)))

    @classmethod
    def constant(
        cls, position: tuple[float, float], n: int, error: float, source: str
    ) -> StarPositions:
        """Return one position (pixels counted from 1) for all of `n` integrations."""
        x, y = (np.full(n, float(value)) for value in position)
        errors = np.full(n, float(error))
        return cls(x, y, errors, errors, source)

    @property
    def measured(self) -> bool:
        """Whether the position was given or measured, and is known."""
        return self.source != "wcs" and all(map(math.isfinite, self.mean))

    @property
    def mean(self) -> tuple[float, float]:
        """Mean x, y of the integrations in which it is known, pixels counted from 1.

        Rounded to a millionth, which is less than any error, as headers have it: what is computed
        from it is the same when it has been read back.
        """
        return _mean(self.x), _mean(self.y)

    @property
    def mean_error(self) -> tuple[float, float]:
        """Mean of the errors in x and in y, pixels.

        It is not divided by the root of n: the positions of an exposure share most of their error.
        """
        return _mean(self.x_err), _mean(self.y_err)

    @property
    def mean_xy_cov(self) -> float:
        """Mean of the covariances of x and y, pixels^2; as `mean_error` not divided by n."""
        known = self.xy_cov[np.isfinite(self.xy_cov)]
        return float(known.mean()) if known.size else 0.0

    def as_record(self) -> dict[str, Any]:
        """Return mean position and error as plain numbers, None for NaN, for a JSON file."""
        names = ("x", "y", "x_err", "y_err", "xy_cov")
        means = zip(names, (*self.mean, *self.mean_error, self.mean_xy_cov), strict=True)
        plain: dict[str, Any] = {name: _number(value) for name, value in means}
        return plain | {"source": self.source, "mask": None if self.mask is None else [*self.mask]}


@dataclass(frozen=True)
class CombinedStar:
    """The star in the combined image.

    Attributes
    ----------
    position : StarPositions
        Of one integration: in pixels of the combined image counted from 1. The centre of the mask
        is the mean over the exposures.
    radec : (ra, dec), degrees
        The weighted mean of the exposures' positions by their GWCSs.
    center : {"star", "wcs"}
        Whether the exposures are combined about the star, or as their GWCSs have them.
    spread : float, arcsec
        Largest distance of an exposure's position, by its GWCS, from `radec`.
    from_target : (east, north), arcsec, or None
        `radec` minus TARG_RA and TARG_DEC of the first exposure, where it has them.
    """

    position: StarPositions
    radec: tuple[float, float]
    center: str
    spread: float
    from_target: tuple[float, float] | None = None

    @property
    def pixel(self) -> tuple[float, float]:
        """x, y in pixels of the combined image counted from 0."""
        return float(self.position.x[0]) - 1, float(self.position.y[0]) - 1

    def as_record(self) -> dict[str, Any]:
        """Return what is known as plain numbers, None for NaN, for a JSON file."""
        (x,), (y,) = self.position.x.tolist(), self.position.y.tolist()
        return {
            "x": _number(x),
            "y": _number(y),
            "x_err": _number(self.position.mean_error[0]),
            "y_err": _number(self.position.mean_error[1]),
            "xy_cov": self.position.mean_xy_cov,
            "source": self.position.source,
            "ra": self.radec[0],
            "dec": self.radec[1],
            "center": self.center,
            "spread_arcsec": self.spread,
            "from_target_arcsec": None if self.from_target is None else [*self.from_target],
        }


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return round(float(known.mean()), 6) if known.size else math.nan


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
