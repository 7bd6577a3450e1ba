"""Where the star is expected before it is measured: by --star, and by the headers of exposures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpucoron.core.star import StarPositions
from gpucoron.errors import ParameterError, plural

if TYPE_CHECKING:
    from gpucoron.core.parameters import Parameters
    from gpucoron.core.stack import PlaneSource
    from gpucoron.io.exposures import Exposure
    from gpucoron.steps.positions import Pointing

__all__ = [
    "check_given_star",
    "describe_star",
    "number_of",
    "pointing",
    "star_before_alignment",
    "star_of_headers",
]


def check_given_star(parameters: Parameters, science: Sequence[Exposure]) -> None:
    """Raise ParameterError where a position that is given cannot be, or there is another number."""
    stars = parameters.align_refs.stars
    if len(stars) > 1 and len(stars) != len(science):
        raise ParameterError(
            f"align_refs.star has {len(stars)} positions, expected one, or one for each of "
            f"{plural(len(science), 'science exposure')}"
        )
    for (x, y), exposure in zip(stars, science, strict=False):
        ny, nx = exposure.shape[1:]
        if not (0.5 <= x <= nx + 0.5 and 0.5 <= y <= ny + 0.5):
            raise ParameterError(
                f"align_refs.star is {x:g}, {y:g}, which is outside of {exposure.path.name}; "
                f"expected x from 1 to {nx} and y from 1 to {ny}"
            )


def describe_star(parameters: Parameters, science: Sequence[Exposure]) -> str:
    """Return in words where the star is before anything is measured, and what that means."""
    from gpucoron.io.star import expected_star

    stars, resample = parameters.align_refs.stars, parameters.resample
    if stars:
        text = "given: x, y = " + "; ".join(f"{x:g}, {y:g}" for x, y in stars)
        about = resample.center == "star"
        how = "about it" if about else "by the GWCSs"
        return text if resample.skip else f"{text}; i2d is combined {how}"
    found = expected_star(science[0])
    if found is None:
        return "not known"
    (x, y), keywords = found
    place = f"at x, y = {x:.1f}, {y:.1f} by {keywords}"
    if parameters.like_jwst or parameters.align_refs.skip or parameters.klip.skip:
        return f"{place}, not measured"
    model = Path(parameters.align_refs.star_model).name
    return f"to be measured{f' by the images of {model}' if model else ''}; {place}"


def number_of(exposure: Exposure, science: Sequence[Exposure], stars: Sequence[object]) -> int:
    """Which of the positions that are given is an exposure's; the first where there is one."""
    return [e.root for e in science].index(exposure.root) if len(stars) > 1 else 0


def star_before_alignment(
    parameters: Parameters, science: Sequence[Exposure], exposure: Exposure
) -> tuple[float, float] | None:
    """Return about where the star is in a science exposure, before anything is measured.

    Parameters
    ----------
    parameters : Parameters
        ``align_refs.star``, which is its position in the first of `science`.
    science : sequence of Exposure
    exposure : Exposure
        One of them.

    Returns
    -------
    (x, y), pixels counted from 1, or None
        Where the headers have it; with a position that is given, that, moved as the headers say.
        Good to the error of target acquisition, some tenths of a pixel.
    """
    from gpucoron.io.star import expected_star

    stars = parameters.align_refs.stars
    own, first = expected_star(exposure), expected_star(science[0])
    if not stars:
        return None if own is None else own[0]
    given = stars[number_of(exposure, science, stars)]
    if len(stars) > 1 or exposure is science[0] or own is None or first is None:
        return given
    return given[0] + own[0][0] - first[0][0], given[1] + own[0][1] - first[0][1]


def pointing(
    science: Exposure, references: Sequence[Exposure], sources: Sequence[PlaneSource]
) -> Pointing | None:
    """Return where the GWCSs of exposures have their targets; None where one is not known.

    Parameters
    ----------
    science : Exposure
    references : sequence of Exposure
    sources : sequence of PlaneSource
        Of the reference images.

    Returns
    -------
    Pointing or None
    """
    from gpucoron.io.star import target_pixel
    from gpucoron.steps.positions import Pointing

    places = {e.root: target_pixel(e) for e in references}
    own = target_pixel(science)
    wanted = [places.get(source.exposure) for source in sources]
    if own is None or not wanted or None in wanted:
        return None
    return Pointing(np.array(own), np.array(wanted))


def star_of_headers(exposure: Exposure) -> StarPositions:
    """Return where the headers of an exposure have the star; NaN where they do not."""
    from gpucoron.io.star import expected_star

    found = expected_star(exposure)
    place = (math.nan, math.nan) if found is None else found[0]
    return StarPositions.constant(place, exposure.shape[0], math.nan, "wcs")
