"""One call of `gpucoron.run`: its settings, what it has done, and where its results go."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.backend.device import memory
from gpucoron.backend.logs import Progress
from gpucoron.backend.opening import Opening
from gpucoron.backend.prefetch import Background
from gpucoron.backend.transfer import Later
from gpucoron.core.parameters import Parameters
from gpucoron.pipeline.planning import SHARE, parse_size
from gpucoron.pipeline.run_record import RunRecord

if TYPE_CHECKING:
    from gpucoron.io.association import Association, Product
    from gpucoron.io.inspection import Exposures

__all__ = ["Job"]

log = logging.getLogger("gpucoron")


@dataclass
class Job:
    """One call of `run`: its settings, and what it has done so far."""

    parameters: Parameters
    device: Any  # a Device, or None until it is settled
    save: frozenset[str]
    keep: frozenset[str]
    overwrite: bool
    psfmask: Any  # a path, or None
    output_dir: Any  # a Path, or None where nothing is written
    progress: Progress
    threads: int = 1
    memory: int | str | None = None
    skip_bad: bool = False
    checksums: bool = True
    exposures: Exposures = field(default_factory=dict)
    background: Background = field(default_factory=lambda: Background(False))
    files: list[Path] = field(default_factory=list)
    begun: set[Path] = field(default_factory=set)
    record: RunRecord = field(default_factory=RunRecord)
    timings: dict[str, float] = field(default_factory=dict)
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    opening: Opening | None = None
    stack: ExitStack = field(default_factory=ExitStack)

    @contextmanager
    def timed(self, step: str):
        """Add the wall time of a block to a step's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            with self.lock:
                self.timings[step] = self.timings.get(step, 0.0) + end - start
            self.spans.append((step, start, end))

    def started(self) -> None:
        """Wait until the device's libraries are ready."""
        if self.opening is not None:
            self.opening.wait()

    def inputs(self, association: Association) -> list[Path]:
        """Return every file that will be read, but a psfmask that CRDS finds."""
        members = [m.path for p in association.products for m in (*p.psf, *p.science)]
        others = [Path(p) for p in (self.psfmask, self.parameters.resample.output_wcs) if p]
        return list(dict.fromkeys([association.path, *others, *members]))

    def read(self, path: Path, pixels: bool = True) -> tuple[Association, tuple[str, ...]]:
        """Read an association, check its members, and name its products."""
        from gpucoron.io.association import read_association
        from gpucoron.io.inspection import Needs, inspect_members
        from gpucoron.io.product_naming import product_names

        association, self.exposures = inspect_members(
            read_association(path, check_files=not self.skip_bad),
            Needs.of(self.parameters, self.checksums, pixels),
            skip_bad=self.skip_bad,
            progress=lambda *state: self.progress("read", *state),
        )
        metas = [self.exposures[p.science[0].path, "science"].meta for p in association.products]
        return association, product_names(association, metas)

    def budget(self) -> int:
        """Return the bytes that the run may use."""
        return parse_size(self.memory) if self.memory is not None else int(SHARE * memory()[1])

    def preflight(self, association: Association, names: tuple[str, ...]) -> None:
        """Make sure that the products can be written."""
        from gpucoron.io.products import preflight

        members = [m.path for p in association.products for m in (*p.science, *p.psf)]
        preflight(self.output_dir, self.planned(association, names), self.overwrite, members)

    def planned(self, association: Association, names: tuple[str, ...]) -> list[str]:
        """Return the names of all files that an association's products will be written to."""
        return [
            path.name
            for product, own in zip(association.products, names, strict=True)
            for name, suffix in self._planned(product, own)
            for path in self.paths(name, suffix, association.asn_id)
        ]

    def _planned(self, product: Product, name: str) -> Iterator[tuple[str, str]]:
        """Yield (root or product name, suffix) of every file that a product will write."""
        from gpucoron.io.names import exposure_root

        skip = {
            step: getattr(self.parameters, step).skip
            for step in ("outlier_detection", "align_refs", "klip", "resample")
        }
        every = {"crfints": not skip["outlier_detection"], "median": not skip["outlier_detection"]}
        science = {"psfalign": not (skip["align_refs"] or skip["klip"]), "psfsub": not skip["klip"]}
        for member in (*product.science, *product.psf):
            kinds = every | (science if member.exptype == "science" else {})
            for suffix, made in kinds.items():
                if made and suffix in self.save:
                    yield exposure_root(member.path), suffix
        for suffix, made in (("psfstack", True), ("i2d", not skip["resample"])):
            if made and suffix in self.save:
                yield name, suffix

    def tag(self, truncate: int) -> str:
        """Tell the products of one truncation from another's, where there are several."""
        klip = self.parameters.klip
        return f"_kl{truncate:03d}" if len(klip.truncations) > 1 and not klip.skip else ""

    def paths(self, name: str, suffix: str, asn_id: str | None) -> list[Path]:
        """Return where a product goes: a file, or one for each truncation."""
        path = self.path(name, suffix, asn_id)
        if suffix not in ("psfsub", "i2d"):
            return [path]
        return [self.tagged(path, suffix, k) for k in self.parameters.klip.truncations]

    def tagged(self, path: Path, suffix: str, truncate: int) -> Path:
        """Put a truncation's tag before the suffix of a file name."""
        stem = path.name.removesuffix(f"_{suffix}.fits")
        return path.with_name(f"{stem}{self.tag(truncate)}_{suffix}.fits")

    def path(self, name: str, suffix: str, asn_id: str | None) -> Path:
        """Return where a file goes."""
        from gpucoron.io.products import product_path

        return product_path(self.output_dir, name, asn_id, suffix)

    def write(self, path: Path, writer: Callable[..., None], *args) -> None:
        """Write one product in the background; one that is complete already is the same."""
        if path in self.begun:
            return
        self.begun.add(path)
        if self.record.has(path):
            self.files.append(path)
            return

        def work():
            values = [a() if isinstance(a, Later) else a for a in args]
            writer(path, *values, overwrite=self.overwrite)
            log.debug("wrote %s", path)
            self.record.wrote(path)
            self.files.append(path)

        with self.timed("write"):
            self.background.submit(work)
