"""outlier_detection and stack_refs of one product."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from gpucoron.errors import plural
from gpucoron.pipeline.product_context import ProductContext
from gpucoron.pipeline.weights import warn_of_outliers

if TYPE_CHECKING:
    from gpucoron.core.stack import IntegrationStack
    from gpucoron.io.exposures import Exposure

__all__ = ["flag_outliers", "flag_science", "report_truncations", "stack_references"]

log = logging.getLogger("gpucoron")


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
