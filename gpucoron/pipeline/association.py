"""Process the products of an association one after another, or plan them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from gpucoron.backend.compiling import watch_compiling
from gpucoron.backend.device import Device, choose_device
from gpucoron.backend.opening import Opening
from gpucoron.pipeline.job import Job
from gpucoron.pipeline.planning import Plan, predict
from gpucoron.pipeline.result import ProductResult

if TYPE_CHECKING:
    from gpucoron.io.association import Association

__all__ = ["open_device", "plan_association", "run_association"]

log = logging.getLogger("gpucoron")


def run_association(job: Job, path: Path) -> tuple[ProductResult, ...]:
    """Check everything that can be checked first, then process product by product."""
    from gpucoron.pipeline.product import ProductRun

    with job.timed("read"):
        association, names = job.read(path)
    _settle_device(job, association, names)
    if job.save:
        job.preflight(association, names)
        planned = [job.output_dir / name for name in job.planned(association, names)]
        if planned:
            job.record.begin(names, planned, job.inputs(association))
    results = []
    for product, name in zip(association.products, names, strict=True):
        log.info(
            "product %s: %d science and %d reference exposures",
            name,
            len(product.science),
            len(product.psf),
        )
        results.append(ProductRun(job, association, product, name).run())
    return tuple(results)


def plan_association(job: Job, path: Path) -> tuple[Plan, ...]:
    """Estimate what each product takes, from headers alone."""
    job.checksums = False
    return _plans(job, *job.read(path, pixels=False))


def _plans(job: Job, association: Association, names: tuple[str, ...]) -> tuple[Plan, ...]:
    from gpucoron.pipeline.product import ProductRun

    runs = [
        ProductRun(job, association, product, name)
        for product, name in zip(association.products, names, strict=True)
    ]
    return tuple(run.plan(*run.read()) for run in runs)


def open_device(job: Job, spec: str | int | Device) -> None:
    """Start a GPU that was asked for beside the reading; "auto" is chosen later."""
    if job.device is None and str(spec).strip().lower() != "auto":
        job.opening = job.stack.enter_context(Opening(spec))
    elif job.device is not None and job.device.kind == "cpu":
        watch_compiling(job.threads)


def _settle_device(job: Job, association: Association, names: tuple[str, ...]) -> None:
    """Choose the device, now that the association is known."""
    if job.device is not None:
        return
    if job.opening is not None:
        job.device = job.opening.device()
    else:
        job.device = choose_device("auto", lambda: predict(_plans(job, association, names)))
        if job.device.kind == "gpu":
            job.opening = job.stack.enter_context(Opening(job.device))
        else:
            watch_compiling(job.threads)
    job.record.device = job.device
    log.info("device %s: %s (%s)", job.device.label, job.device.description, job.device.reason)
