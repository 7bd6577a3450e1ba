"""State shared by the steps of one product: inputs, devices, file names, result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gpucoron.analysis.record import Record
from gpucoron.backend.prefetch import read_ahead
from gpucoron.backend.transfer import CpuBackend, backends
from gpucoron.pipeline.exclusion import find_exclusion
from gpucoron.pipeline.last_check import LastCheck
from gpucoron.pipeline.output_names import OutputNames
from gpucoron.pipeline.planning import MIB
from gpucoron.pipeline.result import ProductResult
from gpucoron.pipeline.stars import Stars
from gpucoron.pipeline.weights import Weights

if TYPE_CHECKING:
    import numpy as np

    from gpucoron.core.stack import IntegrationStack
    from gpucoron.io.exposures import Exposure
    from gpucoron.io.products import Provenance
    from gpucoron.pipeline.inputs import ProductInputs, Psfmask
    from gpucoron.pipeline.planning import Plan
    from gpucoron.pipeline.responses import SourceResponse
    from gpucoron.pipeline.run import Run

log = logging.getLogger("gpucoron")


class ProductContext:
    """The state of one product while its steps run.

    Attributes
    ----------
    parameters : Parameters
    names : OutputNames
    backends : list
        Devices that share the work; the first holds the result.
    result : ProductResult
    record : Record
        What the report shows.
    stars : Stars
        Where the star is in the science exposures.
    responses : dict of str to SourceResponse
        What is left of a source in each science exposure, where the run is to keep it.
    last_check : LastCheck
        What is compared at the end.
    mask : (ny, nx) float64 array
        The psfmask's weights.
    provenance : Provenance
        What the headers of all products say.
    batch : int
        References to shift at a time, within the memory allowed.
    weights : Weights
        Of the science exposures' pixels.
    suspected : set of str
        Reference exposures that seem to have a background source.
    stacks : iterator of IntegrationStack
        The images of all exposures, references first, each read ahead.
    """

    def __init__(self, run: Run, inputs: ProductInputs, plan: Plan, psfmask: Psfmask):
        self.run, self.inputs = run, inputs
        self.parameters = run.options.parameters
        self.names = OutputNames(run.options, inputs.association.asn_id, inputs.truncations)
        self.backends = backends(run.device)
        self.record = Record.of(inputs.association, inputs.product)
        self.record.note_exposures(*inputs.science, *inputs.references)
        self.result = ProductResult(
            inputs.name, record=self.record, left_out=inputs.product.left_out
        )
        self.stars = Stars(
            inputs.science,
            self.parameters,
            self.result,
            inputs.star_model,
            run.threads > 1,
            inputs.star_flux,
        )
        self.responses: dict[str, SourceResponse] = {}
        self.last_check = LastCheck(inputs.name)
        self.weights = Weights(self.parameters)
        self.suspected: set[str] = set()
        self.batch = plan.batch
        sizes = plan.pairs, plan.batch, plan.memory // MIB
        log.debug("%d pairs, %d references at a time, about %d MiB", *sizes)
        self.mask = self.record.mask = psfmask.mask
        self.result.psfmask = psfmask.how
        run.record.check_psfmask(inputs.name, psfmask.name, psfmask.mask)
        self.provenance = self._provenance(psfmask.name)
        self.stacks = read_ahead(
            self._load,
            [*inputs.references, *inputs.science],
            run.threads > 1,
        )

    @contextmanager
    def step(self, name: str, backend: CpuBackend | None = None) -> Iterator[None]:
        """Run a block as a step: timed, on a device, its errors converted to one line."""
        backend = backend or self.backends[0]
        with self.run.timed(name), backend.activate(), backend.errors(name):
            yield
            backend.finish()

    def on(self, backend: CpuBackend, stack: IntegrationStack) -> IntegrationStack:
        """Return a stack of the first device on another one."""
        if backend is self.backends[0]:
            return stack
        return backend.upload(self.backends[0].download_later(stack)())

    def output(
        self,
        kind: str,
        name: str,
        value: Any,
        writer: Callable[..., dict[str, str]],
        source: Any,
        *extra: Any,
        truncate: int | None = None,
    ) -> Any:
        """Write the output of a step if it is to be saved; return it if it is to be kept.

        Parameters
        ----------
        kind : str
            One of `gpucoron.core.products.PRODUCTS`.
        name : str
            Root of an exposure, or name of the product.
        value : array or dataclass of arrays
            On the first device.
        writer : callable
            Of `gpucoron.io.products`; gets `source` (what it was made from), value and `extra`.
        """
        kept = kind in self.run.options.keep
        host = self.backends[0].download_later(value, pinned=not kept)
        found = host() if kept else None
        if kind in self.run.options.save:
            provenance = self.provenance
            if truncate is not None:
                parameters = {**provenance.parameters, "klip.truncate": truncate}
                provenance = replace(provenance, parameters=parameters)
            path = self.names.path(name, kind, truncate)
            self.run.writer.write(path, writer, source, host, *extra, provenance)
        return found

    def _load(self, exposure: Exposure) -> IntegrationStack:
        stack = exposure.load()
        self.weights.look_at(exposure, stack)
        return self.backends[0].upload(stack)

    def weights_of(self, exposure: Exposure) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the pixels' weights in the fits of a science exposure, and in KLIP.

        The first are the psfmask, 0 in excluded regions; the others are None without any.
        """
        excluded = find_exclusion(self.parameters, self.inputs.science, exposure)
        if excluded is None:
            return self.mask, None
        return self.mask * excluded.registration, excluded.klip

    def check(self) -> None:
        """Warn of products that are out of proportion to the input; the record is on the host."""
        wcs = self.record.wcs
        self.last_check.warn(self.record.images, 1.0 if wcs is None else wcs.pixel_scale_ratio)

    # ---- before the steps

    def _provenance(self, psfmask: str) -> Provenance:
        from gpucoron import __version__
        from gpucoron.io.products import Provenance

        association, inputs = self.inputs.association, self.inputs
        return Provenance(
            version=__version__,
            device=self.run.device.label,
            asn_id=association.asn_id,
            asn_table=association.table_name,
            asn_pool=association.asn_pool,
            parameters={**self.parameters.flat(), "klip.mode": inputs.mode},
            inputs=[e.path.name for e in (*inputs.science, *inputs.references)],
            psfmask=psfmask,
        )
