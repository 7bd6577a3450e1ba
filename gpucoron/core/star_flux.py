"""Flux density of a star without the coronagraph's mask, and where it is known from."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpucoron.errors import InputError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["StarFlux", "band_flux", "flux_density"]

_UNITS = {"": 1.0, "jy": 1.0, "mjy": 1e-3, "ujy": 1e-6, "kjy": 1e3}
_WELL_KNOWN = 0.2  # of the flux: an error above it is said beside every contrast
_LEAST_COVERED = 0.99  # of a filter, by a spectrum


@dataclass(frozen=True)
class StarFlux:
    """Flux density of a star in a filter.

    Attributes
    ----------
    jy, error_jy : float
        Flux density without the mask, and its standard deviation; NaN where that is not known.
    source : str
        Where it is from, and what was assumed, in words.
    """

    jy: float
    error_jy: float
    source: str

    @classmethod
    def from_magnitude(cls, magnitude: float, zero_point_jy: float) -> StarFlux:
        """Return that of a Vega magnitude, with the flux density of magnitude 0 in the filter."""
        text = f"magnitude {magnitude:g}, zero point {zero_point_jy:g} Jy (given)"
        return cls(zero_point_jy * 10 ** (-0.4 * magnitude), math.nan, text)

    @property
    def doubt(self) -> str:
        """What a reader of contrasts has to know; empty where the flux is known to a fifth."""
        if not self.error_jy > _WELL_KNOWN * self.jy:
            return ""
        return (
            f"the star's flux is known to {100 * self.error_jy / self.jy:.0f}% only "
            f"({self.source}), and so are contrasts; expected --star-flux, --star-spectrum or "
            "--star-magnitude"
        )

    def as_record(self) -> dict[str, Any]:
        """Return plain numbers, None for NaN, for a JSON file."""
        error = self.error_jy if math.isfinite(self.error_jy) else None
        return {"jy": self.jy, "error_jy": error, "source": self.source}


def flux_density(value: object) -> float:
    """Check for a flux density above 0 in Jy, or text with a unit such as "350mJy"; return Jy."""
    text = str(value).strip()
    found = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kmu]?jy|)", text, re.IGNORECASE)
    try:
        jy = math.nan if found is None else float(found[1]) * _UNITS[found[2].lower()]
    except ValueError:
        jy = math.nan
    if isinstance(value, bool) or not 0 < jy < math.inf:
        raise ValueError(
            "expected a flux density above 0 in Jy, or with a unit, as 1.2Jy or 350mJy"
        )
    return jy


def band_flux(
    wavelength_um: np.ndarray,
    flux_jy: np.ndarray,
    filter_um: np.ndarray,
    transmission: np.ndarray,
) -> float:
    """Return the mean flux density (Jy) of a spectrum in a filter, as a photon counter sees it.

    Parameters
    ----------
    wavelength_um, flux_jy : (n,) float64, ascending wavelengths
    filter_um, transmission : (m,) float64, ascending wavelengths
        Transmission per photon, in any unit.

    Raises
    ------
    InputError
        The spectrum does not cover the filter.

    Notes
    -----
    ``int F_nu T dlambda / lambda / int T dlambda / lambda``, by the trapezoidal rule on the
    wavelengths of both (Bessell & Murphy 2012, PASP 124, 140, eq. A12 for F_nu).
    """
    import numpy as np

    grid = np.union1d(wavelength_um, filter_um)
    grid = grid[(grid >= filter_um[0]) & (grid <= filter_um[-1])]
    weight = np.interp(grid, filter_um, transmission) / grid
    total = np.trapezoid(weight, grid)
    known = (grid >= wavelength_um[0]) & (grid <= wavelength_um[-1])
    covered = np.trapezoid(np.where(known, weight, 0), grid) / total
    if not covered >= _LEAST_COVERED:
        raise InputError(
            f"the spectrum is from {wavelength_um[0]:g} to {wavelength_um[-1]:g} um, expected the "
            f"filter's {filter_um[0]:g} to {filter_um[-1]:g} um"
        )
    spectrum = np.interp(grid, wavelength_um, flux_jy)
    return float(np.trapezoid(weight * spectrum, grid) / total)
