"""Zones of KLIP in science exposures: annuli and sections about the star."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpucoron.core.validators import in_pixels
from gpucoron.errors import ExposureError, ParameterError, plural
from gpucoron.ops.zones import Zones, make_zones
from gpucoron.pipeline.expected_star import star_before_alignment

if TYPE_CHECKING:
    from gpucoron.core.parameters import Parameters
    from gpucoron.io.exposures import Exposure

__all__ = ["check_zones", "describe_zones", "find_zones"]

log = logging.getLogger("gpucoron")

FEW_PIXELS = 5  # pixels of a zone for each KL mode; with fewer, modes take much of a companion


def find_zones(
    parameters: Parameters, exposure: Exposure, star: tuple[float, float]
) -> Zones | None:
    """Return the zones of a science exposure; None where KLIP is done on the whole image.

    Parameters
    ----------
    parameters : Parameters
        ``klip.annuli`` and what belongs to it.
    exposure : Exposure
    star : (x, y), pixels counted from 1

    Raises
    ------
    ParameterError
        Zones that cannot be, as `gpucoron.ops.zones.make_zones`.
    ExposureError
        The star's position is not known, or no WCS tells the pixel scale, where lengths are in
        arcsec.
    """
    klip = parameters.klip
    if max(klip.annuli, klip.subsections) == 1 and not (klip.iwa or klip.owa):
        return None
    if not all(map(math.isfinite, star)):
        _no_star(exposure)
    lengths = klip.iwa, klip.owa, klip.optimise, klip.guard
    scale = math.nan
    if any(isinstance(length, str) for length in lengths):
        from gpucoron.io.star import offsets_from

        scale = offsets_from(exposure, star)[1]
    iwa, owa, optimise, guard = (None if v is None else in_pixels(v, scale) for v in lengths)
    try:
        return make_zones(
            exposure.shape[1:],
            (star[0] - 1, star[1] - 1),
            klip.annuli,
            klip.subsections,
            spacing=klip.annuli_spacing,
            iwa=iwa or 0.0,
            owa=owa,
            optimise=optimise or 0.0,
            guard=guard or 0.0,
        )
    except ParameterError as problem:
        raise ParameterError(f"{exposure.path.name}: {problem}") from None


def describe_zones(parameters: Parameters) -> str:
    """Return in words in which zones KLIP is done; empty for the whole image."""
    klip = parameters.klip
    if not klip.zoned or klip.skip:
        return ""
    annuli = "1 annulus" if klip.annuli == 1 else f"{klip.annuli} annuli"
    annuli = f"{annuli} of {plural(klip.subsections, 'section')}"
    inner, outer = (v if isinstance(v, str) else f"{v:g} px" for v in (klip.iwa, klip.owa or 0.0))
    return f"{annuli}, from {inner} to {outer if klip.owa else 'the edge'}"


def check_zones(
    parameters: Parameters, science: Sequence[Exposure], truncations: Sequence[int]
) -> None:
    """Raise what `find_zones` will raise, before any work; warn of zones with few pixels."""
    klip = parameters.klip
    if max(klip.annuli, klip.subsections) == 1 and not (klip.iwa or klip.owa):
        for name, length in (("guard", klip.guard), ("optimise", klip.optimise)):
            if length:
                raise ParameterError(
                    f"klip.{name} is {length} without zones, expected klip.annuli, "
                    "klip.subsections, klip.iwa or klip.owa"
                )
    if not klip.zoned or klip.skip:
        return
    most = max(truncations)
    for exposure in science:
        star = star_before_alignment(parameters, science, exposure)
        if star is None:
            _no_star(exposure)
        zones = find_zones(parameters, exposure, star)  # type: ignore[arg-type]  # it is not None
        if zones is None:
            continue
        sizes = zip(zones.pixels, zones.areas if klip.guard else zones.pixels, strict=True)
        counts = np.array([len(area) for pixels, area in sizes if len(pixels)])
        if counts.min() < FEW_PIXELS * most:
            log.warning(
                "%s: the smallest of %d zones of klip has %d pixels for %d KL modes; with fewer "
                "than %d for each, they take up much of a companion there%s",
                *(exposure.path.name, len(zones), counts.min(), most, FEW_PIXELS),
                "; where there are none it is NaN" if counts.min() == 0 else "",
            )


def _no_star(exposure: Exposure) -> None:
    raise ExposureError(
        f"{exposure.path.name}: the zones of klip (annuli, subsections, iwa, owa) are about the "
        "star, whose position the headers do not have; expected STARCENX, STARCENY or CRPIX1, "
        "CRPIX2 in SCI, or --star"
    )
