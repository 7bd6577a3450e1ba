"""Images of several sources, their sum or what they change together, and their joint fit."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from gpucoron.analysis.local_model import SourceFit, cut_patch, without_background
from gpucoron.ops.stamps import sheets_of

if TYPE_CHECKING:
    from gpucoron.analysis.forward import ForwardModel
    from gpucoron.analysis.matched_filter import PatchModel

__all__ = ["apart", "fit_together", "light_of", "source_image", "without", "without_sources"]

MOST_STEPS, SAME = 8, 1e-3  # until no flux changes by more than this part
ASIDE_PX = 0.1  # between the images whose differences are the derivatives
FARTHEST_PX, LARGEST = 0.5, 0.5  # step of a position, and of a flux over itself


def without(image: np.ndarray, model: PatchModel, sources: Sequence[Any]) -> np.ndarray:
    """Return an image (ny, nx) less the models of sources."""
    left = np.array(image, dtype=np.float64)
    for source in sources:
        left -= source_image(model, (source.x, source.y), source.flux, left.shape)
    return left


def apart(
    image: np.ndarray, model: PatchModel, sources: Sequence[Any]
) -> tuple[np.ndarray, PatchModel]:
    """Return an image (ny, nx) without sources, and the model of another one in it."""
    if model.linear:
        return without(image, model, sources), model
    light, alone = cast(TogetherModel, model).apart(sources, image.shape)
    return np.asarray(image, dtype=np.float64) - light, alone


def source_image(
    model: PatchModel, place: tuple[float, float], flux: float, shape: tuple[int, int]
) -> np.ndarray:
    """Return the image (ny, nx) of a source: all of it, for what KLIP takes away reaches far."""
    plane, half = np.zeros(shape), max(shape)
    (patch,) = model.of_flux(flux).patches(np.array([place]), half)
    x, y = (round(v) - half for v in place)
    side, (ny, nx) = len(patch), shape
    rows, columns = (slice(max(v, 0), max(min(v + side, n), 0)) for v, n in ((y, ny), (x, nx)))
    part = patch[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
    plane[rows, columns] = flux * part
    return plane


class TogetherModel(Protocol):
    """A `PatchModel` that knows what several sources change together (`ExactSource`)."""

    def apart(
        self, sources: Sequence[Any], shape: tuple[int, int], *, present: bool = True
    ) -> tuple[np.ndarray, PatchModel]:
        """Return the light of sources in the image, and the model of one more without them."""


def without_sources(forward: ForwardModel, offsets: Any, flux: Any) -> ForwardModel:
    """Return the forward model of the images of a run less sources that are in them.

    Parameters
    ----------
    forward : ForwardModel
    offsets : (m, 2) floating
        East and north of the star, arcsec.
    flux : (m,) floating
        MJy/sr times pixels of an exposure.

    Returns
    -------
    ForwardModel
        `forward` itself where images are in proportion to the flux: the sources are not in the
        references then, and do not matter.
    """
    if forward.linear:
        return forward
    parts = zip(forward.exposures, _stamps(forward, offsets, flux), strict=True)
    other = copy.copy(forward)
    other.__dict__.pop("_combined", None)
    other.exposures = tuple(
        dataclasses.replace(e, klip=e.klip.without(*stamps)) for e, stamps in parts
    )
    return other


def light_of(forward: ForwardModel, offsets: Any, flux: Any, truncate: int) -> np.ndarray:
    """Return what the combined image loses if several sources are taken away together, (ny, nx).

    Parameters
    ----------
    forward, offsets, flux : as for `without_sources`
    truncate : int
        Number of KL vectors.

    Returns
    -------
    (ny, nx) float64, MJy/sr
        NaN where there are no data. Where other rolls are references this is not the sum of what
        the image loses with each source alone: each changes the basis that the others leave.
    """
    sheets, corners = [], []
    for exposure, (stamps, at) in zip(
        forward.exposures, _stamps(forward, offsets, flux), strict=True
    ):
        sheets.append(sheets_of(stamps, at, exposure.klip.shape)[None])
        corners.append(np.zeros((1, sheets[-1].shape[1], 2), np.int64))
    ny, nx = forward.wcs.shape
    (found,) = forward._combined.patches(
        sheets, corners, np.zeros((1, 2), np.int64), max(ny, nx), truncate, np.array([-1.0])
    )
    return found[:ny, :nx]


def _stamps(forward, offsets, flux):
    """Return stamps with their fluxes and corners of the sources, for each exposure."""
    offsets = np.asarray(offsets, dtype=np.float64)
    flux = np.asarray(flux, dtype=np.float64)[:, None, None, None]
    return [(flux * stamps, at) for stamps, at in forward._stamps(offsets, True)]


def fit_together(
    model: TogetherModel,
    image: np.ndarray,
    weights: Sequence[np.ndarray],
    fits: Sequence[SourceFit],
    half: int,
) -> tuple[list[SourceFit], np.ndarray]:
    """Fit positions and fluxes of several sources that change the KL basis together.

    Parameters
    ----------
    model : ExactSource
    image : (ny, nx) floating, MJy/sr
        With all sources.
    weights : sequence of (ny, nx) floating
        Inverse variance for the fit of each source.
    fits : sequence of SourceFit
        Of each by itself, where it starts.
    half : int
        The fit of a source uses pixels up to this far from its middle one.

    Returns
    -------
    fits : list of SourceFit
        With new positions and fluxes.
    left : (ny, nx) float64
        The image without all sources: what a new reduction without them would give.

    Notes
    -----
    Gauss-Newton: all sources are taken away together from the images and their inner products; what
    is left at each place is fitted by the derivatives of that source's image, with a constant,
    where only it is in the images. Until no flux changes by more than 0.1 %, eight times at most.
    """
    fits = list(fits)
    for _ in range(MOST_STEPS):
        lost, alone = model.apart(fits, image.shape, present=False)
        left, largest = image - lost, 0.0
        for k, fit in enumerate(fits):
            x, y, flux = _step(alone.of_flux(fit.flux), left, weights[k], fit, half)
            largest = max(largest, abs(flux / fit.flux))
            fits[k] = fit._replace(x=fit.x + x, y=fit.y + y, flux=fit.flux + flux)
        if largest < SAME:
            break
    return fits, image - model.apart(fits, image.shape, present=False)[0]


def _step(model: PatchModel, left, weight, fit: SourceFit, half: int) -> tuple[float, ...]:
    """Return by how much x, y and flux of a source have to change."""
    centre = round(fit.x), round(fit.y)
    aside = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]) * ASIDE_PX
    places = aside + (fit.x, fit.y)
    patches = model.patches(places, half + 1)
    side, moved = 2 * half + 1, np.rint(places).astype(int) - centre
    here, *beside = (
        patch[1 - y : 1 - y + side, 1 - x : 1 - x + side].ravel()
        for patch, (x, y) in zip(patches, moved, strict=True)
    )
    slopes = [fit.flux * (a - b) / (2 * ASIDE_PX) for a, b in (beside[:2], beside[2:])]
    jacobian = np.stack([*slopes, here], axis=1)
    data, inverse = (cut_patch(plane, centre, half).ravel() for plane in (left, weight))
    good = np.isfinite(data) & (inverse > 0)
    inverse = without_background(np.where(good, inverse, 0.0))
    weighted = jacobian.T @ inverse
    step = np.linalg.pinv(weighted @ jacobian, hermitian=True) @ weighted @ np.nan_to_num(data)
    limits = np.array([FARTHEST_PX, FARTHEST_PX, LARGEST * abs(fit.flux)])
    return tuple(np.clip(step, -limits, limits).tolist())
