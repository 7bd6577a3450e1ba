"""The orchestrator: which step runs when, on what, and where its results go."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.device import Device, choose_device
from gpucoron.errors import ParameterError, UsageError
from gpucoron.parameters import Parameters
from gpucoron.result import ProductResult, Result

if TYPE_CHECKING:
    from gpucoron.io.association import Association, Product
    from gpucoron.io.exposures import Exposure
    from gpucoron.io.products import Provenance
    from gpucoron.stack import IntegrationStack

__all__ = ["PRODUCTS", "run"]

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
    overwrite: bool = True, progress: Progress | None = None, **keywords: Any,
) -> Result:
    """Run the whole pipeline on an association.

    Parameters
    ----------
    asn : path
        A level-3 association (JSON) of ``_calints`` exposures.
    device : str, int or Device
        "auto", "cpu", or the number of a CUDA device.
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
        Step parameters; ``{"klip.truncate": 10}`` or a `gpucoron.parameters.Parameters`.
    save : collection of str, optional
        What to write (`PRODUCTS`); default all but "median".
    keep : collection of str, optional
        What the result holds in memory. Default: everything; with an `output_dir`, all but
        "psfalign", which can be larger than memory.
    overwrite : bool
        Replace files that exist.
    progress : callable, optional
        Called as ``progress(step, done, total, text)``.
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
    chosen = choose_device(device)
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
    if output_dir is None:
        save = frozenset()
    keep = _selection("keep", keep, set(PRODUCTS) - ({"psfalign"} if output_dir else set()))
    with _collected_warnings() as warnings:
        job = _Job(parameters, chosen, save, keep, overwrite, psfmask,
                   None if output_dir is None else Path(output_dir), progress or _no_progress)
        products = job.association(Path(asn))
    return Result(products, tuple(job.files), job.timings, tuple(warnings), parameters, chosen)


def _selection(name, given, default) -> frozenset[str]:
    if given is None:
        return frozenset(default)
    unknown = sorted(set(given) - set(PRODUCTS))
    if unknown:
        raise UsageError(f"{name} holds {unknown[0]!r}; expected some of {', '.join(PRODUCTS)}")
    return frozenset(given)


