"""resample of one product: its grid, its combined image, and its contrast."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from gpucoron.pipeline.coverage import check_filled, report_outside
from gpucoron.pipeline.product_context import ProductContext

if TYPE_CHECKING:
    from gpucoron.core.stack import IntegrationStack
    from gpucoron.io.wcs import OutputWcs

__all__ = ["Layout", "combine", "lay_out", "measure_contrast"]

log = logging.getLogger("gpucoron")


class Layout(NamedTuple):
    """The grid of the combined image, and the exposures' pixel maps to it, (ny, nx, 2)."""

    wcs: OutputWcs
    maps: list[Any]
    overlaps: dict[int, Any] | None  # of the maps, kept for several numbers of KL modes


def lay_out(product: ProductContext, images: list[IntegrationStack]) -> Layout | None:
    """Lay out the combined image, and warn of what it will lack; None if there will be none.

    `images` are those of each science exposure, for one number of KL modes.
    """
    from gpucoron.io.inspection import geometry
    from gpucoron.io.second_process import in_second_process
    from gpucoron.io.wcs import output_wcs, pixel_map

    with product.run.timed("star"):
        product.stars.wait()
    if product.parameters.resample.skip:
        return None
    science = product.inputs.science
    product.weights.compare()
    with product.step("resample"):
        inputs, metas, shapes = geometry(science)
        centering = product.stars.center(inputs)
        inputs = centering.wcss
        grid = centering.grid(product.parameters.grid)
        output = in_second_process(partial(output_wcs, **grid), inputs, metas, shapes)
        product.result.star = centering.in_image(output)
        maps: dict[str, Any] = {}
        for wcs, shape in zip(inputs, shapes, strict=True):
            if wcs.key not in maps:
                maps[wcs.key] = product.backends[0].upload(pixel_map(wcs, output, shape))
        several = len(product.inputs.truncations) > 1
        layout = Layout(output, [maps[w.key] for w in inputs], {} if several else None)
        report_outside(science, images, layout.maps, output.shape)
    return layout


def measure_contrast(product: ProductContext) -> None:
    """Measure how faint a source could be and be detected, and write curve and map."""
    from gpucoron.io.contrast import write_contrast, write_contrast_table
    from gpucoron.pipeline.contrast import contrast_of, contrast_paths, curve_and_map

    run, result = product.run, product.result
    if not product.record.images or result.star is None:
        log.warning(
            "%s: no contrast: %s",
            result.name,
            "the star's position is not known" if product.record.images else "nothing is combined",
        )
        return
    with run.timed("contrast"):
        contrast = result.measured_contrast = contrast_of(result, run.options.parameters)
        if run.options.save:
            table, planes, keywords = curve_and_map(contrast)
            curve, image = contrast_paths(product.names.path(result.name, "i2d"))
            run.writer.write(curve, write_contrast_table, table)
            run.writer.write(image, write_contrast, table, planes, keywords, product.record.wcs)


def combine(
    product: ProductContext, layout: Layout, images: list[IntegrationStack], truncate: int
) -> None:
    """Resample the subtracted images of all science exposures onto one grid, and write it."""
    from gpucoron.io.products import write_i2d
    from gpucoron.steps.resample import resample

    science, parameters, output = product.inputs.science, product.parameters.resample, layout.wcs
    times: list[Any] = [e.meta.weighing_time for e in science]
    result = product.result
    with product.step("resample"):
        image = resample(
            images,
            layout.maps,
            output.shape,
            pixel_scale_ratio=output.pixel_scale_ratio,
            exposure_times=times,
            pixfrac=parameters.pixfrac,
            kernel=parameters.kernel,
            fillval=parameters.fillval,
            weight_type=parameters.weight_type,
            weight_without_read_noise=product.weights.without_read_noise,
            err_from="var" if product.parameters.like_jwst else "auto",
            center=None if result.star is None else result.star.pixel,
            known=layout.overlaps,
        )
    check_filled(result.name, image)
    product.record.note_combined(truncate, image, output)
    product.run.progress("resample", 1, 1, result.name)
    write = partial(write_i2d, star=result.star)
    kept = product.output("i2d", result.name, image, write, science, output, truncate=truncate)
    if kept is not None:
        result.i2ds[truncate] = kept
