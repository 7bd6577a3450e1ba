"""The star's flux density as the user gives it: a number, a spectrum, or a magnitude."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpucoron.core.star_flux import StarFlux, band_flux
from gpucoron.errors import InputError, ParameterError

if TYPE_CHECKING:
    from gpucoron.core.parameters import Analysis, Parameters
    from gpucoron.io.exposures import Exposure

__all__ = ["given_star_flux"]

log = logging.getLogger("gpucoron")

_GIVEN = ("star_flux", "star_spectrum", "star_magnitude")


def given_star_flux(parameters: Parameters, exposure: Exposure) -> StarFlux | None:
    """Return the star's flux density in an exposure's filter; None where it is not given.

    Raises
    ------
    ParameterError
        It is given in two ways, or a magnitude has no zero point.
    InputError
        A spectrum or filter curve cannot be used.
    """
    given = parameters.analysis
    several = [name for name in _GIVEN if getattr(given, name) not in (None, "")]
    if len(several) > 1:
        raise ParameterError(
            f"analysis.{several[0]} and analysis.{several[1]} are both given, expected one of "
            "star_flux, star_spectrum and star_magnitude"
        )
    for name, needed in (("filter_curve", "star_spectrum"), ("vega_zero_point", "star_magnitude")):
        if getattr(given, name) not in (None, "") and needed not in several:
            raise ParameterError(f"analysis.{name} is given, expected analysis.{needed} with it")
    if given.star_flux is not None:
        return StarFlux(given.star_flux, math.nan, "given")
    if given.star_magnitude is not None:
        if given.vega_zero_point is None:
            raise ParameterError(
                f"analysis.star_magnitude is {given.star_magnitude:g}, expected "
                "analysis.vega_zero_point with it: the flux density (Jy) of magnitude 0 in the "
                "filter, for example that of the SVO Filter Profile Service"
            )
        return StarFlux.from_magnitude(given.star_magnitude, given.vega_zero_point)
    return _from_spectrum(given, exposure) if given.star_spectrum else None


def _from_spectrum(given: Analysis, exposure: Exposure) -> StarFlux:
    from gpucoron.io.spectra import read_curve
    from gpucoron.optics.instruments import optics_of

    wavelength, flux = read_curve(given.star_spectrum, "flux")
    name = Path(given.star_spectrum).name
    if given.filter_curve:
        curve = read_curve(given.filter_curve, "transmission")
        over = f"the filter curve {Path(given.filter_curve).name}"
    else:
        known = optics_of(exposure.meta)
        if known is None:
            raise InputError(
                f"{given.star_spectrum}: the filter of {exposure.path.name} is not known, expected "
                "analysis.filter_curve"
            )
        centre, width = known.bandpass.centre_um, known.bandpass.width_um
        curve = np.array([centre - width / 2, centre + width / 2]), np.ones(2)
        over = f"a box from {curve[0][0]:.4g} to {curve[0][1]:.4g} um"
    try:
        jy = band_flux(wavelength, flux, *curve)
    except InputError as problem:
        raise InputError(f"{given.star_spectrum}: {problem}") from None
    return StarFlux(jy, math.nan, f"spectrum {name} over {over}")
