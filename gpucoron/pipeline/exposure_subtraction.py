"""align_refs and klip of the exposures of one product: prepare references, subtract, keep."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.errors import InputError
from gpucoron.pipeline.flagging import report_truncations
from gpucoron.pipeline.product_context import ProductContext
from gpucoron.pipeline.resume import can_read_back

if TYPE_CHECKING:
    from gpucoron.core.stack import IntegrationStack
    from gpucoron.io.exposures import Exposure
    from gpucoron.ops.zones import Zones
    from gpucoron.pipeline.reference_images import ReferenceImages
    from gpucoron.pipeline.responses import References
    from gpucoron.pipeline.subtraction import DeviceWork
    from gpucoron.steps.bad_pixels import BadPixelFiller

__all__ = ["bad_pixel_filler", "prepare_references", "save_subtracted", "subtract_psf", "zones_of"]

log = logging.getLogger("gpucoron")


def prepare_references(
    product: ProductContext,
    stacked: IntegrationStack | None,
    flagged: Iterable[IntegrationStack] = (),
) -> ReferenceImages | None:
    """Fill and transform the references on every device; None where nothing is subtracted.

    `flagged` are the science exposures, where they are references of each other.
    """
    from gpucoron.pipeline.reference_images import ReferenceImages
    from gpucoron.steps.bad_pixels import ReferenceLibrary
    from gpucoron.steps.stack_refs import stack_refs

    science = product.inputs.science
    if product.parameters.klip.skip:
        return None
    if product.inputs.uses_rolls:
        stacks = [stacked] if stacked is not None else []
        stacked = stack_refs([*stacks, *flagged], keep_unusable=product.parameters.like_jwst)
    if stacked is None:
        raise InputError(f"{product.inputs.name}: no references, expected psf members or rolls")
    images = ReferenceImages(product.inputs, stacked.sources, len(stacked))
    if product.inputs.uses_rolls:
        product.record.sources = stacked.sources
        product.record.own_sources = {e.root: images.sources(e) for e in science}
        report_truncations(product, min(len(images.planes(e)) for e in science))
    if all(can_read_back(product, e) for e in science):
        return None
    product.run.wait_for_device()
    options, parameters = product.run.options, product.parameters.align_refs
    filling = bad_pixel_filler(product)
    with_err = not parameters.skip and "psfalign" in options.save | options.keep
    for place in product.backends:
        with product.step("align_refs", place):
            own = product.on(place, stacked)
            images.libraries.append(ReferenceLibrary(own, filling, with_err, product.mask))
    return images


def bad_pixel_filler(product: ProductContext) -> BadPixelFiller:
    """Return what fills bad pixels before images are aligned."""
    from gpucoron.steps.bad_pixels import BadPixelFiller

    parameters = product.parameters.align_refs
    return BadPixelFiller(
        parameters.median_box_length,
        parameters.bad_bits,
        (product.inputs.science[0].meta.instrument or "").upper() == "MIRI",
        product.parameters.preset,
    )


def subtract_psf(
    product: ProductContext,
    exposure: Exposure,
    science: IntegrationStack,
    library: ReferenceImages | None,
) -> dict[int, IntegrationStack]:
    """Subtract the PSF from a science exposure; return its images for each truncation."""
    from gpucoron.pipeline.exclusion import warn_of_moves
    from gpucoron.pipeline.fit_warnings import report_fits, report_positions
    from gpucoron.pipeline.reference_images import report_ranking, to_be_ranked
    from gpucoron.pipeline.subtraction import Subtraction
    from gpucoron.steps.align_refs import AlignedReferences

    run, result, root = product.run, product.result, exposure.root
    skip = product.parameters.align_refs.skip
    shares = _shares(product, exposure, science, library)
    if product.parameters.klip.zoned and not skip:  # zones are about the star
        _measure_star(product, exposure, shares[0])
    with ExitStack() as unless_complete:
        writer = unless_complete.enter_context(_psfalign(product, exposure, shares[0].alignment))
        keep = "psfalign" in run.options.keep and not skip
        zones = zones_of(product, exposure)
        allowed = _allowed_in(product, exposure, zones)
        ranked = to_be_ranked(product, exposure)
        options = zones, allowed, ranked, _responding(product, exposure)
        work = Subtraction(run, root, shares, product.inputs.truncations, keep, *options)
        subtracted = work.run(writer)
        report_ranking(product, exposure, work.ranking)
        if product.inputs.uses_rolls:
            sources = product.record.sources_of(root)
            subtracted = {k: stack.with_sources(sources) for k, stack in subtracted.items()}
        if work.response is not None:
            product.responses[root] = work.response
        if product.inputs.disk_model is not None:
            put_back = partial(product.inputs.disk_model.put_back, exposure=exposure)
            subtracted = {k: put_back(stack) for k, stack in subtracted.items()}
        product.record.exposures[root].eigenvalues = work.spectra
        fits, positions, alignment = work.table, None, shares[0].alignment
        if not skip:
            result.fits[root], findings = fits, _ = alignment.judge(work.table)
            sources = product.record.sources_of(root)
            if work.joint:
                positions = result.positions[root] = alignment.positions.table(root, sources)
                report_positions(positions, findings, alignment.positions.n_pairs)
            else:
                report_fits(root, fits, findings, sources)
            if not product.parameters.klip.zoned:
                _measure_star(product, exposure, shares[0])
            if shares[0].weight is not None:
                warn_of_moves(exposure, alignment.largest_move(fits))
        if work.kept:
            images, errors, flags = (
                np.stack(a) if work.each else a[0] for a in zip(*work.kept, strict=True)
            )
            result.psfalign[root] = AlignedReferences(images, errors, fits, flags)
        if writer is not None:
            run.writer.close(writer, (fits, positions), partial(product.stars.find, exposure))
            unless_complete.pop_all()
    return subtracted


def _responding(product: ProductContext, exposure: Exposure) -> References | None:
    """Return what the response to a source needs; None where it is not to be kept."""
    from gpucoron.pipeline.responses import References

    if not product.run.options.keeps_forward_model:
        return None
    rolls = product.inputs.chosen.rolls.get(exposure.root, ())
    return References(product.record.sources_of(exposure.root), [e.root for e in rolls])


def zones_of(product: ProductContext, exposure: Exposure) -> Zones | None:
    """Return the zones of KLIP in a science exposure, once its star is known; None without any."""
    from gpucoron.pipeline.zones import find_zones

    if not product.parameters.klip.zoned:
        return None
    with product.run.timed("star"):
        return find_zones(product.parameters, exposure, product.stars.find(exposure).mean)


def _allowed_in(product: ProductContext, exposure: Exposure, zones: Zones | None) -> Any:
    """Return which references serve in each zone, (nzones, n, nref); None where all do."""
    from gpucoron.pipeline.movement import far_enough_in_zones

    if zones is None or not product.inputs.uses_rolls:
        return None
    return far_enough_in_zones(
        product.parameters.klip.movement,
        product.inputs.chosen,
        exposure,
        product.record.sources_of(exposure.root),
        zones.radii,
    )


def _measure_star(product: ProductContext, exposure: Exposure, share: DeviceWork) -> None:
    """Measure the star in a science exposure, in the background, from its alignment."""
    alignment, fits = share.alignment, product.result.fits
    if exposure.root not in fits:
        with product.step("align_refs", share.place):
            every = np.concatenate([alignment.fit(i) for i in alignment.integrations])
            fits[exposure.root] = alignment.judge(every)[0]
    with product.run.timed("star"):
        sources = product.record.sources_of(exposure.root)
        product.stars.measure(exposure, alignment, share.weight, sources)


def _shares(product: ProductContext, exposure, science, library) -> list[DeviceWork]:
    """Plan the alignment of a science exposure on every device."""
    from gpucoron.pipeline.expected_star import pointing
    from gpucoron.pipeline.subtraction import DeviceWork
    from gpucoron.steps.align_refs import Alignment

    shares = []
    mask, weight = product.weights_of(exposure)
    libraries = [] if library is None else library.of(exposure)
    sources = product.record.sources_of(exposure.root)
    references = product.inputs.references_of(exposure)
    for place, prepared in zip(product.backends, libraries, strict=True):
        with product.step("align_refs", place):
            own = product.on(place, science)
            align = product.parameters.align_refs.align
            try:
                alignment = Alignment(
                    own,
                    prepared,
                    mask,
                    batch=product.batch,
                    align=align,
                    pointing=partial(pointing, exposure, references, sources),
                )
            except InputError as problem:
                raise InputError(f"{exposure.path.name}: {problem}") from problem
        shares.append(DeviceWork(place, own, alignment, weight))
    empty = [i + 1 for i in range(len(science)) if not shares[0].alignment.has_pixels(i)]
    if empty:
        log.warning(
            "%s: no usable pixel in %s %s, which will be NaN",
            exposure.root,
            "integration" if len(empty) == 1 else "integrations",
            ", ".join(map(str, empty)),
        )
    return shares


def _psfalign(product: ProductContext, exposure, alignment):
    """Open psfalign for writing, where it is to be saved and is not complete already."""
    from gpucoron.io.products import PsfalignWriter

    run = product.run
    if "psfalign" not in run.options.save or product.parameters.align_refs.skip:
        return nullcontext()
    path = product.names.path(exposure.root, "psfalign")
    if run.record.has(path):
        run.writer.files.append(path)
        return nullcontext()
    shape = alignment.shape
    if alignment.align != "first":
        shape = (len(alignment.science), *shape)
    references, overwrite = product.inputs.references_of(exposure), run.options.overwrite
    return PsfalignWriter(path, references, shape, product.provenance, overwrite=overwrite)


def save_subtracted(
    product: ProductContext,
    exposure: Exposure,
    science: IntegrationStack,
    images: dict[int, IntegrationStack],
) -> dict[int, IntegrationStack]:
    """Write a science exposure's subtracted images; return what resample takes of them."""
    from gpucoron.io.products import write_psfsub

    product.record.note_subtracted(exposure.root, science, images)
    mask, _ = product.weights_of(exposure)
    product.last_check.note_subtracted(exposure.root, mask, science, images)
    if not images:
        log.info("%s: klip skipped, so no PSF is subtracted", exposure.root)
        return {product.inputs.truncations[0]: science}
    positions = product.result.positions.get(exposure.root)

    def write(*arguments: Any, **options: Any) -> dict[str, str]:
        """Write it in the background, where the star's position is waited for."""
        star = product.stars.find(exposure)
        return write_psfsub(*arguments, star=star, positions=positions, **options)

    for truncate, stack in images.items():
        kept = product.output("psfsub", exposure.root, stack, write, exposure, truncate=truncate)
        if kept is not None:
            product.result.psfsub[exposure.root + product.names.tag(truncate)] = kept
    # resample propagates the input's errors, and what the subtraction adds to them
    return {k: stack.replace(err=science.err) for k, stack in images.items()}
