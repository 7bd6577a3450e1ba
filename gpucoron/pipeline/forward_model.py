"""The forward model of a product, from what a run has in memory."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from gpucoron.backend.arrays import to_host
from gpucoron.ops.drizzle import overlaps
from gpucoron.steps.resample import fixed_weights, plane_weights

if TYPE_CHECKING:
    from gpucoron.analysis.forward import ExposureResponse, ForwardModel, OffAxisImages
    from gpucoron.core.stack import IntegrationStack
    from gpucoron.io.exposures import Exposure
    from gpucoron.pipeline.combination import Layout
    from gpucoron.pipeline.product_context import ProductContext

__all__ = ["make_forward_model"]

log = logging.getLogger("gpucoron")


def make_forward_model(
    product: ProductContext, layout: Layout | None, images: list[IntegrationStack]
) -> ForwardModel | None:
    """Return what predicts the combined image of a source; None, with the reason logged, without.

    Parameters
    ----------
    product : ProductContext
        `responses` has what is left of a source in each science exposure.
    layout : Layout or None
    images : list of IntegrationStack
        The subtracted integrations of each science exposure, for one number of KL vectors.
    """
    from gpucoron.analysis.forward import ForwardModel

    star, psf, science = product.result.star, off_axis_psf(product), product.inputs.science
    lacking = None
    if layout is None or len(product.responses) < len(science):
        lacking = "no PSF is subtracted, or nothing is combined"
    elif star is None:
        lacking = "the star's position is not known"
    elif psf is None:
        lacking = "there is no model of the PSF of this coronagraph and filter"
    if lacking or layout is None or star is None or psf is None:
        log.warning("%s: no forward model of a source: %s", product.result.name, lacking)
        return None
    exposures = [
        _response(product, layout, k, stack, weight)
        for k, (stack, weight) in enumerate(zip(images, _weights(product, images), strict=True))
    ]
    return ForwardModel(exposures, layout.wcs, star.radec, psf, product.inputs.truncations)


def _weights(product: ProductContext, images: list[IntegrationStack]) -> list[float | None]:
    parameters = product.parameters.resample
    times: list[Any] = [e.meta.weighing_time for e in product.inputs.science]
    return fixed_weights(
        images,
        times if parameters.weight_type == "exptime" else None,
        product.weights.without_read_noise,
    )


def _response(product, layout, k, stack, weight) -> ExposureResponse:
    from gpucoron.analysis.forward import ExposureResponse

    exposure, parameters = product.inputs.science[k], product.parameters.resample
    wcs, response = product.record.exposures[exposure.root].wcs, product.responses[exposure.root]
    return ExposureResponse(
        exposure.root,
        wcs.sky_to_pixel,
        _mask_of(product, exposure),
        response.klip,
        to_host(plane_weights(stack, weight)),
        overlaps(
            to_host(layout.maps[k]),
            layout.wcs.shape,
            kernel=parameters.kernel,
            pixfrac=parameters.pixfrac,
            pixel_scale_ratio=layout.wcs.pixel_scale_ratio,
        ),
        layout.wcs.pixel_area_sr / layout.wcs.pixel_scale_ratio**2,
        response.rolls,
    )


def _mask_of(product: ProductContext, exposure: Exposure) -> tuple[float, float]:
    """Return x, y of the mask, pixels from 0: as measured, else by the optics, else the star."""
    from gpucoron.optics.instruments import optics_of

    star = product.result.stars[exposure.root]
    known = optics_of(exposure.meta)
    if star.mask is None and known is not None:
        return known.mask_centre
    x, y = star.mask or star.mean
    return x - 1, y - 1


def off_axis_psf(product: ProductContext) -> OffAxisImages | None:
    """Return the PSF of sources beside the mask, as given or by the optics; None without any."""
    from gpucoron.pipeline.off_axis_psf import optics_psf

    if product.inputs.psf is not None:
        return product.inputs.psf
    return optics_psf(product.inputs.science[0], modes_nm=product.stars.modes_nm)
