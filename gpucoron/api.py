"""The orchestrator: which step runs when, on what, and where its results go."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.backend.compiling import watch_compiling
from gpucoron.backend.device import Device, choose_device, is_open, memory
from gpucoron.backend.opening import Opening
from gpucoron.backend.prefetch import Background
from gpucoron.backend.threads import default_threads, limited_to
from gpucoron.backend.transfer import Later
from gpucoron.core.parameters import Parameters
from gpucoron.errors import ParameterError, UsageError
from gpucoron.pipeline.planning import SHARE, Plan, parse_size, predict
from gpucoron.pipeline.result import ProductResult, Result
from gpucoron.pipeline.run_record import RunRecord

if TYPE_CHECKING:
    from gpucoron.io.association import Association, Product
    from gpucoron.io.inspection import Exposures

__all__ = ["PRODUCTS", "plan", "run"]

log = logging.getLogger("gpucoron")

#: Everything that can be written or kept, in the order in which it comes about.
PRODUCTS = ("crfints", "median", "psfstack", "psfalign", "psfsub", "i2d")

Progress = Callable[..., None]


def run(
    asn: str | PathLike, device: str | int | Device = "auto",
    output_dir: str | PathLike | None = None, align: str | None = None, *,
    psfmask: str | PathLike | None = None, preset: str | None = None,
    parameters: Parameters | Mapping[str, Any] | None = None,
    save: Collection[str] | None = None, keep: Collection[str] | None = None,
    overwrite: bool = True, skip_bad: bool = False, checksums: bool = True,
    progress: Progress | None = None, threads: int | None = None,
    memory: int | str | None = None, client: Any = None, resume: bool = False, **keywords: Any,
) -> Result:
    """Run the whole pipeline on an association.

    Parameters
    ----------
    asn : path
        A level-3 association (JSON) of ``_calints`` exposures.
    device : str, int or Device
        "auto", "cpu", or the number of a CUDA device; "0,1" shares the work between two. "auto"
        is decided when the association is known.
    output_dir : path, optional
        Where products are written; nothing is written without it.
    align : {"each", "first"}, optional
        Short for ``align_refs_align``: align the references to every science integration (the
        default), or to the first of an exposure only.
    psfmask : path, optional
        The psfmask. Default: CRDS where it is set up, else ones everywhere.
    preset : {"jwst"}, optional
        Reproduce the jwst package, oddities included.
    parameters : Parameters or mapping, optional
        Step parameters; ``{"klip.truncate": 10}`` or a `gpucoron.core.parameters.Parameters`.
    save : collection of str, optional
        What to write (`PRODUCTS`); default all but "median".
    keep : collection of str, optional
        What the result holds in memory. Default: everything; with an `output_dir`, all but
        "psfalign", which can be larger than memory.
    overwrite : bool
        Replace files that exist.
    skip_bad : bool
        Leave out members that cannot be used or do not go with the others, each with a warning
        and in `ProductResult.left_out`, instead of stopping.
    checksums : bool
        Compare inputs with the checksums in their headers, where there are any.
    progress : callable, optional
        Called as ``progress(step, done, total, text)``.
    threads : int, optional
        Of every thread pool. Default: the processors that this process may use.
    memory : int or str, optional
        What the run may use, bytes or ``"4GiB"``. Default: half of what is free.
    client : distributed.Client, optional
        Run on the workers of this Dask cluster; needs an `output_dir` that all of them see, and
        keeps only fits in memory. `device`, `threads` and `memory` are then those of a worker.
    resume : bool
        Go on from what an earlier run with the same inputs and parameters has completed in
        `output_dir`, by its ``*_run.json``; from the beginning where there is none.
    **keywords
        More step parameters: ``klip_truncate=10``, ``klip={"truncate": 10}``.

    Returns
    -------
    Result

    Raises
    ------
    GpucoronError
        One of its kinds, with one line that says what was found and what was expected.
    """
    chosen = None if client is not None or is_open(device) else choose_device(device)
    if not isinstance(parameters, Parameters):
        parameters = Parameters.from_sources(
            preset=preset, keywords={**(parameters or {}), "align": align, **keywords})
    elif keywords or preset not in (None, parameters.preset):
        raise UsageError("give either a Parameters object or single parameters, not both")
    elif align is not None:
        parameters = replace(parameters, align_refs=replace(parameters.align_refs, align=align))
    if parameters.stack_refs.skip:
        raise ParameterError("stack_refs.skip is true, but klip needs the stacked references")
    save = _selection("save", save, set(PRODUCTS) - {"median"})
    if resume and (output_dir is None or not overwrite or client is not None):
        what = ("an output folder" if output_dir is None else
                "overwriting" if not overwrite else "a run without a cluster")
        raise UsageError(f"resume needs {what}")
    if client is not None:
        from gpucoron.cluster.client import run_on

        return run_on(client, asn, output_dir, parameters, device=device, save=save, keep=keep,
                      psfmask=psfmask, overwrite=overwrite, progress=progress, threads=threads,
                      memory=memory, skip_bad=skip_bad, checksums=checksums)
    if output_dir is None:
        save = frozenset()
    keep = _selection("keep", keep, set(PRODUCTS) - ({"psfalign"} if output_dir else set()))
    with collected_warnings() as warnings, limited_to(threads) as n, ExitStack() as stack:
        job = Job(parameters, chosen, save, keep, overwrite, psfmask,
                  None if output_dir is None else Path(output_dir), progress or no_progress, n,
                  memory, skip_bad, checksums, stack=stack)
        job.look_for(device)
        job.record = RunRecord(parameters, chosen, resume, job.timings, warnings, n)
        with job.record, Background(n > 1) as job.background:
            products = job.association(Path(asn))
    return Result(products, tuple(job.files), job.timings, tuple(warnings), parameters, job.device,
                  tuple(job.spans))


def plan(
    asn: str | PathLike, align: str | None = None, *, preset: str | None = None,
    parameters: Parameters | Mapping[str, Any] | None = None, save: Collection[str] | None = None,
    threads: int | None = None, memory: int | str | None = None, **keywords: Any,
) -> tuple[Plan, ...]:
    """Predict what `run` would take, product by product, from the headers alone.

    Parameters
    ----------
    asn, align, preset, parameters, save, threads, memory, **keywords
        As for `run`.

    Returns
    -------
    tuple of Plan

    Raises
    ------
    GpucoronError
        As `run`, as far as headers tell.
    """
    if not isinstance(parameters, Parameters):
        parameters = Parameters.from_sources(
            preset=preset, keywords={**(parameters or {}), "align": align, **keywords})
    save = _selection("save", save, set(PRODUCTS) - {"median"})
    job = Job(parameters, choose_device("cpu"), save, frozenset(), True, None, None, no_progress,
              threads or default_threads(), memory)
    return job.plans(Path(asn))


def _selection(name, given, default) -> frozenset[str]:
    if given is None:
        return frozenset(default)
    unknown = sorted(set(given) - set(PRODUCTS))
    if unknown:
        raise UsageError(f"{name} holds {unknown[0]!r}; expected some of {', '.join(PRODUCTS)}")
    return frozenset(given)


def no_progress(step: str, done: int, total: int, text: str = "") -> None:
    """Take no notice."""


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect what is logged as a warning, each text once."""
    texts: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record):
            if record.getMessage() not in texts:
                texts.append(record.getMessage())

    handler = Collector(logging.WARNING)
    log.addHandler(handler)
    try:
        yield texts
    finally:
        log.removeHandler(handler)


