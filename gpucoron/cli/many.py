"""``gpucoron ASN ASN ...``: one after another, one on each of several GPUs, or on a cluster."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import multiprocessing.connection
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpucoron.backend.device import choose_device
from gpucoron.cli.run import chosen_products, fail, read_parameters, run_association
from gpucoron.cluster.client import connect, run_many
from gpucoron.cluster.messages import Order
from gpucoron.cluster.planning import Outcome, held, look_ahead, make_order, tell
from gpucoron.cluster.tasks import do_whole
from gpucoron.errors import DeviceError, GpucoronError, UsageError

__all__ = ["run"]

log = logging.getLogger("gpucoron")


def run(options: argparse.Namespace, console) -> int:
    """Run all associations; return the exit code.

    Parameters
    ----------
    options : argparse.Namespace
        Of ``gpucoron ASN``.
    console : Console
    """
    start = time.perf_counter()
    if options.report and options.report.lower().endswith((".html", ".htm")):
        raise UsageError("--report names one file for several associations; expected a folder")
    if options.scheduler and options.resume:
        raise UsageError("--resume does not work with --scheduler")
    parameters = read_parameters(options)
    orders = [_order(options, console, parameters, asn) for asn in options.associations]
    if options.scheduler:
        with connect(options.scheduler) as client:
            outcomes = run_many(client, orders, progress=console.progress)
    else:
        automatic = options.device.strip().lower() == "auto"  # is decided for each association
        device = choose_device("cpu" if automatic else options.device)
        aheads = look_ahead(orders)
        outcomes = [Outcome(asn) for asn in options.associations]
        if 1 < len(device.indices) < len(orders):
            if options.resume:
                raise UsageError("--resume of more associations than devices needs one device")
            with held(orders, aheads, outcomes):
                _on_devices(orders, outcomes, [str(i) for i in device.indices], console)
        else:
            for outcome, ahead in zip(outcomes, aheads, strict=True):
                outcome.error = ahead if isinstance(ahead, GpucoronError) else None
            _in_turn(options, outcomes, console)
    return _summary(options, outcomes, time.perf_counter() - start)


def _order(options, console, parameters, asn: str) -> Order:
    report = options.report
    if report is None and console.terminal:
        report = options.output_dir
    return make_order(
        asn,
        options.output_dir,
        parameters,
        device=options.device,
        psfmask=options.psfmask,
        skip_bad=options.skip_bad,
        checksums=options.checksums,
        save=chosen_products(options, parameters),
        threads=options.threads,
        memory=options.memory,
        overwrite=options.overwrite,
        report=str(Path(report).absolute()) if report else None,
    )


def _summary(options, outcomes: list[Outcome], seconds: float) -> int:
    """Name what was written and what failed; return the exit code, the first failure's."""
    files = [file for outcome in outcomes if outcome.done for file in outcome.done.files]
    if not options.quiet:
        sys.stdout.writelines(f"{file}\n" for file in files)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    log.info(
        "%d association%s: %d done, %d failed, %.1f s",
        len(outcomes),
        "s"[: len(outcomes) != 1],
        len(outcomes) - len(failed),
        len(failed),
        seconds,
    )
    codes = [fail(_named(o), getattr(o.error, "exit_code", 1)) for o in failed]
    return codes[0] if codes else 0


def _named(outcome: Outcome) -> str:
    """Say what failed and why, the association named once."""
    name, text = Path(outcome.asn).name, str(outcome.error)
    if not isinstance(outcome.error, GpucoronError):
        text = f"internal error: {type(outcome.error).__name__}: {text}"
    return text if name in text else f"{name}: {text}"


# ---- here


def _in_turn(options, outcomes: list[Outcome], console) -> None:
    """Run one after another."""
    options.save_params = None  # is written
    for number, outcome in enumerate(outcomes, 1):
        if outcome.error is not None:
            continue
        log.info("association %d of %d: %s", number, len(outcomes), outcome.asn)
        options.asn = outcome.asn
        console.seen_warnings.clear()
        try:
            run_association(options, console)
        except Exception as error:  # told at the end; the others go on
            outcome.error = error
            log.debug("%s", error, exc_info=not isinstance(error, GpucoronError))


def _on_devices(orders, outcomes: list[Outcome], devices: list[str], console) -> None:
    """Run one association on each device at a time, in a process for each."""
    waiting = [k for k, outcome in enumerate(outcomes) if outcome.error is None]
    total, free = len(waiting), [_Child(device) for device in devices]
    busy: dict[Any, tuple[int, _Child]] = {}
    try:
        while waiting or busy:
            while waiting and free:
                k, child = waiting.pop(0), free.pop(0)
                log.info("%s on device %s", outcomes[k].asn, child.device)
                child.give(orders[k])
                busy[child.pipe] = k, child
            for pipe in multiprocessing.connection.wait(list(busy)):
                k, child = busy.pop(pipe)
                outcomes[k].done, outcomes[k].error = child.take()
                free.append(child if child.process.is_alive() else _Child(child.device))
                tell(outcomes[k])
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

    def give(self, order: Order) -> None:
        """Have an association processed."""
        try:
            self.pipe.send(replace(order, device=self.device))
        except OSError:  # it is gone, as `take` will tell
            pass

    def take(self) -> tuple:
        """Return what came of it: a Done or None, and None or an error."""
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
            order = pipe.recv()
        except EOFError:
            return
        try:
            answer: tuple[Any, Any] = do_whole(order), None
        except Exception as error:  # the others go on
            answer = None, error
        pipe.send(answer)
