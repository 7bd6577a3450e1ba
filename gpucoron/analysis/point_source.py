"""What a point source leaves in combined images and exposures: the forward model, or a Gaussian."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gpucoron.analysis.joint_sources import light_of, without_sources

if TYPE_CHECKING:
    from gpucoron.analysis.forward import ForwardModel
    from gpucoron.analysis.record import Record
    from gpucoron.io.wcs import OutputWcs

__all__ = ["ExactSource", "GaussianSource", "source_model"]

_SIGMA_OF_FWHM = 1 / (2 * math.sqrt(2 * math.log(2)))


class ExactSource:
    """A point source by the forward model of a run, for one number of KL modes.

    A `gpucoron.analysis.matched_filter.PatchModel` of sources of flux 1, which `jansky` converts.

    Parameters
    ----------
    forward : ForwardModel
    truncate : int
    flux : float, optional
        Of the source. Where other rolls are references, it is in these, too, and what is left of it
        is not in proportion to its flux. Default: a faint one.
    present : bool
        It is in the images of the run (or those that `forward` has instead), or else it is added.
    """

    exact = True

    def __init__(
        self,
        forward: ForwardModel,
        truncate: int,
        flux: float | None = None,
        present: bool = True,
    ):
        self._forward, self._truncate = forward, min(truncate, max(forward.truncations))
        self._taken = None if flux is None else -flux if present else flux
        self._present = present
        self.jansky = forward.jansky

    @property
    def linear(self) -> bool:
        """Whether the image of a source is in proportion to its flux."""
        return self._forward.linear

    def apart(
        self, sources: Sequence[Any], shape: tuple[int, int], *, present: bool = True
    ) -> tuple[np.ndarray, ExactSource]:
        """Return the light of sources in the image, and the model of one more without them.

        Parameters
        ----------
        sources : sequence
            With x, y (pixels of the combined image from 0) and flux; taken away together.
        shape : (ny, nx)
            Of the combined image.
        present : bool
            The one more is in the images, or is added to what is left of them.
        """
        if not len(sources):
            return np.zeros(shape), self
        offsets = self._forward.offsets(np.array([(s.y, s.x) for s in sources]))
        flux = np.array([s.flux for s in sources])
        light = light_of(self._forward, offsets, flux, self._truncate)
        left = without_sources(self._forward, offsets, flux)
        return np.nan_to_num(light), ExactSource(left, self._truncate, None, present)

    def of_flux(self, flux: float) -> ExactSource:
        """Return the model of sources of about this flux, per unit of flux; see `PatchModel`."""
        if self._forward.linear or not flux > 0:
            return self
        return ExactSource(self._forward, self._truncate, flux, self._present)

    def rough(self) -> ExactSource:
        """Return a faster one, for maps."""
        return ExactSource(self._forward.rough(), self._truncate)

    def patches(self, places: np.ndarray, half: int) -> np.ndarray:
        """Return images of sources of flux 1; see `PatchModel`."""
        places = np.asarray(places, dtype=np.float64)
        offsets = self._forward.offsets(places[:, ::-1])
        found = self._forward.patches(offsets, self._truncate, 2 * half + 3, self._taken)
        images = np.nan_to_num(found.images)
        # one pixel more on each side, where rounding puts a patch about a neighbouring pixel
        first = np.rint(places[:, ::-1]).astype(int) - half - found.corners
        side = 2 * half + 1
        return np.stack(
            [image[y : y + side, x : x + side] for image, (y, x) in zip(images, first, strict=True)]
        )

    def in_exposures(self, place: tuple[float, float]) -> dict[str, np.ndarray]:
        """Return the mean image (ny, nx) of a source of flux 1 in each PSF-subtracted exposure."""
        offsets = self._forward.offsets(np.array([place[::-1]]))
        found = self._forward.subtracted(offsets, self._truncate, self._taken)
        return {root: images[0].mean(axis=0) for root, images in found.items()}


class GaussianSource:
    """A Gaussian of the PSF's width: a point source where there is no forward model.

    Losses in the coronagraph and by KLIP, and the light outside the core, are not in it.

    Parameters
    ----------
    record : Record
    fwhm_px : float
        In pixels of the combined image.
    """

    exact, linear = False, True

    def __init__(self, record: Record, fwhm_px: float):
        self._record, self._fwhm_px = record, fwhm_px
        self._wcs = cast("OutputWcs", record.wcs)
        self.jansky = 1e6 * self._wcs.pixel_area_sr

    def patches(self, places: np.ndarray, half: int) -> np.ndarray:
        """Return images of sources of flux 1; see `PatchModel`."""
        places = np.asarray(places, dtype=np.float64)
        apart = (np.arange(-half, half + 1)[:, None] + np.rint(places)[:, None, :]) - places[
            :, None
        ]
        along = np.exp(-0.5 * (apart / (self._fwhm_px * _SIGMA_OF_FWHM)) ** 2)
        along /= self._fwhm_px * _SIGMA_OF_FWHM * math.sqrt(2 * math.pi)
        return along[:, :, None, 1] * along[:, None, :, 0]

    def of_flux(self, flux: float) -> GaussianSource:
        """Return itself, which is in proportion to the flux."""
        return self

    def rough(self) -> GaussianSource:
        """Return itself, which is fast."""
        return self

    def in_exposures(self, place: tuple[float, float]) -> dict[str, np.ndarray]:
        """Return the image (ny, nx) of a source of flux 1 in each science exposure."""
        ra, dec = self._wcs.pixel_to_sky(*place)
        found = {}
        for entry in self._record.exposures.values():
            if entry.exptype != "science" or entry.wcs is None:
                continue
            x, y = (float(v) for v in entry.wcs.sky_to_pixel(ra, dec))
            rows, columns = np.indices(entry.shape[1:])
            sigma = self._fwhm_px * _SIGMA_OF_FWHM * self._wcs.pixel_scale_ratio
            square = (columns - x) ** 2 + (rows - y) ** 2
            if math.isfinite(x) and math.isfinite(y):
                image = np.exp(-square / (2 * sigma**2)) / (2 * math.pi * sigma**2)
                found[entry.root] = image * self._wcs.pixel_scale_ratio**2
        return found


def source_model(record: Record, truncate: int, fwhm_px: float) -> Any:
    """Return the best model of a point source that a run has: ExactSource or GaussianSource."""
    if record.forward is not None:
        return ExactSource(record.forward, truncate)
    return GaussianSource(record, fwhm_px)
