"""Check the products of a run against its input, and warn of what is out of proportion."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.ops.dq import DO_NOT_USE, NON_SCIENCE

if TYPE_CHECKING:
    from gpucoron.core.stack import IntegrationStack

log = logging.getLogger("gpucoron")

#: Rms of psfsub over that of its input, good pixels within the psfmask. Simulated sets of all
#: instruments and AU Mic 0.03 to 0.32; 0.53 and 0.70 where the noise is a good part of the input;
#: stars below the noise, references that are misplaced and ERR that is 0 0.87 to 1.55.
MOST_LEFT = 0.8
#: Share of the pixels within the psfmask that are good; the same sets 0.98 to 0.99, ERR that is 0
#: 0.33. An exposure may have lost one integration of two.
LEAST_GOOD = 0.5
#: Finite pixels of i2d over those of a science exposure; the same sets 1.08 to 1.20.
LEAST_COVERED = 0.5


class _Sums(NamedTuple):
    """Sums over the pixels of an exposure."""

    within: float  # pixels within the psfmask
    good: float  # and good
    before: float  # sum of the good ones before subtraction, and of their squares
    before_squared: float
    after: float  # after subtraction
    after_squared: float
    usable: float  # pixels anywhere that are good in at least one integration

    @property
    def left(self) -> float:
        """Rms after subtraction over rms before, about the mean; 0 without good pixels."""
        n = max(self.good, 1)
        before = max(self.before_squared / n - (self.before / n) ** 2, 0.0)
        after = max(self.after_squared / n - (self.after / n) ** 2, 0.0)
        return (after / before) ** 0.5 if before > 0 else 0.0


class LastCheck:
    """Measures the exposures of a product as they come, and compares at the end."""

    def __init__(self, name: str):
        self._name = name
        self._exposures: dict[str, Any] = {}  # (7,) arrays on the device of the images
        self._subtracted = False

    def note_subtracted(
        self,
        root: str,
        mask: np.ndarray,
        before: IntegrationStack,
        after: dict[int, IntegrationStack],
    ) -> None:
        """Measure an exposure before and after subtraction.

        Parameters
        ----------
        root : str
        mask : (ny, nx) floating
            The psfmask; 0 as well where a known source is.
        before : IntegrationStack
        after : dict of int to IntegrationStack
            By truncation, of which the largest counts; may be empty.
        """
        xp, most = cuda.array_namespace(before.data), max(after, default=0)
        self._subtracted = most > 0
        result = after[most] if most > 0 else before
        mask, sums = xp.asarray(mask) > 0, xp.zeros(len(_Sums._fields))
        ever = xp.zeros(mask.shape, dtype=bool)
        planes = zip(before.dq, result.dq, before.data, result.data, strict=True)
        for dq, dq_after, old, new in planes:
            usable = ((dq & np.uint32(DO_NOT_USE)) == 0) & xp.isfinite(old) & xp.isfinite(new)
            within = mask & ((dq_after & np.uint32(NON_SCIENCE)) == 0)  # nor outside of zones
            ever |= usable
            good = usable & within
            old, new = (xp.where(good, image, 0).astype(np.float64) for image in (old, new))
            terms = within, good, old, old * old, new, new * new
            sums[:-1] += xp.stack([term.sum() for term in terms])
        sums[-1] = ever.sum()
        self._exposures[root] = sums

    def warn(self, images: dict[int, np.ndarray], pixel_scale_ratio: float) -> None:
        """Warn of what is out of proportion.

        Parameters
        ----------
        images : dict of int to (ny, nx) array
            The combined images, by truncation, on the host; may be empty.
        pixel_scale_ratio : float
            Output over input scale.
        """
        exposures = {root: _Sums(*to_host(sums)) for root, sums in self._exposures.items()}
        for root, e in exposures.items():
            share = e.good / max(e.within, 1)
            if share < LEAST_GOOD:
                log.warning(
                    "%s: only %.1f%% of the pixels of %s within the psfmask are good (expected: "
                    "more than %.0f%%); see DQ",
                    *(self._name, 100 * share, root, 100 * LEAST_GOOD),
                )
            if self._subtracted and e.left > MOST_LEFT:
                log.warning(
                    "%s: PSF subtraction leaves %.0f%% of the rms of %s within the psfmask "
                    "(expected: less than %.0f%%): the star is not subtracted, or fainter than "
                    "the noise or another source",
                    *(self._name, 100 * e.left, root, 100 * MOST_LEFT),
                )
        usable = max((e.usable for e in exposures.values()), default=0.0)
        for image in images.values():
            finite = int(np.isfinite(image).sum())
            expected = min(usable * min(1.0, pixel_scale_ratio**-2), image.size)
            if finite < LEAST_COVERED * expected:
                log.warning(
                    "%s: i2d has %d finite pixels (expected: about %d, as many as its exposures)",
                    *(self._name, finite, int(expected)),
                )
                break
