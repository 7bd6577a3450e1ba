"""Run one of the five steps on files, as jwst's ``strun`` does."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.logs import Progress, no_progress
from gpucoron.core.stack import PlaneSource
from gpucoron.errors import ExposureError, UsageError
from gpucoron.pipeline import combination, exposure_subtraction, flagging
from gpucoron.pipeline.movement import far_enough_in_zones
from gpucoron.pipeline.planning import Plan, check_memory, make_plan
from gpucoron.pipeline.result import ProductResult, Result
from gpucoron.pipeline.resume import read_star_back
from gpucoron.pipeline.run import Run
from gpucoron.pipeline.run_options import RunOptions
from gpucoron.pipeline.star_model import load_star_model
from gpucoron.pipeline.step_inputs import MAKES, StepFiles, StepInputs
from gpucoron.pipeline.step_references import StepReferences, not_excluded, uses_psfstack
from gpucoron.pipeline.stored_alignment import StoredAlignment
from gpucoron.pipeline.subtraction import DeviceWork, Subtraction
from gpucoron.pipeline.zones import check_zones

if TYPE_CHECKING:
    from gpucoron.core.stack import IntegrationStack
    from gpucoron.io.exposures import Exposure
    from gpucoron.io.step_products import PsfalignFile
    from gpucoron.pipeline.inputs import ProductInputs
    from gpucoron.pipeline.product_context import ProductContext

__all__ = ["STEPS", "run_step"]

log = logging.getLogger("gpucoron")

_ONE_OF_SEVERAL = re.compile(r"_kl(\d{3})$")  # the root of a psfsub of one number of KL modes
_TRUNCATE = re.compile(r"parameter klip\.truncate = (\d+)")  # in HISTORY


def run_step(
    step: str,
    files: Sequence[str | Path],
    options: RunOptions,
    *,
    association: str | Path | None = None,
    name: str | None = None,
    progress: Progress = no_progress,
) -> Result:
    """Run one step on files, and write its product.

    Parameters
    ----------
    step : str
        One of `STEPS`.
    files : sequence of path
        What the step takes, in any order; their headers say which is what. References are stacked
        in the order given.
    options : RunOptions
        `asn`, `save` and `keep` are not used.
    association : path, optional
        Gives the product's name and the identifier in names, as in a run; its members need not
        exist. Default: products are named after the files.
    name : str, optional
        Name of psfstack or i2d.
    progress : callable
        As for `gpucoron.run`.

    Raises
    ------
    UsageError
        A step that does not exist, or files that it does not take or lacks.
    GpucoronError
        As `gpucoron.run`.
    """
    if step not in STEPS:
        raise UsageError(f"there is no step {step!r}; expected one of {', '.join(STEPS)}")
    if getattr(options.parameters, step).skip:
        raise UsageError(f"{step}.skip is true, so that there is nothing to do")
    # only stack_refs looks at whether another step is skipped: klip, for a warning about it
    skipped = {"stack_refs": ("klip",)}.get(step, ())
    every = {s: replace(getattr(options.parameters, s), skip=s in skipped) for s in STEPS}
    options = replace(
        options,
        parameters=replace(options.parameters, **every),
        save=frozenset({MAKES[step]}),
        keep=frozenset(),
    )
    with Run.begin(options, progress) as run:
        names = None
        if association is not None:
            from gpucoron.io.association import read_association

            names = read_association(association, check_files=False, need_references=False)
        products = STEPS[step](StepInputs(run, step, names, name), StepFiles(step, files))
    return run.result(products)


# ---- the steps


def _outlier_detection(inputs: StepInputs, files: StepFiles) -> list[ProductResult]:
    """Flag the outliers of each exposure: crfints."""
    paths, run = files.some("exposure"), inputs.run
    owns = [inputs.read([path]) for path in paths]
    run.settle_device(())
    products = [inputs.context(own) for own in owns]
    planned = [p.names.path(p.inputs.science[0].root, "crfints") for p in products]
    inputs.check_outputs(planned, paths)
    with products[0].backends[0].activate():
        for _ in flagging.flag_together([(p, p.inputs.science[0]) for p in products]):
            pass  # written
    return [product.result for product in products]


def _stack_refs(inputs: StepInputs, files: StepFiles) -> list[ProductResult]:
    """Put the integrations of reference exposures into one stack: psfstack."""
    paths = not_excluded(inputs.run.parameters, files.some("exposure"))
    own = inputs.read([], paths)
    inputs.run.settle_device(())
    product = inputs.context(own)
    inputs.check_outputs([product.names.path(own.name, "psfstack")], paths)
    without = {"var_poisson": None, "var_rnoise": None, "var_flat": None}
    with product.backends[0].activate():
        stacks = [_next_stack(product, exposure).replace(**without) for exposure in own.references]
        flagging.stack_references(product, stacks)
    return [product.result]


def _align_refs(inputs: StepInputs, files: StepFiles) -> list[ProductResult]:
    """Align the stacked references to each science exposure: psfalign."""
    paths, run = files.some("exposure"), inputs.run
    stack_paths = _psfstack_of(run, files, needed=run.parameters.klip.mode in ("auto", "rdi"))
    own = inputs.read(paths, stack_paths)
    model = load_star_model(run.parameters, own.science, run.options.checksums)
    references = StepReferences(run.parameters, replace(own, star_model=model))
    own = references.inputs
    mask, plan = inputs.psfmask(own), _plan(run.options, own, run.threads)
    run.settle_device([plan])
    product = inputs.context(own, plan, mask)
    planned = [product.names.path(exposure.root, "psfalign") for exposure in own.science]
    inputs.check_outputs(planned, [*paths, *stack_paths])
    with product.backends[0].activate():
        library, science = _prepared(product, references)
        for exposure, stack in zip(own.science, science, strict=True):
            exposure_subtraction.subtract_psf(product, exposure, stack, library)
    product.record.to_host()
    return [product.result]


def _klip(inputs: StepInputs, files: StepFiles) -> list[ProductResult]:
    """Subtract the PSF from science exposures by the references aligned to each: psfsub."""
    paths, run = files.some("exposure"), inputs.run
    aligned_paths, stack_paths = files.some("psfalign"), _psfstack_of(run, files)
    known = stack_paths or run.parameters.klip.mode in ("adi", "roll")
    if not known and (
        run.parameters.klip.exclude_reference or run.parameters.klip.mode == "adi+rdi"
    ):
        raise UsageError(
            "klip: klip.exclude_reference and klip.mode=adi+rdi need psfstack, which says where "
            "the references are from"
        )
    own = inputs.read(paths, stack_paths)
    references, aligned = None, _pairs(own.science, aligned_paths)
    if known:
        references = StepReferences(run.parameters, own)
        own = references.inputs
        aligned = [references.select(f, e) for f, e in zip(aligned, own.science, strict=True)]
    own = replace(own, truncations=_truncations(run, own, references, aligned))
    check_zones(run.parameters, own.science, own.truncations)
    mask = inputs.psfmask(own) if references else None
    run.settle_device(())
    product = inputs.context(own, psfmask=mask)
    planned = [path for e in own.science for path in product.names.paths(e.root, "psfsub")]
    inputs.check_outputs(planned, [*paths, *aligned_paths, *stack_paths])
    place = product.backends[0]
    with place.activate():
        fill, area, stacks = _filler(product, references)
        for exposure, file, science in zip(own.science, aligned, stacks, strict=True):
            sources = references.of(exposure) if references else ()
            with product.step("klip"):
                filling = exposure_subtraction.bad_pixel_filler(product)
                flags = filling.flags(science)
                images, errors = fill(science)
                alignment: Any = StoredAlignment(
                    file, science, images, errors, flags, area, sources
                )
            read_star_back(product, exposure, file.path)
            work = DeviceWork(place, science, alignment, product.weights_of(exposure)[1])
            zones = exposure_subtraction.zones_of(product, exposure)
            allowed = None
            if zones is not None and own.uses_rolls:
                allowed = far_enough_in_zones(
                    run.parameters.klip.movement, own.chosen, exposure, sources, zones.radii
                )
            chosen = own.truncations, False, zones, allowed
            images = Subtraction(run, exposure.root, [work], *chosen).run(None)
            if own.uses_rolls:
                images = {k: image.with_sources(sources) for k, image in images.items()}
            exposure_subtraction.save_subtracted(product, exposure, science, images)
    product.record.to_host()
    product.check()
    return [product.result]


def _resample(inputs: StepInputs, files: StepFiles) -> list[ProductResult]:
    """Combine subtracted exposures on one grid: i2d."""
    paths = [*files.of("psfsub"), *files.of("exposure")]
    if unsubtracted := files.of("exposure"):
        text = "%s: no PSF is subtracted (S_KLIP is not COMPLETE)"
        log.warning(text, ", ".join(path.name for path in unsubtracted))
    own = inputs.read(paths)
    modes = {found[1] if (found := _ONE_OF_SEVERAL.search(e.root)) else "" for e in own.science}
    if len(modes) > 1:
        raise UsageError(
            f"resample: the files are of several numbers of KL modes ({', '.join(sorted(modes))}), "
            "expected those of one"
        )
    tag = modes.pop()
    own = replace(own, name=f"{own.name}_kl{tag}" if tag else own.name)
    inputs.run.settle_device(())
    product = inputs.context(own)
    inputs.check_outputs([product.names.path(own.name, "i2d")], paths)
    with product.backends[0].activate():
        images = [_next_subtracted(product, exposure) for exposure in own.science]
        for exposure in own.science:
            read_star_back(product, exposure, exposure.path)
        layout = combination.lay_out(product, images)
        if layout is not None:
            combination.combine(product, layout, images, int(tag or _truncate_of(own.science[0])))
    product.record.to_host()
    return [product.result]


#: What runs each step.
STEPS: dict[str, Callable[[StepInputs, StepFiles], list[ProductResult]]] = {
    "outlier_detection": _outlier_detection,
    "stack_refs": _stack_refs,
    "align_refs": _align_refs,
    "klip": _klip,
    "resample": _resample,
}


# ---- what they share


def _next_stack(product: ProductContext, exposure: Exposure) -> IntegrationStack:
    """Return the images of the exposure that is read next."""
    with product.run.timed("read"):
        stack = next(product.stacks)
    sources = tuple(PlaneSource(exposure.root, i) for i in range(1, len(stack) + 1))
    return stack.replace(sources=sources)


def _psfstack_of(run: Run, files: StepFiles, needed: bool = False) -> list[Path]:
    """Return psfstack, if it is given and used."""
    if not uses_psfstack(run.parameters, files.of("psfstack")):
        return []
    return [files.one("psfstack")] if needed or files.of("psfstack") else []


def _truncations(
    run: Run,
    own: ProductInputs,
    references: StepReferences | None,
    aligned: Sequence[PsfalignFile],
) -> tuple[int, ...]:
    """Return the numbers of KL modes of klip alone."""
    klip = replace(run.parameters.klip, mode=own.mode)
    counts = []
    for exposure, file in zip(own.science, aligned, strict=True):
        sources = references.of(exposure) if references else ()
        exposures = [s.exposure for s in sources] or range(file.shape[0])
        counts.append(list(Counter(exposures).values()))
    return klip.truncations(*counts)


def _prepared(
    product: ProductContext, references: StepReferences
) -> tuple[Any, Iterable[IntegrationStack]]:
    """Return the references, prepared as in a run, and the science exposures."""
    stacked = _next_references(product, references) if product.inputs.references else None
    science: Any = (_next_stack(product, exposure) for exposure in product.inputs.science)
    if not product.inputs.uses_rolls:
        return exposure_subtraction.prepare_references(product, stacked), science
    science = list(science)
    return exposure_subtraction.prepare_references(product, stacked, science), science


def _next_references(product: ProductContext, references: StepReferences) -> IntegrationStack:
    """Return psfstack, which is read next, with the sources of its images."""
    (exposure,) = product.inputs.references
    sources = references.stacked
    if not sources and not product.parameters.like_jwst:
        log.warning(
            "%s: has no SOURCES, which exposure each image is from; every image counts as an "
            "exposure of its own, whose bad pixels are filled from its neighbours only",
            exposure.path.name,
        )
    stack = _next_stack(product, exposure).replace(sources=sources)
    if not references.all_used:
        stack = stack.planes(references.planes)
    product.record.sources = stack.sources
    return stack


def _next_subtracted(product: ProductContext, exposure: Exposure) -> IntegrationStack:
    """Return the images of psfsub, which is read next, with what it says of their noise.

    Without VAR_* `err` is, as in a run, that of the exposure before the subtraction.
    """
    from gpucoron.io.fits.reading import open_fits
    from gpucoron.io.klip_noise import read_klip_noise

    stack = _next_stack(product, exposure)
    noise = read_klip_noise(open_fits(exposure.path, ExposureError))
    if not noise:
        return stack
    place, xp = product.backends[0], cuda.array_namespace(stack.data)
    ref, speckle = place.upload((noise.pop("var_ref"), noise.pop("var_speckle")))
    own = xp.sqrt(xp.maximum(stack.err**2 - ref - speckle, 0))
    return stack.replace(err=own, var_ref=ref, var_speckle=speckle, **noise)


def _filler(
    product: ProductContext, references: StepReferences | None
) -> tuple[Callable[[IntegrationStack], Any], Any, Iterable[IntegrationStack]]:
    """Return what fills a science exposure and gives its errors: as in a run, given references.

    And the pixels without data in these, None without any; and the science exposures.
    """
    if references is not None:
        images, science = _prepared(product, references)
        return images.libraries[0].fill_science, images.libraries[0].area, science
    filling = exposure_subtraction.bad_pixel_filler(product)
    log.info("klip: bad pixels are filled from the science exposure alone: no psfstack is given")

    def fill(science: IntegrationStack) -> tuple[Any, Any]:
        images, errors, _ = filling.fill_stack(science, np.zeros(len(science), dtype=int))
        return images, errors[0]

    return fill, None, (_next_stack(product, exposure) for exposure in product.inputs.science)


def _pairs(science: Sequence[Exposure], paths: Sequence[Path]) -> list[PsfalignFile]:
    """Return the psfalign of each science exposure, by their names if there are several."""
    from gpucoron.io.names import exposure_root
    from gpucoron.io.step_products import PsfalignFile

    if len(science) == len(paths) == 1:
        return [PsfalignFile(paths[0], science[0].shape)]
    by_root = {exposure_root(path): path for path in paths}
    chosen = []
    for exposure in science:
        path = by_root.pop(exposure_root(exposure.path), None)
        if path is None:
            raise UsageError(
                f"klip: {exposure.path.name} has no psfalign, expected "
                f"{exposure_root(exposure.path)}_psfalign.fits among the files"
            )
        chosen.append(path)
    if by_root:
        left = ", ".join(path.name for path in by_root.values())
        raise UsageError(f"klip: {left}: of no science exposure that is given, expected one")
    return [PsfalignFile(path, e.shape) for path, e in zip(chosen, science, strict=True)]


def _truncate_of(exposure: Exposure) -> int:
    """Return the number of KL modes that were subtracted from an exposure, by its header; or 0."""
    used = exposure.primary_header.get("KLTRUNC")
    if isinstance(used, int):
        return used
    lines = "\n".join(map(str, exposure.primary_header.get("HISTORY", ())))
    found = _TRUNCATE.findall(lines)
    return int(found[-1]) if found else 0


def _plan(options: RunOptions, own: ProductInputs, threads: int) -> Plan:
    """Estimate what align_refs takes."""
    plan = make_plan(
        own.name,
        [exposure.shape for exposure in own.science],
        [exposure.shape for exposure in own.references],
        options.parameters,
        options.save,
        budget=options.budget(),
        threads=threads,
    )
    check_memory(options, [plan])
    return plan