@dataclass
class Job:
    """One call of `run`: its settings, and what it has done so far."""

    parameters: Parameters
    device: Device | None  # until it is settled
    save: frozenset[str]
    keep: frozenset[str]
    overwrite: bool
    psfmask: str | PathLike | None
    output_dir: Path | None
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

    def association(self, path: Path) -> tuple[ProductResult, ...]:
        """Check everything that can be checked first, then process product by product."""
        from gpucoron.pipeline.product import ProductRun

        with self.timed("read"):
            association, names = self._read(path)
        self._settle(association, names)
        if self.save:
            self._preflight(association, names)
            planned = [self.output_dir / name for name in self.planned(association, names)]
            if planned:
                self.record.begin(names, planned, self._inputs(association))
        results = []
        for product, name in zip(association.products, names, strict=True):
            log.info("product %s: %d science and %d reference exposures", name,
                     len(product.science), len(product.psf))
            results.append(ProductRun(self, association, product, name).run())
        return tuple(results)

    def look_for(self, spec: str | int | Device) -> None:
        """Begin with a GPU that was asked for; "auto" is settled later."""
        if self.device is None and str(spec).strip().lower() != "auto":
            self.opening = self.stack.enter_context(Opening(spec))
        elif self.device is not None and self.device.kind == "cpu":
            watch_compiling(self.threads)

    def _settle(self, association: Association, names: tuple[str, ...]) -> None:
        """Know the device, now that the association is known."""
        if self.device is not None:
            return
        if self.opening is not None:
            self.device = self.opening.device()
        else:
            self.device = choose_device("auto", lambda: predict(self._plans(association, names)))
            if self.device.kind == "gpu":
                self.opening = self.stack.enter_context(Opening(self.device))
            else:
                watch_compiling(self.threads)
        self.record.device = self.device
        log.info("device %s: %s (%s)", self.device.label, self.device.description,
                 self.device.reason)

    def started(self) -> None:
        """Wait until the device's libraries are ready."""
        if self.opening is not None:
            self.opening.wait()

    def _inputs(self, association: Association) -> list[Path]:
        """Return every file that will be read, but a psfmask that CRDS finds."""
        members = [m.path for p in association.products for m in (*p.psf, *p.science)]
        others = [Path(p) for p in (self.psfmask, self.parameters.resample.output_wcs) if p]
        return list(dict.fromkeys([association.path, *others, *members]))

    def _read(self, path: Path, pixels: bool = True) -> tuple[Association, tuple[str, ...]]:
        from gpucoron.io.association import read_association
        from gpucoron.io.inspection import Needs, inspect_members
        from gpucoron.io.product_naming import product_names

        association, self.exposures = inspect_members(
            read_association(path, check_files=not self.skip_bad),
            Needs.of(self.parameters, self.checksums, pixels), skip_bad=self.skip_bad,
            progress=lambda *state: self.progress("read", *state))
        metas = [self.exposures[p.science[0].path, "science"].meta for p in association.products]
        return association, product_names(association, metas)

    def plans(self, path: Path) -> tuple[Plan, ...]:
        """Predict what each product takes."""
        self.checksums = False  # headers alone
        return self._plans(*self._read(path, pixels=False))

    def _plans(self, association: Association, names: tuple[str, ...]) -> tuple[Plan, ...]:
        from gpucoron.pipeline.product import ProductRun

        runs = [ProductRun(self, association, product, name)
                for product, name in zip(association.products, names, strict=True)]
        return tuple(run.plan(*run.read()) for run in runs)

    def budget(self) -> int:
        """Return the bytes that the run may use."""
        return parse_size(self.memory) if self.memory is not None else int(SHARE * memory()[1])

    def _preflight(self, association: Association, names: tuple[str, ...]) -> None:
        from gpucoron.io.products import preflight

        members = [m.path for p in association.products for m in (*p.science, *p.psf)]
        preflight(self.output_dir, self.planned(association, names), self.overwrite, members)

    def planned(self, association: Association, names: tuple[str, ...]) -> list[str]:
        """Return the names of all files that an association's products will be written to."""
        return [path.name for product, own in zip(association.products, names, strict=True)
                for name, suffix in self._planned(product, own)
                for path in self.paths(name, suffix, association.asn_id)]

    def _planned(self, product: Product, name: str) -> Iterator[tuple[str, str]]:
        """Yield (root or product name, suffix) of every file that a product will write."""
        from gpucoron.io.names import exposure_root

        skip = {step: getattr(self.parameters, step).skip
                for step in ("outlier_detection", "align_refs", "klip", "resample")}
        every = {"crfints": not skip["outlier_detection"], "median": not skip["outlier_detection"]}
        science = {"psfalign": not (skip["align_refs"] or skip["klip"]),
                   "psfsub": not skip["klip"]}
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
