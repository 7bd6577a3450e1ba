"""Cubes of a run for VIP: images centred on the star, their angles, references and a PSF."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from gpucoron.errors import InputError, ParameterError, UsageError
from gpucoron.io.wcs.tan import tangent_plane
from gpucoron.ops.fourier_shift import fourier_shift
from gpucoron.optics.off_axis import OffAxisPSF
from gpucoron.steps.bad_pixels import BadPixelFiller, exposure_numbers

if TYPE_CHECKING:
    from gpucoron.analysis.record import ExposureRecord
    from gpucoron.core.stack import IntegrationStack
    from gpucoron.pipeline.result import ProductResult, Result

__all__ = ["VipCubes", "vip_cubes"]

log = logging.getLogger("gpucoron")
T = TypeVar("T")


class VipCubes(NamedTuple):
    """What VIP's functions take; the star is in the middle of all images.

    The names are those of VIP's arguments: ``pca(c.cube, c.angle_list, cube_ref=c.cube_ref)``,
    ``contrast_curve(c.cube, c.angle_list, c.psf, c.fwhm, c.pxscale, ...)``.
    """

    cube: np.ndarray  # (n, size, size) float64, MJy/sr: the science integrations
    angle_list: np.ndarray  # (n,) float64, degrees; VIP derotates by them
    cube_ref: np.ndarray | None  # (m, size, size) float64, MJy/sr: psf members; None without any
    psf: np.ndarray | None  # (box, box) float64: a source off the mask, of all light 1
    fwhm: float  # px, of psf; NaN without one
    pxscale: float  # arcsec


def vip_cubes(result: Result, size: int | None = None, psf: np.ndarray | None = None) -> VipCubes:
    """Make the cubes for VIP from the result of a run: flagged exposures, centred on the star.

    Parameters
    ----------
    result : Result
        Of `gpucoron.run`, with crfints in memory. Its first product is used.
    size : int, optional
        Odd side of the images, px. Default: as large as all images allow.
    psf : (box, box) floating, optional
        A source off the mask. Default: that of the optics of NIRCam and MIRI, with the Lyot stop
        and without the mask; None where the coronagraph is not modelled, with a warning.

    Returns
    -------
    VipCubes
        Flagged and missing pixels are filled as before alignment: VIP's functions take no NaN.

    Raises
    ------
    UsageError
        The result has no crfints or no positions of images.
    ParameterError
        `size` is even, or larger than some image about its star.

    Notes
    -----
    Images are shifted by Fourier transforms to where the star is in each (`ProductResult.stars` and
    `positions`). ``angle_list`` is the position angle of the y axis by the WCS at the star, by
    which VIP turns images counter-clockwise so that north is up.

    References
    ----------
    Gomez Gonzalez et al. (2017), AJ 154, 7; Christiaens et al. (2023), JOSS 8, 4774 (VIP).
    """
    product = result.product
    roots = _science(product)
    references = _psf_members(product)
    stacks = [product.crfints[root] for root in roots]
    places = [_places(product, root) for root in roots]
    reference_places = _reference_places(product, roots[0], references)
    size = _checked_size(size, np.concatenate([*places, reference_places]), stacks[0].shape[1:])
    filler = _filler(result, roots[0])
    cubes = [_centred(s, p, size, filler) for s, p in zip(stacks, places, strict=True)]
    orientations = [_position_angle_and_scale(product, root) for root in roots]
    optics = _optics(product, roots[0]) if psf is None else None
    if optics is not None:
        psf = optics.without_mask
    return VipCubes(
        cube=np.concatenate(cubes),
        angle_list=np.repeat([angle for angle, _ in orientations], [len(c) for c in cubes]),
        cube_ref=None
        if references is None
        else _centred(references, reference_places, size, filler),
        psf=None if psf is None else np.array(psf, dtype=np.float64),
        fwhm=np.nan if optics is None else optics.fwhm_px,
        pxscale=orientations[0][1],
    )


def _kept(product: ProductResult, value: T | None, name: str) -> T:
    """Return what a run kept; UsageError where it did not."""
    if value is None:
        raise UsageError(f"{product.name}: no {name} in memory; expected {name!r} in keep")
    return value


def _exposure(product: ProductResult, root: str) -> ExposureRecord:
    return _kept(product, product.record, "record").exposures[root]


def _science(product: ProductResult) -> list[str]:
    """Return the science exposures; UsageError where something is not in memory."""
    roots = [root for root in product.stars if root in product.positions]
    if len(roots) < max(1, len(product.stars)):
        raise UsageError(
            f"{product.name}: no positions of images; expected a run with klip and align='joint'"
        )
    for root in roots:
        _kept(product, product.crfints.get(root), "crfints")
    return roots


def _places(product: ProductResult, root: str) -> np.ndarray:
    """Return where the star is in the integrations of an exposure, (n, 2) y and x from 0."""
    star = product.stars[root]
    return np.stack([star.y, star.x], axis=1) - 1


def _psf_members(product: ProductResult) -> IntegrationStack | None:
    """Return the integrations of the psf members; None where rolls are the only references."""
    record = _kept(product, product.record, "record")
    if all(source.exposure in product.stars for source in record.sources):
        return None
    return _kept(product, product.psfstack, "psfstack")


def _reference_places(
    product: ProductResult, root: str, references: IntegrationStack | None
) -> np.ndarray:
    """Return where their star is in psf members, (m, 2) y and x from 0, by an exposure's table."""
    table = product.positions[root]
    roots = [] if references is None else [source.exposure for source in references.sources]
    rows = table[np.isin(table["exposure"], roots)]
    x, y = product.stars[root].mean
    return np.stack([rows["y"] + y, rows["x"] + x], axis=1) - 1


