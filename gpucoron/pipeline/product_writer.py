"""Write products in the background."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gpucoron.backend.prefetch import Background
from gpucoron.backend.transfer import PendingArray
from gpucoron.pipeline.run_record import RunRecord
from gpucoron.pipeline.step_clock import StepClock

if TYPE_CHECKING:
    import numpy as np

    from gpucoron.core.star import StarPositions
    from gpucoron.io.psfalign import PsfalignWriter

log = logging.getLogger("gpucoron")


class ProductWriter:
    """Writes products in the background, and records each when it is complete.

    A product that the record has already is not written again. The clock gets the time that the
    caller waits, as "write".
    """

    def __init__(self, background: Background, record: RunRecord, clock: StepClock, overwrite):
        self.background, self.record, self.clock = background, record, clock
        self.overwrite = overwrite
        self.files: list[Path] = []  # what is complete, in order
        self._begun: set[Path] = set()

    def write(self, path: Path, writer: Callable[..., dict[str, str]], *args) -> None:
        """Write a product: once, however many products of an association share an exposure.

        Calls ``writer(path, *args, overwrite=...)`` in the background, where arguments that are
        still on a GPU are fetched.
        """
        if path in self._begun:
            return
        self._begun.add(path)
        if self.record.has(path):
            self.files.append(path)
            return

        def work():
            values = [a() if isinstance(a, PendingArray) else a for a in args]
            checksums = writer(path, *values, overwrite=self.overwrite)
            log.debug("wrote %s", path)
            self.note(path, checksums)

        with self.clock.timed("write"):
            self.background.submit(work)

    def close(
        self,
        writer: PsfalignWriter,
        tables: tuple[np.ndarray, np.ndarray | None],
        find_star: Callable[[], StarPositions],
    ) -> None:
        """Complete a psfalign file, whose planes are written, in the background."""
        with self.clock.timed("write"):
            self.background.submit(
                lambda: self.note(writer.path, writer.close(*tables, find_star()))
            )

    def note(self, path: Path, checksums: dict[str, str]) -> None:
        """Note that a file is complete; `checksums` are CHECKSUM of its HDUs by name."""
        self.record.wrote(path, checksums)
        self.files.append(path)
