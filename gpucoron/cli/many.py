"""``gpucoron ASN ASN ...``: one after another, one on each of several GPUs, or on a cluster."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import multiprocessing.connection
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpucoron.backend.device import choose_device
from gpucoron.cli.run import fail, read_parameters, report_folder, run_one, run_options
from gpucoron.cli.streams import write_lines
from gpucoron.cluster.client import connect, run_many
from gpucoron.cluster.requests import AssociationOutcome, RunRequest, make_request, precheck
from gpucoron.cluster.tasks import run_request
from gpucoron.errors import DeviceError, GpucoronError, UsageError, plural

log = logging.getLogger("gpucoron")


def run(options: argparse.Namespace, console) -> int:
    """Run all associations; return the exit code."""
    start = time.perf_counter()
    if options.report and options.report.lower().endswith((".html", ".htm")):
        raise UsageError("--report names one file for several associations; expected a folder")
    parameters = read_parameters(options)
    options.save_params = None  # is written
    requests = [_request(options, console, parameters, asn) for asn in options.associations]
    if options.scheduler:
        with connect(options.scheduler) as client:
            outcomes = run_many(client, requests, console.progress)
    else:
        automatic = options.device.strip().lower() == "auto"  # is decided for each association
        device = choose_device("cpu" if automatic else options.device)
        outcomes = [
            AssociationOutcome(asn, error=error)
            for asn, error in zip(options.associations, precheck(requests), strict=True)
        ]
        if 1 < len(device.indices) < len(requests):
            _run_on_devices(requests, outcomes, [str(i) for i in device.indices], console)
        else:
            _run_in_turn(options, outcomes, console)
    return _summary(options, outcomes, time.perf_counter() - start)


def _request(options, console, parameters, asn: str) -> RunRequest:
    options.asn = asn
    return make_request(run_options(options, parameters, report_folder(options, console)))


def _summary(options, outcomes: list[AssociationOutcome], seconds: float) -> int:
    """Print the files written and what failed; return the exit code of the first failure."""
    files = [file for outcome in outcomes if outcome.done for file in outcome.done.result.files]
    write_lines(map(str, files), needed=False)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    log.info(
        "%s: %d done, %d failed, %.1f s",
        plural(len(outcomes), "association"),
        len(outcomes) - len(failed),
        len(failed),
        seconds,
    )
    codes = [fail(_failure(o), getattr(o.error, "exit_code", 1)) for o in failed]
    return codes[0] if codes else 0


def _failure(outcome: AssociationOutcome) -> str:
    """Describe a failure; name the association once."""
    name, text = Path(outcome.asn).name, str(outcome.error)
    if not isinstance(outcome.error, GpucoronError):
        text = f"internal error: {type(outcome.error).__name__}: {text}"
    return text if name in text else f"{name}: {text}"


# ---- without a cluster


def _run_in_turn(options, outcomes: list[AssociationOutcome], console) -> None:
    """Run one after another."""
    for number, outcome in enumerate(outcomes, 1):
        if outcome.error is not None:
            continue
        log.info("association %d of %d: %s", number, len(outcomes), outcome.asn)
        options.asn = outcome.asn
        console.seen_warnings.clear()
        try:
            run_one(options, console)
        except Exception as error:  # told at the end; the others go on
            outcome.error = error
            log.debug("%s", error, exc_info=not isinstance(error, GpucoronError))


def _run_on_devices(
    requests, outcomes: list[AssociationOutcome], devices: list[str], console
) -> None:
    """Run one association on each device at a time, in a process for each."""
    waiting = [k for k, outcome in enumerate(outcomes) if outcome.error is None]
    total, free = len(waiting), [_Child(device) for device in devices]
    busy: dict[Any, tuple[int, _Child]] = {}
    try:
        while waiting or busy:
            while waiting and free:
                k, child = waiting.pop(0), free.pop(0)
                log.info("%s on device %s", outcomes[k].asn, child.device)
                child.submit(requests[k])
                busy[child.pipe] = k, child
            for pipe in multiprocessing.connection.wait(list(busy)):
                k, child = busy.pop(pipe)
                outcomes[k].done, outcomes[k].error = child.receive()
                free.append(child if child.process.is_alive() else _Child(child.device))
                outcomes[k].log()
            console.progress("associations", total - len(waiting) - len(busy), total)
    finally:
        for child in [*free, *(child for _, child in busy.values())]:
            child.process.terminate()


class _Child:
    """A process that works on one device."""

    def __init__(self, device: str):
        context = multiprocessing.get_context("spawn")
        self.device = device
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def submit(self, request: RunRequest) -> None:
        """Send an association."""
        try:
            options = replace(request.options, device=self.device)
            self.pipe.send(replace(request, options=options))
        except OSError:  # it is gone, as `receive` will tell
            pass

    def receive(self) -> tuple:
        """Return what came of it: a TaskResult or None, and None or an error."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            return None, DeviceError(
                f"device {self.device}: the process that worked there ended "
                f"with {self.process.exitcode}"
            )


def _serve(pipe) -> None:
    """Process what comes through a pipe."""
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        try:
            answer: tuple[Any, Any] = run_request(request), None
        except Exception as error:  # the others go on
            answer = None, error
        pipe.send(answer)
