"""Forward model of point sources: what PSF subtraction and combination make of them in the i2d."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from gpucoron.analysis.coarse_psf import CoarsePSF
from gpucoron.core.display import ArrayFields
from gpucoron.errors import InputError, ParameterError
from gpucoron.io.wcs.tan import OutputWcs
from gpucoron.ops.drizzle import Overlaps
from gpucoron.ops.gram_injection import GramInjection
from gpucoron.ops.injection import CombinedResponse, KlipResponse
from gpucoron.ops.stamps import cut

__all__ = ["ExposureResponse", "ForwardModel", "OffAxisImages", "Patches", "sky_of"]

_AT_ONCE = 256  # places, whose stamps are in memory at a time
_FEW = 64  # places for which images are computed one by one; a table serves more of them
_PHASES = 8  # places of a source within its pixel, along each axis, in a rough model
_FAR = -1_000_000  # row and column beyond every array


class OffAxisImages(Protocol):
    """PSF of an off-axis source, as `gpucoron.optics.off_axis.OffAxisPSF` has it.

    Offsets are (m, 2), y and x, px from the mask.
    """

    @property
    def fwhm_px(self) -> float:
        """Width of the PSF without the mask."""

    @property
    def without_mask(self) -> np.ndarray:
        """Image of a source far from the mask, in the middle of its pixel."""

    def images(
        self, offsets: np.ndarray, within: np.ndarray | None = None, *, exact: bool = False
    ) -> np.ndarray:
        """Return images (m, box, box) of sources whose light without the mask is 1.

        `within` (m, 2) is where a source is in the middle pixel, y and x from its centre.
        """

    def throughput(self, offsets: np.ndarray, *, exact: bool = False) -> np.ndarray:
        """Return the light (m,) of sources relative to that without the mask."""


@dataclass(frozen=True, eq=False, repr=False)
class ExposureResponse(ArrayFields):
    """What happens to a source in one science exposure.

    Attributes
    ----------
    root : str
        Name of the exposure.
    sky_to_pixel : callable
        From RA and Dec in degrees to x, y in pixels from 0, by the WCS that it is combined by.
    mask : (x, y), pixels from 0
        Centre of the coronagraph mask.
    klip : KlipResponse or GramInjection
        What PSF subtraction leaves of it.
    weights : (n, ny, nx) float32
        Of the pixels of its integrations in the combined image.
    geometry : Overlaps
        Of its pixels with those of the combined image.
    pixel_area_sr : float
        Mean solid angle of its pixels.
    rolls : tuple of (root, (y, x))
        The other exposures among its references, in the order of the stamps that `klip` takes, and
        how far their images are moved, px.
    """

    root: str
    sky_to_pixel: Callable[[Any, Any], tuple[np.ndarray, np.ndarray]]
    mask: tuple[float, float]
    klip: KlipResponse | GramInjection
    weights: np.ndarray
    geometry: Overlaps
    pixel_area_sr: float
    rolls: tuple[tuple[str, tuple[float, float]], ...] = ()


class Patches(NamedTuple):
    """Small images that show one source each, as the combined image would."""

    images: np.ndarray  # (m, size, size) float64; NaN where the combined image has no data
    corners: np.ndarray  # (m, 2) int, row and column of the first pixel in the combined image
    places: np.ndarray  # (m, 2) float64, y and x of the sources in it, pixels from 0

    def cut(self, image: np.ndarray) -> np.ndarray:
        """Return the same patches of another image (ny, nx): (m, size, size)."""
        return cut(np.asarray(image, dtype=np.float64), self.corners, self.images.shape[1])


class ForwardModel:
    """Predicts what a combined image shows of point sources, without a new run.

    Parameters
    ----------
    exposures : sequence of ExposureResponse
    wcs : OutputWcs
        Of the combined image.
    star : (ra, dec), degrees
        What offsets are counted from.
    psf : OffAxisImages
        PSF as a function of the offset from the mask.
    truncations : sequence of int
        Numbers of KL vectors of the run.

    Notes
    -----
    A source of flux 1 has, far from the mask and before PSF subtraction, pixels that add up to 1 in
    an exposure; in MJy/sr times pixels. `jansky` converts. In an exposure the source is where the
    WCS has it, with the PSF of its offset from the mask; KLIP leaves of it
    ``p - mean - Z Z^T p`` (`gpucoron.ops.injection.KlipResponse`); drizzle adds it up with the
    weights of the run. All is linear in the flux.

    Where other rolls are references (`linear` is False) these have the source, too, moved as their
    images are (`gpucoron.ops.gram_injection.GramInjection`). Images are those of a faint source
    then, or with `flux` what such a source changes: added to the images of the run (above 0), or
    taken away from them (below 0), as is right for one that is there.
    """

    def __init__(
        self,
        exposures: Sequence[ExposureResponse],
        wcs: OutputWcs,
        star: tuple[float, float],
        psf: OffAxisImages,
        truncations: Sequence[int],
    ):
        if not exposures:
            raise InputError("a forward model got no exposure, expected at least one")
        self.exposures, self.wcs, self.star = tuple(exposures), wcs, star
        self.psf, self.truncations = psf, tuple(truncations)

    @property
    def linear(self) -> bool:
        """Whether the image of a source is in proportion to its flux."""
        return all(e.klip.linear for e in self.exposures)

    def rough(self) -> ForwardModel:
        """Return a faster model for maps, with images of the source at few offsets from the mask.

        See `gpucoron.analysis.coarse_psf.CoarsePSF`.
        """
        return self.with_psf(self.coarse_psf.with_phases(_PHASES))

    @cached_property
    def coarse_psf(self) -> CoarsePSF:
        """PSF and transmission between few offsets from the mask."""
        return CoarsePSF(self.psf)

    @property
    def jansky(self) -> float:
        """Janskys of a source of flux 1: MJy/sr over the mean area of the exposures' pixels."""
        return 1e6 * float(np.mean([e.pixel_area_sr for e in self.exposures]))

    @property
    def psf_source(self) -> str:
        """What the images of sources are from, in words."""
        return str(getattr(self.psf, "source", "given"))

    @property
    def fwhm_px(self) -> float:
        """FWHM of the PSF in pixels of the combined image."""
        return float(self.psf.fwhm_px) / self.wcs.pixel_scale_ratio

    def sky(self, offsets: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return RA and Dec (m,), degrees, of offsets (m, 2) east and north of the star, arcsec."""
        return sky_of(self.star, offsets)

    def places(self, offsets: Any) -> np.ndarray:
        """Return y and x (m, 2) in the combined image, pixels from 0, of offsets from the star."""
        x, y = self.wcs.sky_to_pixel(*self.sky(offsets))
        return np.stack([y, x], axis=1)

    def offsets(self, places: Any) -> np.ndarray:
        """Return offsets (m, 2) east and north of the star, arcsec, of y, x in the image."""
        y, x = np.asarray(places, dtype=np.float64).T
        ra, dec = self.wcs.pixel_to_sky(x, y)
        return np.stack(_tangent(self.star).sky_to_pixel(ra, dec), axis=1)

    def sweep(
        self,
        offsets: Any,
        truncations: Sequence[int],
        size: int = 21,
        exact: bool | None = None,
        flux: Any = None,
    ) -> list[Patches]:
        """Return `patches` for each of several numbers of KL vectors; images are made once.

        With `exact` the PSF is computed anew at every place, not interpolated in its table.
        Default: where there are fewer than 64 places.
        """
        kept = [self._kept(k) for k in truncations]
        offsets = _as_offsets(offsets)
        if flux is not None:
            flux = np.broadcast_to(np.asarray(flux, dtype=np.float64), (len(offsets),))
        exact = len(offsets) < _FEW if exact is None else exact
        places = self.places(offsets)
        known = np.isfinite(places).all(axis=1)
        whole = np.rint(np.where(known[:, None], places, _FAR)).astype(np.int64)
        corners = whole - size // 2
        images = np.empty((len(kept), len(offsets), size, size))
        for start in range(0, len(offsets), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            stamps, their = zip(*self._stamps(offsets[part], exact), strict=True)
            for out, truncate in zip(images, kept, strict=True):
                strength = None if flux is None else flux[part]
                out[part] = self._combined.patches(
                    stamps, their, corners[part], size, truncate, strength
                )
        return [Patches(out, corners, places) for out in images]

    def patches(
        self, offsets: Any, truncate: int | None = None, size: int = 21, flux: Any = None
    ) -> Patches:
        """Return what the combined image shows of sources of flux 1, each by itself.

        Parameters
        ----------
        offsets : (m, 2) floating
            East and north of the star, arcsec.
        truncate : int, optional
            Number of KL vectors; one of the run's or fewer than its largest. Default: the largest.
        size : int
            Side of the patches, pixels, odd.
        flux : float or (m,) floating, optional
            What is added to the images of the run, or below 0 taken away; the result is divided by
            it. Default: the limit of a faint source.

        Returns
        -------
        Patches
        """
        kept = [max(self.truncations) if truncate is None else truncate]
        return self.sweep(offsets, kept, size, flux=flux)[0]

    def subtracted(
        self, offsets: Any, truncate: int | None = None, flux: Any = None
    ) -> dict[str, np.ndarray]:
        """Return what PSF subtraction leaves of sources of flux 1 in every exposure.

        Parameters
        ----------
        offsets, truncate, flux
            As for `patches`.

        Returns
        -------
        dict of str to (m, n, ny, nx) float64
            For each exposure; n is 1 where no pixel is missing in any integration.
        """
        kept = self._kept(max(self.truncations) if truncate is None else truncate)
        found = self._stamps(_as_offsets(offsets), exact=True)
        return {
            e.root: e.klip.residuals(*stamps, kept, flux)
            for e, stamps in zip(self.exposures, found, strict=True)
        }

    def fluxes(
        self,
        image: np.ndarray,
        err: np.ndarray,
        offsets: Any,
        truncate: int | None = None,
        size: int = 21,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Measure the flux of a source at each of some places, by a fit of its patch.

        Parameters
        ----------
        image, err : (ny, nx) floating, MJy/sr
            The combined image and its errors, taken as independent.
        offsets, truncate, size
            As for `patches`.

        Returns
        -------
        flux, error : (m,) float64, MJy/sr times pixels of an exposure
            ``sum(d p / e^2) / sum(p^2 / e^2)``; NaN where there are no data.
        """
        patches = self.patches(offsets, truncate, size)
        data, noise, model = patches.cut(image), patches.cut(err), patches.images
        good = np.isfinite(data) & np.isfinite(model) & (noise > 0)
        inverse = np.where(good, 1.0 / np.where(good, noise, 1.0) ** 2, 0.0)
        data, model = np.where(good, data, 0.0), np.where(good, model, 0.0)
        power = np.einsum("mij,mij->m", model**2, inverse)
        with np.errstate(invalid="ignore", divide="ignore"):
            flux = np.einsum("mij,mij,mij->m", data, model, inverse) / power
            return np.where(power > 0, flux, np.nan), np.where(power > 0, power**-0.5, np.nan)

    # ---- sources in the exposures

    @cached_property
    def _combined(self) -> CombinedResponse:
        return CombinedResponse(
            [e.klip for e in self.exposures],
            [e.weights for e in self.exposures],
            [e.geometry for e in self.exposures],
        )

    def _kept(self, truncate: int) -> int:
        most = max(self.truncations)
        if not 0 <= truncate <= most:
            raise ParameterError(f"truncate is {truncate}, expected 0 to {most}, as in the run")
        return truncate

    def core(self, offsets: Any) -> np.ndarray:
        """Return the sum (m,) in an aperture of one FWHM on sources before PSF subtraction.

        Mean over the exposures, of a source whose light without the mask is 1.
        """
        offsets = _as_offsets(offsets)
        total = np.zeros(len(offsets))
        for origin, matrix in self._about_star:
            total += self.coarse_psf.core(origin + offsets @ matrix)
        return total / len(self.exposures)

    @cached_property
    def _about_star(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The star's y, x from the mask in each exposure, and pixels per arcsec; linear there."""
        ra, dec = self.sky(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        found = []
        for exposure in self.exposures:
            origin, *steps = np.transpose(exposure.sky_to_pixel(ra, dec))[:, ::-1]
            found.append((origin - exposure.mask[::-1], np.array(steps) - origin))
        return found

    def with_psf(self, psf: Any) -> ForwardModel:
        """Return this model with other images of sources."""
        other = copy.copy(self)
        other.psf = psf
        return other

    def _stamps(self, offsets: np.ndarray, exact: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return stamps (m, g, box, box) and corners (m, g, 2) of the sources in each exposure.

        They are those in the exposure, then those of other rolls where its references have them.
        """
        ra, dec = self.sky(offsets)
        by_root = {e.root: e for e in self.exposures}
        found = []
        for exposure in self.exposures:
            of_rolls = [(by_root[root], move) for root, move in exposure.rolls]
            parts = [
                self._in_exposure(e, ra, dec, exact, move)
                for e, move in ((exposure, (0.0, 0.0)), *of_rolls)
            ]
            side = max(stamps.shape[1] for stamps, _ in parts)
            shape = (len(ra), side, side)  # 0 where no source is in an exposure
            stamps = [s if s.shape == shape else np.zeros(shape) for s, _ in parts]
            found.append((np.stack(stamps, axis=1), np.stack([c for _, c in parts], axis=1)))
        return found

    def _in_exposure(self, exposure, ra, dec, exact, move):
        """Return the sources' images in an exposure that is moved by (y, x), px."""
        x, y = exposure.sky_to_pixel(ra, dec)
        places = np.stack([y, x], axis=1)
        known = np.isfinite(places).all(axis=1)
        if not known.any():
            return np.zeros((len(places), 1, 1)), np.full((len(places), 2), _FAR)
        offsets, moved = places[known] - exposure.mask[::-1], places[known] + move
        whole = np.rint(moved)
        images = self.psf.images(offsets, moved - whole, exact=exact)
        stamps = np.zeros((len(places), *images.shape[1:]))
        corners = np.full((len(places), 2), _FAR)
        stamps[known] = images
        corners[known] = whole.astype(np.int64) - images.shape[1] // 2
        return stamps, corners


def _as_offsets(offsets: Any) -> np.ndarray:
    offsets = np.asarray(offsets, dtype=np.float64)
    if offsets.ndim != 2 or offsets.shape[1] != 2:
        raise InputError(f"offsets have shape {offsets.shape}, expected (m, 2): east and north")
    return offsets


def sky_of(star: tuple[float, float], offsets: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return RA and Dec (m,), degrees, of offsets (m, 2) east and north of a star, arcsec."""
    offsets = _as_offsets(offsets)
    return _tangent(star).pixel_to_sky(offsets[:, 0], offsets[:, 1])


def _tangent(star: tuple[float, float]) -> OutputWcs:
    """Return a WCS whose x and y are arcsec east and north of the star."""
    step = (1 / 3600, 1 / 3600)
    return OutputWcs((1, 1), (0.0, 0.0), star, step, ((1.0, 0.0), (0.0, 1.0)), 1.0)
