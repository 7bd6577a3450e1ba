"""The star's images that a user gives as the model of the coronagraph, checked before any work."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpucoron.errors import InputError, ParameterError

if TYPE_CHECKING:
    from gpucoron.core.parameters import Parameters
    from gpucoron.io.exposures import Exposure
    from gpucoron.optics.instruments import Filter, Instrument
    from gpucoron.optics.star import Sampling
    from gpucoron.optics.star_images import StarImages

__all__ = ["Optics", "coronagraph_of", "load_star_model"]

log = logging.getLogger("gpucoron")

_EDGE_PX = 2.0  # by which images may be smaller: they are continued as they are at the edge


class Optics(NamedTuple):
    """What `gpucoron.optics.star.fit_star` has to know of an exposure's coronagraph."""

    instrument: Instrument | None  # None where images of a star are the model
    bandpass: Filter | None
    sampling: Sampling
    mask_centre: tuple[float, float]  # (x, y) px from 0


def coronagraph_of(exposure: Exposure, star_model: StarImages | None = None) -> Optics:
    """Return the coronagraph of an exposure.

    Where it is not modelled, and there are images of a star, its wavelength is that of the filter's
    name, the pixel scale the WCS's, and the mask is where the headers have the star.

    Raises
    ------
    InputError
        There is no model of it.
    """
    from gpucoron.optics.instruments import optics_of
    from gpucoron.optics.star import Sampling

    known = optics_of(exposure.meta)
    if known is not None:
        return Optics(known.instrument, known.bandpass, Sampling.of(known.bandpass), known[2])
    if star_model is None:
        meta = exposure.meta
        what = (meta.instrument, meta.filter, meta.coronmsk or meta.subarray)
        raise InputError(f"there is no model of {' '.join(w or '?' for w in what)}")
    return _by_headers(exposure)


def _by_headers(exposure: Exposure) -> Optics:
    from gpucoron.io.star import expected_star, offsets_from
    from gpucoron.optics.star import Sampling

    name = (exposure.meta.filter or "").strip().upper()
    wavelength, found = re.fullmatch(r"F(\d{3,4})[A-Z]\w?", name), expected_star(exposure)
    if wavelength is None or found is None:
        missing = "star" if wavelength else "wavelength"
        raise InputError(
            f"the coronagraph is not known, and the headers do not say the {missing} "
            f"(FILTER is {name or 'missing'})"
        )
    star = found[0]
    side = offsets_from(exposure, star)[1]
    sampling = Sampling((side, side), int(wavelength[1]) / 100)
    return Optics(None, None, sampling, (star[0] - 1, star[1] - 1))


def load_star_model(
    parameters: Parameters, science: Iterable[Exposure], checksums: bool = True
) -> StarImages | None:
    """Return the images of ``align_refs.star_model``; None where no file is given.

    A run that does not measure the star gives a warning.

    Raises
    ------
    ParameterError
        The star's position is given as well.
    InputError
        The file cannot be used, or its images are smaller than what is fitted in an exposure.
    """
    from gpucoron.io.star_model import read_star_model
    from gpucoron.optics.star_images import StarImages

    path = parameters.align_refs.star_model
    if not path:
        return None
    if parameters.align_refs.stars:
        raise ParameterError(
            f"align_refs.star_model is {path!r}, but align_refs.star gives the star's position, "
            "expected one of the two"
        )
    file = read_star_model(path, checksums)
    try:
        model = StarImages(*file)
    except InputError as problem:
        raise InputError(f"{path}: {problem}") from None
    if parameters.like_jwst or parameters.align_refs.skip or parameters.klip.skip:
        why = "with preset jwst" if parameters.like_jwst else "where a step is skipped"
        log.warning("%s: not used: the star's position is not measured %s", path, why)
        return model
    for exposure in science:
        _check_size(path, model, exposure)
    return model


def _check_size(path: str, model: StarImages, exposure: Exposure) -> None:
    """Raise InputError where images end before what is fitted does."""
    from gpucoron.optics.star import RADIUS

    try:
        optics = coronagraph_of(exposure, model)
    except InputError:
        return  # it is told when the star is to be measured
    wanted = _sides(optics.mask_centre, exposure.shape[1:])
    wanted = np.minimum(wanted, RADIUS * optics.sampling.resolution)
    found = _sides(model.centre, model.images.shape[1:])
    worst = int(np.argmax(wanted - found))
    if wanted[worst] - found[worst] > _EDGE_PX:
        raise InputError(
            f"{path}: the images end {found[worst]:.0f} px from the star (or the mask), expected "
            f"{math.ceil(wanted[worst])} px, which are fitted in {exposure.path.name}"
        )


def _sides(centre: Iterable[float], shape: tuple[int, ...]) -> np.ndarray:
    """Return the distances of a point (x, y) from the left, right, lower and upper edge, px."""
    (x, y), (ny, nx) = centre, shape
    return np.array([x, nx - 1 - x, y, ny - 1 - y])
