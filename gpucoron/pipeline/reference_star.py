"""What dithered exposures of a reference star tell of the wavefront and the coronagraph's mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.errors import GpucoronError
from gpucoron.ops import dq as dq_bits
from gpucoron.pipeline.star_model import ExposureMean, coronagraph_of

if TYPE_CHECKING:
    from gpucoron.core.stack import IntegrationStack, PlaneSource
    from gpucoron.io.exposures import Exposure
    from gpucoron.optics.star_fit import Prior

__all__ = ["DitheredReferences", "ReferenceFit"]

_LEAST_STEPS_PX = 0.1  # rms of the dithers, below which they tell nothing
_STEP_ERROR_PX = 0.02  # of the dithers by the GWCSs
_MOST_UNLIKE = 0.6  # of the dithers' rms by which the registration may disagree with them


class ReferenceFit(NamedTuple):
    """The fit to dithered references, and the dithers that it took for true."""

    known: Prior
    exposures: tuple[str, ...]
    steps: np.ndarray  # (n, 2) px, x and y of the star, mean 0

    def agrees(self, fits: np.ndarray, sources: Sequence[PlaneSource]) -> bool:
        """Return whether registration sees the dithers, so that the mask is where it was.

        In files that were recentred it does not: there each image has its own mask.

        Parameters
        ----------
        fits : structured array
            `gpucoron.steps.align_refs.FITS_DTYPE`, of all references to a science exposure.
        sources : sequence of PlaneSource
            Of the references.
        """
        from gpucoron.ops.registration import CONVERGED

        good = fits[fits["status"] == CONVERGED]
        owner = np.array([source.exposure for source in sources])[good["ref_plane"] - 1]
        seen = []
        for name in self.exposures:
            own = good[owner == name]
            seen.append([np.median(own[axis]) if own.size else np.nan for axis in ("x", "y")])
        away = seen - np.mean(seen, axis=0) - self.steps
        return bool(np.sqrt(np.mean(away**2)) < _MOST_UNLIKE * np.sqrt(np.mean(self.steps**2)))


class DitheredReferences:
    """Some exposures of one visit to a reference star, dithers far apart.

    Attributes
    ----------
    exposures : list of Exposure
    means : list of ExposureMean
        Of each.
    """

    def __init__(self, exposures: list[Exposure], stacked: IntegrationStack):
        self.exposures = exposures
        owners = np.array([source.exposure for source in stacked.sources])
        self.means = [_mean(stacked, np.flatnonzero(owners == e.root)) for e in exposures]

    @classmethod
    def of(
        cls, references: Sequence[Exposure], stacked: IntegrationStack
    ) -> DitheredReferences | None:
        """Choose from the visit with most exposures; None where none has dithers by its headers."""
        from gpucoron.optics.star import MOST_IMAGES, spread_out

        visits: dict[str, list[tuple[Exposure, tuple[float, float]]]] = {}
        for exposure in references:
            offset = _commanded(exposure)
            if offset is not None:
                visits.setdefault(exposure.visit, []).append((exposure, offset))
        if not visits or not stacked.sources:
            return None
        largest = max(visits.values(), key=len)
        offsets = np.array([offset for _, offset in largest])
        if len(largest) < 2 or not np.ptp(offsets, axis=0).any():
            return None
        return cls([largest[k][0] for k in spread_out(offsets, MOST_IMAGES)], stacked)

    def fit(self) -> ReferenceFit | None:
        """Fit the wavefront and the mask; None where the model does not explain the images."""
        from gpucoron.io.star import target_pixel
        from gpucoron.optics.star import fit_star

        pixels = [target_pixel(exposure) for exposure in self.exposures]
        if None in pixels:
            return None
        steps = np.array(pixels, float)
        steps -= steps.mean(axis=0)
        if np.sqrt(np.mean(steps**2)) < _LEAST_STEPS_PX:
            return None
        try:
            optics = coronagraph_of(self.exposures[0])
            fit = fit_star(
                np.array([mean.image for mean in self.means]),
                np.array([mean.noise for mean in self.means]),
                steps,
                optics.instrument,
                optics.bandpass,
                optics.mask_centre,
                sampling=optics.sampling,
                step_error_px=_STEP_ERROR_PX,
            )
        except GpucoronError:  # science exposures say what is not modelled
            return None
        if fit.method != "model" or not (fit.explained and fit.converged):
            return None
        return ReferenceFit(fit.known, tuple(e.root for e in self.exposures), steps)


def _commanded(exposure: Exposure) -> tuple[float, float] | None:
    """Return the dither by the headers, arcsec; None where they do not say it."""
    from gpucoron.io.fits.headers import number_pair

    return number_pair(exposure.primary_header, "XOFFSET", "YOFFSET")


def _mean(stacked: IntegrationStack, planes: np.ndarray) -> ExposureMean:
    """Return the mean of the good pixels of some planes of a stack."""
    xp = cuda.array_namespace(stacked.data)
    which = xp.asarray(planes)
    data, err = stacked.data[which], stacked.err[which]
    good = (stacked.dq[which] & dq_bits.DO_NOT_USE == 0) & xp.isfinite(data)
    count = good.sum(axis=0)
    total = xp.where(good, data, 0).sum(axis=0, dtype=xp.float64)
    square = xp.where(good & xp.isfinite(err), err, 0).astype(xp.float64) ** 2
    some = xp.maximum(count, 1)
    image = xp.where(count > 0, total / some, xp.nan)
    sigma = xp.sqrt(square.sum(axis=0)) / some
    n = len(planes)
    still = np.zeros((n, 2)), np.zeros((n, 2)), np.zeros(n)
    return ExposureMean(to_host(image), to_host(sigma), *still, np.ones(n, bool))
