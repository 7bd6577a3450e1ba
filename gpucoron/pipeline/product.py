"""One product of an association: the five steps of calwebb_coron3."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gpucoron.pipeline.combination import combine, lay_out, measure_contrast
from gpucoron.pipeline.exposure_subtraction import (
    prepare_references,
    save_subtracted,
    subtract_psf,
)
from gpucoron.pipeline.flagging import flag_references, flag_science, stack_references
from gpucoron.pipeline.forward_model import make_forward_model
from gpucoron.pipeline.product_context import ProductContext
from gpucoron.pipeline.resume import can_read_back, read_back

if TYPE_CHECKING:
    from gpucoron.pipeline.inputs import ProductInputs, Psfmask
    from gpucoron.pipeline.planning import Plan
    from gpucoron.pipeline.result import ProductResult
    from gpucoron.pipeline.run import Run

log = logging.getLogger("gpucoron")


def run_product(run: Run, inputs: ProductInputs, plan: Plan, psfmask: Psfmask) -> ProductResult:
    """Run the five steps on one product of an association."""
    product = ProductContext(run, inputs, plan, psfmask)
    with product.backends[0].activate(), product.stars:
        # outlier_detection: flag pixels that deviate from their exposure's median
        references = flag_references(product)

        # stack_refs: all reference integrations in one stack
        stacked = stack_references(product, references)
        del references
        if stacked is not None and not run.options.parameters.klip.skip:
            with run.timed("star"):  # they tell the wavefront, by which the star is found
                product.stars.learn_from(inputs.references, stacked)

        # align_refs: bad pixels filled and spectra taken once, for all science exposures
        flagged = flag_science(product)
        library = prepare_references(product, stacked, flagged)
        del stacked

        subtracted = []
        for exposure, science in zip(inputs.science, flagged, strict=True):
            if run.options.parameters.klip.skip:
                images = {}
            elif can_read_back(product, exposure):
                images = read_back(product, exposure, science)
            else:
                # align_refs and klip, some integrations at a time: align the references to each,
                # model its PSF by their KL modes, and subtract
                images = subtract_psf(product, exposure, science, library)
            subtracted.append(save_subtracted(product, exposure, science, images))
            del science, images
        del library

        # resample: all science exposures on one grid, an image for each number of KL modes
        layout = lay_out(product, [next(iter(images.values())) for images in subtracted])
        product.record.star = product.result.star
        product.record.star_flux = product.result.star_flux
        if layout is not None:
            for truncate in subtracted[0]:
                combine(product, layout, [images[truncate] for images in subtracted], truncate)
        if run.options.keeps_forward_model:
            first = [next(iter(images.values())) for images in subtracted]
            product.record.forward = make_forward_model(product, layout, first)
        elif run.options.resume and run.options.report:
            log.info("%s: --resume: no forward model, so fluxes are a Gaussian's", inputs.name)
        product.record.to_host()
        if run.options.contrast:
            measure_contrast(product)
        product.check()
        run.record.note_stars(inputs.name, product.result)
    return product.result
