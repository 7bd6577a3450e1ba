"""Run the products of an association one after another, or estimate what they take."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from gpucoron.backend.logs import Progress, no_progress
from gpucoron.backend.threads import default_threads
from gpucoron.errors import UsageError
from gpucoron.io.names import report_path
from gpucoron.pipeline.inputs import RunInputs, read_inputs, read_masks
from gpucoron.pipeline.output_names import OutputNames, record_name
from gpucoron.pipeline.planning import Plan, check_memory, plan_products, predict
from gpucoron.pipeline.product import run_product
from gpucoron.pipeline.result import ProductResult, Result
from gpucoron.pipeline.run import Run
from gpucoron.pipeline.run_options import RunOptions

log = logging.getLogger("gpucoron")


def run_association(options: RunOptions, progress: Progress = no_progress) -> Result:
    """Run an association: check all that can be checked first, then process product by product.

    `progress`, the result and the errors are those of `gpucoron.run`.
    """
    with Run.begin(options, progress) as run:
        products = _run_products(run)
    return run.result(products)


def _run_products(run: Run) -> tuple[ProductResult, ...]:
    options = run.options
    with run.timed("read"):
        inputs = read_inputs(options, run.progress)
        masks = read_masks(options, inputs)
    plans = plan_products(options, inputs, run.threads)
    check_memory(options, plans)
    run.settle_device(plans)
    expected = predict(plans)[run.device.kind == "cpu"]
    log.debug("expected time: %.0f s", expected, extra={"expected_s": expected})
    if planned := check_outputs(options, inputs):
        run.record.begin(inputs.names, planned, inputs.files(options))
    results = []
    for own, plan, mask in zip(inputs.products, plans, masks, strict=True):
        counts = len(own.science), len(own.references)
        log.info("product %s: %d science and %d reference exposures", own.name, *counts)
        results.append(run_product(run, own, plan, mask))
    return tuple(results)


def check_outputs(options: RunOptions, inputs: RunInputs) -> list[Path]:
    """Return the paths of all products; raise OutputError if they cannot be written.

    The run's record and the report are checked, too.
    """
    from gpucoron.io.products import preflight

    planned: list[Path] = []
    protected = [*inputs.files(options), *options.protected]
    if options.save:
        asn_id = inputs.association.asn_id
        for own in inputs.products:
            planned += OutputNames(options, asn_id, own.truncations).planned(own)
    if planned:
        names = [path.name for path in planned]
        preflight(options.folder, names, options.overwrite, protected)
        preflight(options.folder, [record_name(inputs.names)], True, protected)
    if options.report:
        report = report_path(options.report, inputs.names, inputs.association.path.name)
        preflight(report.parent, [report.name], options.overwrite, protected)
    return planned


def plan_association(options: RunOptions) -> tuple[Plan, ...]:
    """Estimate what each product of an association takes, from headers alone."""
    options = replace(options, checksums=False)
    threads = options.threads or default_threads()
    plans = plan_products(options, read_inputs(options, pixels=False), threads)
    try:
        check_memory(options, plans)
    except UsageError as problem:
        log.warning("a run would stop: %s", problem)
    return plans
