"""The reference images of a product's science exposures, and how they rank."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from gpucoron.pipeline.movement import expected_place

if TYPE_CHECKING:
    from gpucoron.core.stack import PlaneSource
    from gpucoron.io.exposures import Exposure
    from gpucoron.pipeline.inputs import ProductInputs
    from gpucoron.pipeline.product_context import ProductContext
    from gpucoron.pipeline.subtraction import Ranked
    from gpucoron.steps.bad_pixels import ReferenceLibrary

__all__ = ["ReferenceImages", "report_ranking", "to_be_ranked"]

log = logging.getLogger("gpucoron")


class ReferenceImages:
    """The references of a product's science exposures, prepared on every device.

    Parameters
    ----------
    inputs : ProductInputs
    sources : tuple of PlaneSource
        Of all reference images; may be empty where psf members are all there is.
    n : int
        Number of images.

    Attributes
    ----------
    libraries : list of ReferenceLibrary
        Of all images, one for each device.
    """

    def __init__(self, inputs: ProductInputs, sources: tuple[PlaneSource, ...], n: int):
        self._inputs, self._sources, self._n = inputs, sources, n
        self.libraries: list[ReferenceLibrary] = []

    def planes(self, exposure: Exposure) -> np.ndarray:
        """Return the numbers of the images that are a science exposure's references."""
        if not self._inputs.uses_rolls:
            return np.arange(self._n)
        rolls = {e.root for e in self._inputs.chosen.rolls.get(exposure.root, ())}
        science = {e.root for e in self._inputs.science}
        return np.flatnonzero(
            [s.exposure in rolls or s.exposure not in science for s in self._sources]
        )

    def sources(self, exposure: Exposure) -> tuple[PlaneSource, ...]:
        """Return the sources of a science exposure's references."""
        return tuple(self._sources[k] for k in self.planes(exposure))

    def of(self, exposure: Exposure) -> list[ReferenceLibrary]:
        """Return the references of a science exposure on every device."""
        if not self._inputs.uses_rolls:
            return self.libraries
        planes = self.planes(exposure)
        return [library.select(planes) for library in self.libraries]


def to_be_ranked(product: ProductContext, exposure: Exposure) -> Ranked | None:
    """Return what ranks the references of a science exposure; None where that cannot be."""
    from gpucoron.pipeline.subtraction import Ranked

    sources = product.record.sources_of(exposure.root)
    if not sources or product.parameters.like_jwst or product.parameters.align_refs.skip:
        return None
    x, y = expected_place(product.parameters, product.inputs.science, exposure)
    return Ranked(sources, (x - 1, y - 1))


def report_ranking(product: ProductContext, exposure: Exposure, ranking: np.ndarray | None) -> None:
    """Note how the references of a science exposure rank, and warn of those with a source."""
    from gpucoron.steps.reference_ranking import LIKELY_SOURCE

    if ranking is None:
        return
    product.result.references[exposure.root] = ranking
    told = product.suspected | set(product.inputs.chosen.rolls)  # a companion of the target's
    found = ranking[(ranking["source"] > LIKELY_SOURCE) & ~np.isin(ranking["exposure"], list(told))]
    product.suspected.update(found["exposure"].tolist())
    if found.size:
        log.warning(
            "%s: what only one of the references has will be negative in the result "
            "(--exclude-reference leaves an exposure out): %s",
            exposure.root,
            "; ".join(
                f"{row['exposure']}, a source at x, y = {row['x']:.0f}, {row['y']:.0f} of the "
                f"aligned image, {row['source']:.0f} times the scatter there"
                for row in found
            ),
        )
