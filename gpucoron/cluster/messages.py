"""What passes between a command, its workers and their tasks: no pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gpucoron import __version__
from gpucoron.backend.device import Device
from gpucoron.core.parameters import Parameters
from gpucoron.pipeline.result import ProductResult

__all__ = ["Done", "Order", "Piece"]


@dataclass(frozen=True)
class Order:
    """What a worker is told of a run.

    Attributes
    ----------
    asn, output_dir, scratch : str
        Full paths, the same for all workers. `scratch` is for what passes between tasks.
    parameters : Parameters
    device : str
        As ``--device``; chosen on the worker.
    save : frozenset of str
    psfmask : (str, str) or None
        As the user gave it, and its full path.
    threads, memory
        As `gpucoron.run`.
    skip_bad, checksums
        As `gpucoron.run`.
    overwrite : bool
        Whether files that exist may be replaced.
    report : str or None
        Where the report goes.
    star : (float, float) or None
        For the report.
    version : str
        Of the gpucoron that gives the order.
    """

    asn: str
    output_dir: str
    parameters: Parameters
    device: str = "auto"
    save: frozenset[str] = frozenset()
    psfmask: tuple[str, str] | None = None
    threads: int | None = None
    memory: int | str | None = None
    skip_bad: bool = False
    checksums: bool = True
    overwrite: bool = True
    report: str | None = None
    star: tuple[float, float] | None = None
    scratch: str = ""
    version: str = __version__


class Piece(NamedTuple):
    """A science exposure of a product, or some of its integrations."""

    exposure: int
    first: int = 0
    stop: int | None = None  # None: all of it


@dataclass
class Done:
    """What a task gives back.

    Attributes
    ----------
    files : list of str
    timings, spans
        As in `Result`, spans on the clock of `time.time`.
    warnings : list of str
    lines : list of (int, str)
        Level and text of what was logged.
    device : Device
    workers : list of str
    products : list of ProductResult
        With nothing but names, fits and psfmask.
    notes : dict
        For the task that ends the association.
    """

    files: list[str]
    timings: dict[str, float]
    spans: list[tuple[str, float, float]]
    warnings: list[str]
    lines: list[tuple[int, str]]
    device: Device
    workers: list[str]
    products: list[ProductResult] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def follow(self, other: Done) -> None:
        """Put what another task did before this."""
        self.files = [*other.files, *self.files]
        for step, seconds in other.timings.items():
            self.timings[step] = self.timings.get(step, 0.0) + seconds
        self.spans = [*other.spans, *self.spans]
        self.warnings = list(dict.fromkeys([*other.warnings, *self.warnings]))
        self.lines = list(dict.fromkeys([*other.lines, *self.lines]))
        self.workers = list(dict.fromkeys([*other.workers, *self.workers]))