def _checked_size(size: int | None, places: np.ndarray, shape: tuple[int, int]) -> int:
    if not np.isfinite(places).all():
        raise UsageError("the star's position is not known in every image; expected --star X,Y")
    middles = np.rint(places)
    room = np.minimum(middles, np.array(shape) - 1 - middles).min()
    largest = 2 * int(room) + 1
    if size is None:
        return largest
    if size != int(size) or size % 2 == 0 or not 1 <= size <= largest:
        raise ParameterError(f"size is {size!r}, expected an odd number from 1 to {largest}")
    return int(size)


def _filler(result: Result, root: str) -> BadPixelFiller:
    """Return what filled bad pixels in the run."""
    parameters = result.parameters.align_refs
    instrument = _exposure(result.product, root).meta.instrument or ""
    return BadPixelFiller(
        parameters.median_box_length,
        parameters.bad_bits,
        instrument.upper() == "MIRI",
        result.parameters.preset,
    )


def _centred(
    stack: IntegrationStack, places: np.ndarray, size: int, filler: BadPixelFiller
) -> np.ndarray:
    """Fill bad pixels, and cut out squares with the star in their middle."""
    groups = exposure_numbers(stack) if stack.sources else np.zeros(len(stack), dtype=int)
    images = filler.fill_stack(stack, groups)[0]
    middles = np.rint(places).astype(int)
    moved = fourier_shift(images, middles - places)
    first = middles - size // 2
    return np.array(
        [image[y : y + size, x : x + size] for image, (y, x) in zip(moved, first, strict=True)]
    )


def _position_angle_and_scale(product: ProductResult, root: str) -> tuple[float, float]:
    """Return the position angle of y at the star, degrees, and the side of a pixel, arcsec."""
    wcs = _exposure(product, root).wcs
    if wcs is None:
        raise UsageError(f"{product.name}: no WCS of {root}")
    x, y = (v - 1 for v in product.stars[root].mean)
    ra, dec = wcs.pixel_to_sky(np.array([x, x, x + 1]), np.array([y, y + 1, y]), everywhere=True)
    east, north = tangent_plane(ra, dec, ra[0], dec[0])
    area = abs(east[1] * north[2] - east[2] * north[1])
    return float(np.degrees(np.arctan2(east[1], north[1]))), 3600 * float(np.sqrt(area))


def _optics(product: ProductResult, root: str) -> OffAxisPSF | None:
    try:
        return OffAxisPSF.of(_exposure(product, root).meta)
    except InputError as problem:
        log.warning("%s: no PSF for VIP: %s", root, problem)
        return None
