"""One product of an association: the five steps of calwebb_coron3."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpucoron.errors import InputError, plural
from gpucoron.pipeline.coverage import check_filled, report_outside
from gpucoron.pipeline.forward_model import make_forward_model
from gpucoron.pipeline.product_context import ProductContext
from gpucoron.pipeline.resume import can_read_back, read_back
from gpucoron.pipeline.weights import warn_of_outliers

if TYPE_CHECKING:
    from gpucoron.core.stack import IntegrationStack
    from gpucoron.io.exposures import Exposure
    from gpucoron.io.wcs import OutputWcs
    from gpucoron.ops.zones import Zones
    from gpucoron.pipeline.inputs import ProductInputs, Psfmask
    from gpucoron.pipeline.planning import Plan
    from gpucoron.pipeline.references import ReferenceImages
    from gpucoron.pipeline.result import ProductResult
    from gpucoron.pipeline.run import Run
    from gpucoron.pipeline.subtraction import DeviceWork
    from gpucoron.steps.bad_pixels import BadPixelFiller

log = logging.getLogger("gpucoron")


def run_product(run: Run, inputs: ProductInputs, plan: Plan, psfmask: Psfmask) -> ProductResult:
    """Run the five steps on one product of an association."""
    product = ProductContext(run, inputs, plan, psfmask)
    with product.backends[0].activate(), product.stars:
        # outlier_detection: flag pixels that deviate from their exposure's median
        references = []
        for exposure in inputs.references:
            references.append(flag_outliers(product, exposure))
            run.progress(
                "outlier_detection", len(references), len(inputs.references), exposure.root
            )

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
        product.record.to_host()
        if run.options.contrast:
            measure_contrast(product)
        product.check()
        run.record.note_stars(inputs.name, product.result)
    return product.result


# ---- outlier_detection and stack_refs


def flag_outliers(product: ProductContext, exposure: Exposure) -> IntegrationStack:
    """Flag the outliers of the exposure that is read next, and write it."""
    from gpucoron.io.products import write_crfints, write_median
    from gpucoron.optics.telescope import cutoff_of
    from gpucoron.steps.outlier_detection import outlier_detection

    parameters = product.parameters.outlier_detection
    with product.run.timed("read"):
        stack = next(product.stacks)
    if not parameters.skip:
        with product.step("outlier_detection"):
            found = outlier_detection(
                stack,
                snr=parameters.threshold,
                maskpt=parameters.maskpt,
                good_bits=parameters.good_bits,
                preset=product.parameters.preset,
                cutoff=cutoff_of(exposure.meta),
            )
        log.debug("%s: %d outliers", exposure.root, int(found.flagged.sum()))
        warn_of_outliers(exposure.path.name, found)
        root, stack = exposure.root, found.stack
        product.record.note_outliers(root, found)
        for kind, value, writer in (
            ("crfints", stack, write_crfints),
            ("median", found.median, write_median),
        ):
            kept = product.output(kind, root, value, writer, exposure)
            if kept is not None:
                getattr(product.result, kind)[root] = kept
    if exposure.exptype == "science":
        return stack
    return stack.replace(var_poisson=None, var_rnoise=None, var_flat=None)


def flag_science(product: ProductContext) -> Iterable[IntegrationStack]:
    """Flag the outliers of the science exposures, of each when its turn comes.

    Where they are references of each other, of all at once.
    """
    stacks = (flag_outliers(product, exposure) for exposure in product.inputs.science)
    return list(stacks) if product.inputs.uses_rolls else stacks


def stack_references(
    product: ProductContext, references: list[IntegrationStack]
) -> IntegrationStack | None:
    """Put the integrations of all psf members into one stack, and write it; None without any."""
    from gpucoron.io.products import write_psfstack
    from gpucoron.steps.stack_refs import stack_refs

    if not references:
        if "psfstack" in product.run.options.save:
            log.info("%s: no psf members are used, so psfstack is not written", product.inputs.name)
        return None
    with product.step("stack_refs"):
        stacked = stack_refs(references, keep_unusable=product.parameters.like_jwst)
    if not (product.parameters.klip.skip or product.inputs.uses_rolls):
        _report_truncations(product, len(stacked))
    product.record.sources = stacked.sources
    product.result.psfstack = product.output(
        "psfstack", product.result.name, stacked, write_psfstack, product.inputs.references
    )
    return stacked


def _report_truncations(product: ProductContext, n: int) -> None:
    """Log the numbers of KL modes that are used with `n` reference images."""
    if product.inputs.mode == "roll":
        return
    used, images = product.inputs.truncations, plural(n, "reference image")
    if not used:  # align_refs alone
        return
    log.info("klip: %s of the KL modes of %s", ", ".join(map(str, used)), images)
    wanted = np.atleast_1d(product.parameters.klip.truncate or 0)
    if wanted.max() > n:
        log.warning(
            "klip.truncate is %d, and there %s %s: all of their KL modes are used%s",
            wanted.max(),
            "is" if n == 1 else "are",
            images,
            ", and psfsub's ERR (what the basis leaves of the references) is 0"
            if product.parameters.like_jwst
            else "",
        )


# ---- align_refs and klip


def prepare_references(
    product: ProductContext,
    stacked: IntegrationStack | None,
    flagged: Iterable[IntegrationStack] = (),
) -> ReferenceImages | None:
    """Fill and transform the references on every device; None where nothing is subtracted.

    `flagged` are the science exposures, where they are references of each other.
    """
    from gpucoron.pipeline.references import ReferenceImages
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
        _report_truncations(product, min(len(images.planes(e)) for e in science))
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
    from gpucoron.pipeline.references import report_ranking, to_be_ranked
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
        options = zones, allowed, ranked
        work = Subtraction(run, root, shares, product.inputs.truncations, keep, *options)
        subtracted = work.run(writer)
        report_ranking(product, exposure, work.ranking)
        if product.inputs.uses_rolls:
            sources = product.record.sources_of(root)
            subtracted = {k: stack.with_sources(sources) for k, stack in subtracted.items()}
        elif work.response is not None:
            product.responses[root] = work.response
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


def zones_of(product: ProductContext, exposure: Exposure) -> Zones | None:
    """Return the zones of KLIP in a science exposure, once its star is known; None without any."""
    from gpucoron.pipeline.zones import find_zones

    if not product.parameters.klip.zoned:
        return None
    with product.run.timed("star"):
        return find_zones(product.parameters, exposure, product.stars.find(exposure).mean)


def _allowed_in(product: ProductContext, exposure: Exposure, zones: Zones | None) -> Any:
    """Return which references serve in each zone, (nzones, n, nref); None where all do."""
    from gpucoron.pipeline.references import far_enough_in_zones

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
            product.result.psfsub[exposure.root, truncate] = kept
    # resample propagates the input's errors, and what the subtraction adds to them
    return {k: stack.replace(err=science.err) for k, stack in images.items()}


# ---- resample


class Layout(NamedTuple):
    """The grid of the combined image, and the exposures' pixel maps to it, (ny, nx, 2)."""

    wcs: OutputWcs
    maps: list[Any]


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
        layout = Layout(output, [maps[w.key] for w in inputs])
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
        )
    check_filled(result.name, image)
    product.record.note_combined(truncate, image, output)
    product.run.progress("resample", 1, 1, result.name)
    write = partial(write_i2d, star=result.star)
    kept = product.output("i2d", result.name, image, write, science, output, truncate=truncate)
    if kept is not None:
        result.i2ds[truncate] = kept
