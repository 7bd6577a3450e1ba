"""A run under way: its options, device, clock, record, and what writes its products."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from gpucoron.backend.compiling import watch_compiling
from gpucoron.backend.device import Device, choose_device, is_open
from gpucoron.backend.logs import Progress, collected_warnings
from gpucoron.backend.opening import Opening
from gpucoron.backend.prefetch import Background
from gpucoron.backend.threads import limited_to
from gpucoron.pipeline.planning import Plan, predict
from gpucoron.pipeline.product_writer import ProductWriter
from gpucoron.pipeline.result import ProductResult, Result
from gpucoron.pipeline.run_options import RunOptions
from gpucoron.pipeline.run_record import RunRecord
from gpucoron.pipeline.step_clock import StepClock

log = logging.getLogger("gpucoron")


class Run:
    """What all steps of a run share; made by `Run.begin`."""

    def __init__(self, options: RunOptions, progress: Progress, threads: int, warnings: list[str]):
        self.options, self.progress, self.threads = options, progress, threads
        self.parameters, self.memory = options.parameters, options.memory
        self.budget = options.budget
        self.warnings = warnings
        self.clock = StepClock()
        self.timed = self.clock.timed
        self.device: Any = None  # until it is chosen
        self.record = RunRecord(
            options.parameters, None, options.resume, self.clock.timings, warnings, threads
        )
        self.background: Background
        self.writer: ProductWriter
        self._opening: Opening | None = None
        self._stack = ExitStack()

    @classmethod
    @contextmanager
    def begin(cls, options: RunOptions, progress: Progress) -> Iterator[Run]:
        """Collect warnings, set the threads, start the device; end all of it with the block."""
        with collected_warnings() as warnings, limited_to(options.threads) as threads:
            run = cls(options, progress, threads, warnings)
            with run._stack:
                run._open_device()
                with run.record, Background(threads > 1) as run.background:
                    run.writer = ProductWriter(
                        run.background, run.record, run.clock, options.overwrite
                    )
                    yield run

    def result(self, products: Iterable[ProductResult]) -> Result:
        """Return the result of the run, when it has ended."""
        return Result(
            tuple(products),
            tuple(self.writer.files),
            self.clock.timings,
            tuple(self.warnings),
            self.parameters,
            self.device,
            tuple(self.clock.spans),
        )

    # ---- the device

    def _open_device(self) -> None:
        """Choose the device if that needs no waiting; start a GPU that was asked for by number."""
        spec = self.options.device
        if not is_open(spec):
            self._use(choose_device(spec))
        elif str(spec).strip().lower() != "auto":
            self._opening = self._stack.enter_context(Opening(spec))

    def settle_device(self, plans: Sequence[Plan]) -> None:
        """Choose the device, now that it is known what is to be done."""
        if self.device is not None:
            return
        if self._opening is not None:
            self._use(self._opening.device())
        else:
            self._use(choose_device("auto", lambda: predict(plans)))

    def _use(self, device: Device) -> None:
        self.device = self.record.device = device
        log.info("device %s: %s (%s)", device.label, device.description, device.reason)
        if device.kind == "cpu":
            watch_compiling(self.threads)
            if self.threads > 1:
                threading.Thread(target=_load_loops, name="gpucoron-load", daemon=True).start()
        elif self._opening is None:
            self._opening = self._stack.enter_context(Opening(device))

    def wait_for_device(self) -> None:
        """Wait until the device's libraries are ready."""
        if self._opening is not None:
            self._opening.wait()


def _load_loops() -> None:
    """Have numba load a loop while files are read: for the first one it imports for 0.2 s."""
    import numpy as np

    from gpucoron.ops.cpu import drizzle_planes, drizzle_weights  # noqa: F401
    from gpucoron.ops.median import median

    with suppress(Exception):  # what is wrong shows where it is used
        median(np.ones((3, 2, 2), np.float32), np.ones((3, 2, 2), bool))
