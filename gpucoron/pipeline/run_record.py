"""``<product>_run.json``: settings, inputs, completed products and status of a run."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import re
import socket
import sys
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron import __version__
from gpucoron.backend import cuda
from gpucoron.backend.device import peak_memory
from gpucoron.backend.signals import EXITS, on_forced_exit, stopped_by
from gpucoron.errors import GpucoronError, OutputError
from gpucoron.pipeline import resume
from gpucoron.pipeline.output_lock import FolderLock
from gpucoron.pipeline.output_names import record_name

if TYPE_CHECKING:
    import numpy as np

    from gpucoron.backend.device import Device
    from gpucoron.pipeline.result import ProductResult

log = logging.getLogger("gpucoron")

FORMAT = 1
_LIBRARIES = ("numpy", "scipy", "numba")
_CODES = dict(EXITS.values())


@dataclass
class RunRecord:
    """Writes the record of one run, and locks its output names.

    A context manager. Nothing happens before `begin`, which a run that writes nothing never calls;
    until then `has` is False and `wrote` does nothing. An exception that ends the block gets a
    note (PEP 678) of what is complete.
    """

    parameters: Any = None
    device: Any = None
    continuing: bool = False  # take over what an earlier run has completed
    timings: Mapping[str, float] = field(default_factory=dict)  # seconds by step so far
    warnings: Sequence[str] = ()  # so far
    threads: int = 1

    def __post_init__(self):
        self.path: Any = None  # the record, once it has begun
        self._lock = threading.RLock()
        self._stack = ExitStack()
        self._stop = threading.Event()
        self._summing: threading.Thread | None = None
        self._start = _now()
        self._content: dict[str, Any] = {}
        self._files: dict[str, dict[str, Any]] = {}
        self._earlier_warnings: list[str] = []
        self._beginning = self._warned = False

    def begin(self, names: Iterable[str], planned: Iterable[Path], inputs: Iterable[Path]) -> None:
        """Lock the products' names, read an earlier run's record, and write a new one.

        The record is named after the first product; `planned` are all files that will be written,
        `inputs` all that will be read. Raises OutputError if another run writes there.
        """
        names, planned = list(names), list(dict.fromkeys(planned))
        folder = planned[0].parent
        for name in dict.fromkeys(names):
            self._stack.callback(FolderLock(folder, name).release)
        self._stack.enter_context(on_forced_exit(self._abandon))
        self._beginning = True
        self.path = folder / record_name(names)
        self._files = {path.name: {"name": path.name, "state": "pending"} for path in planned}
        self._content = self._facts(inputs)
        earlier = resume.read(self.path)
        self._remove_partials(earlier.get("process") if earlier else None)
        if self.continuing:
            self._take_over(earlier)
        else:
            self._summing = threading.Thread(target=self._sum_inputs, name="gpucoron-sums")
            self._summing.start()
        self._save(first=True)
        self._beginning = False

    def _facts(self, inputs) -> dict[str, Any]:
        device = self.device
        return {
            "format": FORMAT,
            "gpucoron": __version__,
            "status": "running",
            "exit_status": None,
            "error": None,
            "start": self._start,
            "end": None,
            "command": sys.argv,
            "working_folder": os.getcwd(),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "versions": _versions(device),
            "platform": platform.platform(),
            "device": {k: getattr(device, k) for k in ("label", "name", "description", "reason")},
            "threads": self.threads,
            "resumed": None,
            "parameters": json.loads(json.dumps(self.parameters.flat())),
            "psfmasks": {},
            "stars": {},
            "inputs": [_input(path) for path in inputs],
        }

    # ---- what an earlier run left

    def _take_over(self, earlier) -> None:
        """Take over the completed products of an earlier run with the same settings."""
        self._sum_inputs()
        if earlier is None:
            log.info("--resume: nothing to continue from, starting at the beginning")
            return
        self._content["resumed"] = told = {
            "start": earlier["start"],
            "status": earlier["status"],
            "taken_over": 0,
        }
        why = resume.difference(earlier, self._content)
        if why:
            told["started_over"] = why
            log.warning("--resume: starting over: %s", why)
            return
        self._content["psfmasks"] = earlier["psfmasks"]
        self._earlier_warnings = earlier["warnings"]
        kept = resume.verified(self.path.parent, earlier["files"], self._files, self.threads)
        self._files.update(kept)
        told["taken_over"] = len(kept)
        log.info("--resume: %d of %d products are complete already", len(kept), len(self._files))

    def check_psfmask(self, product: str, name: str | None, mask: np.ndarray) -> None:
        """Record a product's psfmask; if it has changed, start over."""
        if self.path is None:
            return
        found = {"name": name, "crc32": f"{zlib.crc32(mask.tobytes()):08x}"}
        with self._lock:
            before = self._content["psfmasks"].get(product, found)
            self._content["psfmasks"][product] = found
            if before != found:
                log.warning(
                    "--resume: starting over: the psfmask was %s and is %s", before["name"], name
                )
                for entry in self._files.values():
                    entry["state"] = "pending"

    def note_stars(self, product: str, result: ProductResult) -> None:
        """Record where the star is, in a product's exposures and in its combined image."""
        with self._lock:
            self._content.setdefault("stars", {})[product] = {
                "exposures": {root: star.as_record() for root, star in result.stars.items()},
                "combined": None if result.star is None else result.star.as_record(),
                "flux": None if result.star_flux is None else result.star_flux.as_record(),
            }

    def _remove_partials(self, process) -> None:
        """Remove partial files of earlier runs that have ended."""
        report = self.path.name.replace("_run.json", "_report.html")
        with suppress(OSError):
            for entry in os.scandir(self.path.parent):
                found = re.fullmatch(r"\.(.+)\.(\d+)-[^.]*\.part", entry.name)
                if found and (
                    found[1] in ("probe", self.path.name)
                    or (
                        found[1] in (report, *self._files)
                        and int(found[2]) == process != os.getpid()
                    )
                ):
                    os.unlink(entry.path)

    # ---- while it runs

    def has(self, path: Path) -> bool:
        """Return whether a file is complete already."""
        return self._files.get(path.name, {}).get("state") == "complete"

    def wrote(self, path: Path, checksums: Mapping[str, str]) -> None:
        """Record that a file is complete; `checksums` are CHECKSUM of its HDUs by name."""
        if self.path is None:
            return
        entry = {
            "name": path.name,
            "state": "complete",
            "size": path.stat().st_size,
            "written": _now(),
            "checksums": dict(checksums),
        }
        with self._lock:
            self._files[path.name] = entry
            self._save()

    def _sum_inputs(self) -> None:
        from gpucoron.io.fits.checksums import crc32

        for entry in self._content["inputs"]:
            with suppress(OSError):  # whoever needs the file complains
                entry["crc32"] = crc32(entry["path"], self._stop.is_set) or None

    def _save(self, first: bool = False) -> None:
        """Write the record; a full disk stops a run only at its beginning."""
        from gpucoron.io.files import output_file

        with self._lock:
            content = {
                **self._content,
                "files": list(self._files.values()),
                "timings": {step: round(t, 3) for step, t in dict(self.timings).items()},
                "peak_memory_bytes": peak_memory(),
                "device_memory_bytes": self._device_memory(),
                "warnings": list(dict.fromkeys([*self._earlier_warnings, *self.warnings])),
            }
            try:
                with output_file(self.path) as file:
                    file.write(json.dumps(content, indent=1).encode() + b"\n")
            except OutputError as problem:
                if first:
                    raise
                if not self._warned:
                    log.warning("%s", problem)
                self._warned = True

    def _device_memory(self) -> list[int]:
        """Return the memory of CuPy's pool on each GPU, bytes."""
        sizes = []
        with suppress(Exception):  # a lost device must not end the record
            from gpucoron.backend import cuda

            for index in self.device.indices:
                with cuda.cupy().cuda.Device(index):
                    pool = cuda.cupy().get_default_memory_pool()
                    sizes.append(int(pool.used_bytes() + pool.free_bytes()))
        return sizes

    # ---- the end

    def kept(self) -> str:
        """Return how many products are complete, and how to continue."""
        done = sum(entry["state"] == "complete" for entry in self._files.values())
        return (
            f"{done} of {len(self._files)} products are complete in {self.path.parent}, "
            "--resume continues"
        )

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        with self._stack:
            if error is not None:
                self._stop.set()
            if self._summing is not None:
                self._summing.join()
            if self.path is None or self._beginning:  # an earlier record is not replaced yet
                return
            if error is None:
                self._finish("complete", 0, None)
                return
            status, code = EXITS.get(
                type(stopped_by(error) or error),
                ("failed", getattr(error, "exit_code", GpucoronError.exit_code)),
            )
            own = isinstance(error, GpucoronError)
            self._finish(status, code, str(error) if own else f"{kind.__name__}: {error}")
            if status != "failed" or any(map(self.has, map(Path, self._files))):
                error.add_note(self.kept())

    def _finish(self, status: str, code: int, error: str | None) -> None:
        with self._lock:
            self._content.update(status=status, exit_status=code, end=_now(), error=error)
            self._save()

    def _abandon(self, what: str) -> str:
        """End the record from another thread while the run is blocked."""
        if not self._lock.acquire(timeout=0.2):
            return ""
        for path in self.path.parent.glob(f".*.{os.getpid()}-*.part"):
            with suppress(OSError):
                path.unlink()
        if not self._beginning:
            self._finish(what, _CODES[what], None)
        self._stack.close()
        return "" if self._beginning else self.kept()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _versions(device: Device) -> dict[str, str]:
    """Return the versions of the numerical libraries."""
    found = {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
    if device.kind != "cpu":
        found["cupy"] = cuda.cupy().__version__
    return found


def _input(path: Path) -> dict[str, Any]:
    try:
        size = os.path.getsize(path)
    except OSError:
        size = None
    return {"path": os.path.abspath(path), "size": size, "crc32": None}