def _no_progress(step: str, done: int, total: int, text: str = "") -> None:
    """Take no notice."""


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
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
class _Job:
    """One call of `run`: its settings, and what it has done so far."""

    parameters: Parameters
    device: Device
    save: frozenset[str]
    keep: frozenset[str]
    overwrite: bool
    psfmask: str | PathLike | None
    output_dir: Path | None
    progress: Progress
    files: list[Path] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str):
        """Add the wall time of a block to a step's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[step] = self.timings.get(step, 0.0) + time.perf_counter() - start

    def association(self, path: Path) -> tuple[ProductResult, ...]:
        """Check everything that can be checked first, then process product by product."""
        from gpucoron.io.association import product_names, read_association
        from gpucoron.io.exposures import read_meta

        with self.timed("read"):
            association = read_association(path)
            metas = [read_meta(p.science[0].path) for p in association.products]
            names = product_names(association, metas)
        if self.save:
            self._preflight(association, names)
        results = []
        for product, name in zip(association.products, names, strict=True):
            log.info("product %s: %d science and %d reference exposures", name,
                     len(product.science), len(product.psf))
            results.append(_ProductRun(self, association, product, name).run())
        return tuple(results)

    def _preflight(self, association: Association, names: tuple[str, ...]) -> None:
        from gpucoron.io.products import preflight

        planned = [self.path(name, suffix, association.asn_id).name
                   for product, own in zip(association.products, names, strict=True)
                   for name, suffix in self._planned(product, own)]
        preflight(self.output_dir, planned, self.overwrite)

    def _planned(self, product: Product, name: str) -> Iterator[tuple[str, str]]:
        """Yield (root or product name, suffix) of every file that a product will write."""
        from gpucoron.io.association import exposure_root

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

    def path(self, name: str, suffix: str, asn_id: str | None) -> Path:
        """Return where a file goes."""
        from gpucoron.io.products import product_path

        return product_path(self.output_dir, name, asn_id, suffix)

    def write(self, suffix: str, path: Path, writer: Callable[..., None], *args) -> None:
        """Write one product and remember its file; one that this run wrote before is the same."""
        if path in self.files:
            return
        with self.timed("write"):
            writer(path, *args, overwrite=self.overwrite)
        log.debug("wrote %s", path)
        self.files.append(path)


class _ProductRun:
    """One product of an association, from its exposures to its combined image."""

    def __init__(self, job: _Job, association: Association, product: Product, name: str):
        self.job, self.association, self.product = job, association, product
        self.parameters = job.parameters
        self.result = ProductResult(name)

    def run(self) -> ProductResult:
        """Do the five steps."""
        science, references = self._read()
        self.provenance = self._provenance(science, references)
        mask = self._mask(science[0])
        stacked = self._references(references)
        subtracted = [self._science(exposure, stacked, references, mask) for exposure in science]
        if not self.parameters.resample.skip:
            self._resample(science, subtracted)
        return self.result

    # ---- input

    def _read(self) -> tuple[list[Exposure], list[Exposure]]:
        from gpucoron.io.association import check_members
        from gpucoron.io.exposures import read_exposure

        job = self.job
        members = (*self.product.science, *self.product.psf)
        exposures = []
        for done, member in enumerate(members, start=1):
            with job.timed("read"):
                exposures.append(read_exposure(member.path, member.exptype, pixels=False))
            job.progress("read", done, len(members), member.path.name)
        check_members(exposures)
        return ([e for e in exposures if e.exptype == "science"],
                [e for e in exposures if e.exptype == "psf"])

    def _provenance(self, science, references) -> Provenance:
        from gpucoron import __version__
        from gpucoron.io.products import Provenance

        association = self.association
        return Provenance(
            version=__version__, device=self.job.device.label, asn_id=association.asn_id,
            asn_table=association.table_name, asn_pool=association.asn_pool,
            parameters=self.parameters.flat(),
            inputs=[e.path.name for e in (*science, *references)])

    def _mask(self, exposure: Exposure) -> np.ndarray:
        from gpucoron.io.psfmask import find_psfmask

        with self.job.timed("read"):
            mask, name, how = find_psfmask(self.job.psfmask, exposure)
        self.result.psfmask = how
        self.provenance = replace(self.provenance, psfmask=name)
        return mask

    # ---- outlier_detection and stack_refs

    def _outliers(self, exposure: Exposure) -> IntegrationStack:
        """Flag one exposure's outliers, and write it."""
        from gpucoron.io.products import write_crfints, write_median
        from gpucoron.steps.outlier_detection import outlier_detection

        job, parameters = self.job, self.parameters.outlier_detection
        with job.timed("read"):
            stack = exposure.load()
        if parameters.skip:
            return stack
        with job.timed("outlier_detection"):
            out = outlier_detection(
                stack, snr=parameters.threshold, maskpt=parameters.maskpt,
                good_bits=parameters.good_bits)
        log.debug("%s: %d outliers", exposure.root, int(out.flagged.sum()))
        for name, array, writer in (("crfints", out.stack, write_crfints),
                                    ("median", out.median, write_median)):
            if name in job.keep:
                getattr(self.result, name)[exposure.root] = array
            if name in job.save:
                path = job.path(exposure.root, name, self.association.asn_id)
                job.write(name, path, writer, exposure, array, self.provenance)
        return out.stack

    def _references(self, references: list[Exposure]) -> IntegrationStack:
        from gpucoron.io.products import write_psfstack
        from gpucoron.steps.stack_refs import stack_refs

        job, stacks = self.job, []
        for done, exposure in enumerate(references, start=1):
            stacks.append(self._outliers(exposure).replace(
                var_poisson=None, var_rnoise=None, var_flat=None))
            job.progress("outlier_detection", done, len(references), exposure.root)
        with job.timed("stack_refs"):
            stacked = stack_refs(stacks, keep_unusable=self.parameters.like_jwst)
        self._compare_truncation(len(stacked))
        if "psfstack" in job.keep:
            self.result.psfstack = stacked
        if "psfstack" in job.save:
            path = job.path(self.result.name, "psfstack", self.association.asn_id)
            job.write("psfstack", path, write_psfstack, references, stacked, self.provenance)
        return stacked

    def _compare_truncation(self, n: int) -> None:
        truncate = self.parameters.klip.truncate
        if not self.parameters.klip.skip and truncate >= n:
            log.warning(
                "klip.truncate is %d, but there are %d reference images: the basis spans all of "
                "them, and psfsub's ERR (what the basis leaves of the references) is 0",
                truncate, n)

    # ---- align_refs and klip

    def _science(self, exposure, references, reference_exposures, mask) -> IntegrationStack:
        """Subtract the PSF from one science exposure."""
        from gpucoron.io.products import write_psfsub
        from gpucoron.steps.align_refs import Alignment

        job, parameters = self.job, self.parameters
        flagged = self._outliers(exposure)
        if parameters.klip.skip:
            log.info("%s: klip skipped, so no PSF is subtracted", exposure.root)
            return flagged
        with job.timed("align_refs"):
            alignment = Alignment(
                flagged, references, mask, align=parameters.align_refs.align,
                median_box_length=parameters.align_refs.median_box_length,
                bad_bits=parameters.align_refs.bad_bits, preset=parameters.preset,
                zero_non_science=(exposure.meta.instrument or "").upper() == "MIRI")
        with self._psfalign(exposure, reference_exposures, alignment) as writer:
            subtracted = self._subtract(exposure, flagged, alignment, writer)
        if "psfsub" in job.keep:
            self.result.psfsub[exposure.root] = subtracted
        if "psfsub" in job.save:
            path = job.path(exposure.root, "psfsub", self.association.asn_id)
            job.write("psfsub", path, write_psfsub, exposure, subtracted, self.provenance)
        # resample propagates VAR_*; where there are none it falls back on the input's ERR
        return subtracted.replace(err=flagged.err)

    def _psfalign(self, exposure, reference_exposures, alignment):
        from gpucoron.io.products import PsfalignWriter

        if "psfalign" not in self.job.save or self.parameters.align_refs.skip:
            return nullcontext()
        shape = alignment.shape
        if alignment.align == "each":
            shape = (len(alignment.science), *shape)
        path = self.job.path(exposure.root, "psfalign", self.association.asn_id)
        return PsfalignWriter(path, reference_exposures, shape, self.provenance,
                              overwrite=self.job.overwrite)

    def _subtract(self, exposure, flagged, alignment, writer) -> IntegrationStack:
        """Align, model and subtract, one batch of aligned references at a time."""
        from gpucoron.steps.align_refs import AlignedReferences
        from gpucoron.steps.klip import klip

        job, parameters = self.job, self.parameters
        filled = flagged.replace(data=alignment.science)
        data = np.full(flagged.shape, np.nan, dtype=np.float32)
        err = np.full(flagged.shape, np.nan, dtype=np.float32)
        kept, tables, keep = [], [], "psfalign" in job.keep
        for done, i in enumerate(alignment.integrations, start=1):
            with job.timed("align_refs"):
                if parameters.align_refs.skip:
                    fits = alignment.unshifted(i)
                else:
                    fits = alignment.fit(i)
                aligned = alignment.shift(fits)
                aligned_err = alignment.shift_err(fits) if writer or keep else None
            planes = slice(i, i + 1) if alignment.align == "each" else slice(None)
            if alignment.has_pixels(i):
                with job.timed("klip"):
                    part = klip(filled.planes(planes), aligned, parameters.klip.truncate)
                data[planes], err[planes] = part.data, part.err
            if writer is not None:
                with job.timed("write"):
                    row = done - 1 if alignment.align == "each" else 0
                    writer.write(row, aligned, aligned_err)
            if keep:
                kept.append((aligned, aligned_err))
            tables.append(fits)
            job.progress("align_refs, klip", done, len(alignment.integrations), exposure.root)
        table = np.concatenate(tables)
        if not parameters.align_refs.skip:
            self.result.fits[exposure.root] = table
            _report_fits(exposure.root, table)
        if kept:
            images, errors = (np.squeeze(np.stack(a), axis=0) if alignment.align == "first"
                              else np.stack(a) for a in zip(*kept, strict=True))
            self.result.psfalign[exposure.root] = AlignedReferences(images, errors, table)
        if writer is not None:
            with job.timed("write"):
                writer.close(table)
            job.files.append(writer.path)
        return flagged.replace(data=data, err=err)

    # ---- resample

    def _resample(self, science: list[Exposure], subtracted: list[IntegrationStack]) -> None:
        from gpucoron.io import wcs as wcs_module
        from gpucoron.io.products import write_i2d
        from gpucoron.steps.resample import resample

        job, parameters = self.job, self.parameters.resample
        with job.timed("resample"):
            inputs = [wcs_module.read_wcs(e.asdf_bytes, e.path.name) for e in science]
            shapes = [s.shape[1:] for s in subtracted]
            output = wcs_module.output_wcs(
                inputs, [e.meta for e in science], shapes,
                pixel_scale=parameters.pixel_scale,
                pixel_scale_ratio=parameters.pixel_scale_ratio, rotation=parameters.rotation,
                crpix=parameters.crpix, crval=parameters.crval,
                output_shape=parameters.output_shape, output_wcs_file=parameters.output_wcs)
            maps = {}
            for wcs, shape in zip(inputs, shapes, strict=True):
                if wcs.key not in maps:
                    maps[wcs.key] = wcs_module.pixel_map(wcs, output, shape)
            image = resample(
                subtracted, [maps[w.key] for w in inputs], output.shape,
                pixel_scale_ratio=output.pixel_scale_ratio,
                exposure_times=[_exposure_time(e) for e in science], pixfrac=parameters.pixfrac,
                kernel=parameters.kernel, fillval=parameters.fillval,
                weight_type=parameters.weight_type,
                err_from="var" if self.parameters.like_jwst else "auto")
        job.progress("resample", 1, 1, self.result.name)
        if "i2d" in job.keep:
            self.result.i2d, self.result.wcs = image, output
        if "i2d" in job.save:
            path = job.path(self.result.name, "i2d", self.association.asn_id)
            job.write("i2d", path, write_i2d, science, image, output, self.provenance)


def _exposure_time(exposure: Exposure) -> float | None:
    """Return what weights an exposure with ``weight_type="exptime"``, s."""
    meta = exposure.meta
    return meta.exposure_time if meta.measurement_time is None else meta.measurement_time


def _report_fits(root: str, table: np.ndarray) -> None:
    """Say how far the references were moved, and which fits are no good."""
    failed = table[table["status"] == 1]
    if len(failed):
        worst = ", ".join(f"{r['sci_integration']}/{r['ref_plane']}" for r in failed[:5])
        log.warning("%s: %d of %d alignments did not converge (integration/reference %s%s)",
                    root, len(failed), len(table), worst, " ..." if len(failed) > 5 else "")
    good = table[table["status"] == 0]
    if len(good):
        length = np.hypot(good["x"], good["y"])
        log.info("%s: %d alignments, shifts of %.3f px (median) to %.3f px (largest)",
                 root, len(table), float(np.median(length)), float(length.max()))
