"""outlier_detection and stack_refs of one product."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpucoron.errors import plural
from gpucoron.pipeline.product_context import ProductContext
from gpucoron.pipeline.weights import warn_of_outliers
from gpucoron.steps.visit_outliers import flag_by_visit

if TYPE_CHECKING:
    from gpucoron.core.stack import IntegrationStack
    from gpucoron.io.exposures import Exposure
    from gpucoron.steps.outlier_detection import OutlierResult

__all__ = [
    "flag_outliers",
    "flag_references",
    "flag_science",
    "flag_together",
    "report_truncations",
    "stack_references",
]

log = logging.getLogger("gpucoron")


def flag_outliers(product: ProductContext, exposure: Exposure) -> IntegrationStack:
    """Flag the outliers of the exposure that is read next, and write it."""
    stack, found = _detect(product, exposure)
    return stack if found is None else _save(product, exposure, found)


def flag_references(product: ProductContext) -> list[IntegrationStack]:
    """Flag the outliers of all psf members, and write them."""
    members = product.inputs.references
    stacks = dict(flag_together([(product, exposure) for exposure in members]))
    return [stacks[exposure.path] for exposure in members]


def flag_together(
    exposures: Sequence[tuple[ProductContext, Exposure]],
) -> Iterator[tuple[Path, IntegrationStack]]:
    """Flag the outliers of exposures, each of a product that reads it next; yield what is written.

    Exposures of a reference star of one integration are compared with the others of their visit
    before they are written.
    """
    visits: dict[str, list[tuple[ProductContext, Exposure, OutlierResult]]] = {}
    for done, (product, exposure) in enumerate(exposures, 1):
        stack, found = _detect(product, exposure)
        if found is None:
            yield exposure.path, stack
        elif len(stack) == 1 and exposure.shows_reference and not product.parameters.like_jwst:
            visits.setdefault(exposure.visit, []).append((product, exposure, found))
        else:
            yield exposure.path, _save(product, exposure, found)
        product.run.progress("outlier_detection", done, len(exposures), exposure.root)
    for visit in visits.values():
        product = visit[0][0]
        with product.step("outlier_detection"):
            compared = flag_by_visit(
                [found for *_, found in visit], product.parameters.outlier_detection.threshold
            )
        for (own, exposure, _), found in zip(visit, compared, strict=True):
            yield exposure.path, _save(own, exposure, found)


def _detect(
    product: ProductContext, exposure: Exposure
) -> tuple[IntegrationStack, OutlierResult | None]:
    """Read the next exposure and flag its outliers; None where the step is skipped."""
    from gpucoron.optics.telescope import cutoff_of
    from gpucoron.steps.outlier_detection import outlier_detection

    parameters = product.parameters.outlier_detection
    with product.run.timed("read"):
        stack = next(product.stacks)
    if parameters.skip:
        return _needed(exposure, stack), None
    with product.step("outlier_detection"):
        found = outlier_detection(
            stack,
            snr=parameters.threshold,
            maskpt=parameters.maskpt,
            good_bits=parameters.good_bits,
            preset=product.parameters.preset,
            cutoff=cutoff_of(exposure.meta),
        )
    return found.stack, found


def _save(product: ProductContext, exposure: Exposure, found: OutlierResult) -> IntegrationStack:
    """Record and write the outliers of an exposure; return what the next steps need of it."""
    from gpucoron.io.products import write_crfints, write_median

    root, stack = exposure.root, found.stack
    log.debug("%s: %d outliers", root, int(found.flagged.sum()))
    warn_of_outliers(exposure.path.name, found)
    product.record.note_outliers(root, found)
    for kind, value, writer in (
        ("crfints", stack, write_crfints),
        ("median", found.median, write_median),
    ):
        kept = product.output(kind, root, value, writer, exposure)
        if kept is not None:
            getattr(product.result, kind)[root] = kept
    return _needed(exposure, stack)


def _needed(exposure: Exposure, stack: IntegrationStack) -> IntegrationStack:
    """Return what the next steps need: of references no variances."""
    if exposure.exptype == "science":
        return stack
    return stack.replace(var_poisson=None, var_rnoise=None, var_flat=None)


def flag_science(product: ProductContext) -> Iterable[IntegrationStack]:
    """Flag the outliers of the science exposures, of each when its turn comes.

    Where they are references of each other, of all at once. A model of a disk is taken from them.
    """
    model, science = product.inputs.disk_model, product.inputs.science
    stacks = (flag_outliers(product, exposure) for exposure in science)
    if model is not None:
        stacks = (model.taken_from(s, e) for s, e in zip(stacks, science, strict=True))
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
        report_truncations(product, len(stacked))
    product.record.sources = stacked.sources
    product.result.psfstack = product.output(
        "psfstack", product.result.name, stacked, write_psfstack, product.inputs.references
    )
    return stacked


def report_truncations(product: ProductContext, n: int) -> None:
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
