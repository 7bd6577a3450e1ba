"""One product of an association: the five steps, in batches, and what becomes of their results."""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.analysis.record import Record
from gpucoron.backend.prefetch import read_ahead
from gpucoron.backend.transfer import Host, places
from gpucoron.errors import InputError, UsageError
from gpucoron.pipeline.planning import MIB, Plan, make_plan
from gpucoron.pipeline.result import ProductResult
from gpucoron.pipeline.resume import can_read_back, read_back

if TYPE_CHECKING:
    from gpucoron.core.stack import IntegrationStack
    from gpucoron.io.association import Association, Product
    from gpucoron.io.exposures import Exposure
    from gpucoron.io.products import Provenance
    from gpucoron.pipeline.job import Job
    from gpucoron.pipeline.subtraction import Share

__all__ = ["ProductRun"]

log = logging.getLogger("gpucoron")


class ProductRun:
    """One product of an association, from its exposures to its combined image."""

    def __init__(self, job: Job, association: Association, product: Product, name: str):
        self.job, self.association, self.product = job, association, product
        self.parameters = job.parameters
        self.record = Record.of(association, product)
        self.result = ProductResult(name, record=self.record, left_out=product.left_out)

    def run(self) -> ProductResult:
        """Do the five steps."""
        self.places = places(self.job.device)
        with self.places[0].here():
            return self._run()

    def _run(self) -> ProductResult:
        science, references = self._begin()
        self.stacks = self._loaded([*references, *science])
        prepared = self._prepared(science, references)
        subtracted = [self._science(e, prepared, references, self.mask) for e in science]
        del prepared
        self._combine(science, subtracted)
        self.record.to_host()
        return self.result

    def _begin(self) -> tuple[list[Exposure], list[Exposure]]:
        """Read and check all but pixels."""
        science, references = self.read()
        self.record.note_exposures(*science, *references)
        self.batch = self._batch(science, references)
        self.provenance = self._provenance(science, references)
        self.mask = self._mask(science[0])
        return science, references

    def _loaded(self, exposures):
        """Yield the images of exposures, each read while the one before is worked on."""
        return read_ahead(
            lambda exposure: self.places[0].upload(exposure.load()), exposures, self.job.threads > 1
        )

    def _prepared(self, science, references) -> list | None:
        """Stack the references and prepare them for every device."""
        stacked = self._references(references)
        if self.parameters.klip.skip or all(can_read_back(self, e) for e in science):
            return None
        return self._prepare(stacked, science[0], self.mask)

    def _combine(self, science, subtracted) -> None:
        """Put all science exposures together, once for each truncation."""
        if not self.parameters.resample.skip:
            for truncate in subtracted[0]:
                self._resample(science, [stacks[truncate] for stacks in subtracted], truncate)

    def _provenance_of(self, truncate: int) -> Provenance:
        return replace(
            self.provenance, parameters={**self.provenance.parameters, "klip.truncate": truncate}
        )

    @contextmanager
    def _step(self, name: str, place: Host | None = None):
        """Do a step on the first device or another: timed, and what fails there in one line."""
        place = place or self.places[0]
        with self.job.timed(name), place.here(), place.errors(name):
            yield
            place.finish()

    # ---- input

    def plan(self, science: list[Exposure], references: list[Exposure]) -> Plan:
        """Predict what this product takes."""
        return make_plan(
            self.result.name,
            [e.shape for e in science],
            [e.shape for e in references],
            self.parameters,
            self.job.save,
            self.job.keep,
            budget=self.job.budget(),
            threads=self.job.threads,
        )

    def _batch(self, science, references) -> int:
        """Return how many references to shift at a time, within the memory allowed."""
        plan, budget = self.plan(science, references), self.job.budget()
        log.debug(
            "%d pairs, %d references at a time, about %d MiB",
            plan.pairs,
            plan.batch,
            plan.memory // MIB,
        )
        if plan.least_memory > budget:
            text = (
                f"{self.result.name}: needs about {plan.least_memory // MIB} MiB, and "
                f"{budget // MIB} MiB are allowed"
            )
            if self.job.memory is not None:
                raise UsageError(f"{text}; give --memory {-(-plan.least_memory // MIB)}MiB or more")
            log.warning("%s by default (half of what is free); going on", text)
        return plan.batch

    def read(self) -> tuple[list[Exposure], list[Exposure]]:
        """Return all exposures, found good before any work was done; their pixels not yet read."""
        science, references = (
            [self.job.exposures[m.path, m.exptype] for m in members]
            for members in (self.product.science, self.product.psf)
        )
        return science, references

    def _provenance(self, science, references) -> Provenance:
        from gpucoron import __version__
        from gpucoron.io.products import Provenance

        association = self.association
        return Provenance(
            version=__version__,
            device=self.job.device.label,
            asn_id=association.asn_id,
            asn_table=association.table_name,
            asn_pool=association.asn_pool,
            parameters=self.parameters.flat(),
            inputs=[e.path.name for e in (*science, *references)],
        )

    def _mask(self, exposure: Exposure) -> np.ndarray:
        from gpucoron.io.psfmask import find_psfmask

        with self.job.timed("read"):
            mask, name, how = find_psfmask(self.job.psfmask, exposure, self.job.checksums)
        self.result.psfmask, self.record.mask = how, mask
        self.job.record.check_psfmask(self.result.name, name, mask)
        self.provenance = replace(self.provenance, psfmask=name)
        return mask

    # ---- outlier_detection and stack_refs

    def _outliers(self, exposure: Exposure) -> IntegrationStack:
        """Flag the outliers of the exposure that is read next, and write it."""
        from gpucoron.io.products import write_crfints, write_median
        from gpucoron.steps.outlier_detection import outlier_detection

        job, parameters = self.job, self.parameters.outlier_detection
        with job.timed("read"):
            stack = next(self.stacks)
        if parameters.skip:
            return stack
        with self._step("outlier_detection"):
            out = outlier_detection(
                stack,
                snr=parameters.threshold,
                maskpt=parameters.maskpt,
                good_bits=parameters.good_bits,
                preset=self.parameters.preset,
            )
        log.debug("%s: %d outliers", exposure.root, int(out.flagged.sum()))
        self.record.note_outliers(exposure.root, out)
        for name, array, writer in (
            ("crfints", out.stack, write_crfints),
            ("median", out.median, write_median),
        ):
            host = self.places[0].later(array, brief=name not in job.keep)
            if name in job.keep:
                getattr(self.result, name)[exposure.root] = host()
            if name in job.save:
                path = job.path(exposure.root, name, self.association.asn_id)
                job.write(path, writer, exposure, host, self.provenance)
        return out.stack

    def _references(self, references: list[Exposure]) -> IntegrationStack:
        from gpucoron.io.products import write_psfstack
        from gpucoron.steps.stack_refs import stack_refs

        job, stacks = self.job, []
        for done, exposure in enumerate(references, start=1):
            stacks.append(
                self._outliers(exposure).replace(var_poisson=None, var_rnoise=None, var_flat=None)
            )
            job.progress("outlier_detection", done, len(references), exposure.root)
        with self._step("stack_refs"):
            stacked = stack_refs(stacks, keep_unusable=self.parameters.like_jwst)
        self._compare_truncation(len(stacked))
        self.record.sources = stacked.sources
        host = self.places[0].later(stacked, brief="psfstack" not in job.keep)
        if "psfstack" in job.keep:
            self.result.psfstack = host()
        if "psfstack" in job.save:
            path = job.path(self.result.name, "psfstack", self.association.asn_id)
            job.write(path, write_psfstack, references, host, self.provenance)
        return stacked

    def _compare_truncation(self, n: int) -> None:
        truncate = max(self.parameters.klip.truncations)
        if not self.parameters.klip.skip and truncate >= n:
            log.warning(
                "klip.truncate is %d, and there %s %d reference image%s: the basis spans all of "
                "them, and psfsub's ERR (what the basis leaves of the references) is 0",
                truncate,
                "is" if n == 1 else "are",
                n,
                "s"[: n != 1],
            )

    # ---- align_refs and klip

    def _prepare(self, stacked: IntegrationStack, exposure: Exposure, mask: np.ndarray) -> list:
        """Fill and transform the references on every device, once for all science exposures."""
        from gpucoron.steps.filling import Filling, PreparedReferences

        self.job.started()
        parameters, prepared = self.parameters.align_refs, []
        filling = Filling(
            parameters.median_box_length,
            parameters.bad_bits,
            (exposure.meta.instrument or "").upper() == "MIRI",
            self.parameters.preset,
        )
        with_err = not parameters.skip and "psfalign" in self.job.save | self.job.keep
        for place in self.places:
            with self._step("align_refs", place):
                own = self._on(place, stacked)
                prepared.append(PreparedReferences(own, filling, with_err, mask))
        return prepared

    def _on(self, place: Host, stack: IntegrationStack) -> IntegrationStack:
        """Return a stack of the first device on another one."""
        if place is self.places[0]:
            return stack
        return place.upload(self.places[0].later(stack)())

    def _science(self, exposure, references, reference_exposures, mask):
        """Subtract the PSF from one science exposure; gives a stack for each truncation."""
        from gpucoron.io.products import write_psfsub

        job, parameters = self.job, self.parameters
        flagged = self._outliers(exposure)
        if parameters.klip.skip:
            log.info("%s: klip skipped, so no PSF is subtracted", exposure.root)
            self.record.note_subtracted(exposure.root, flagged, {})
            return {parameters.klip.truncations[0]: flagged}
        if can_read_back(self, exposure):
            subtracted = read_back(self, exposure, flagged)
        else:
            shares = self._shares(exposure, flagged, references, mask)
            with self._psfalign(exposure, reference_exposures, shares[0].alignment) as writer:
                subtracted = self._subtract(exposure, shares, writer)
        self.record.note_subtracted(exposure.root, flagged, subtracted)
        for truncate, stack in subtracted.items():
            host = self.places[0].later(stack, brief="psfsub" not in job.keep)
            if "psfsub" in job.keep:
                self.result.psfsub[exposure.root + job.tag(truncate)] = host()
            if "psfsub" in job.save:
                path = job.path(exposure.root, "psfsub", self.association.asn_id)
                job.write(
                    job.tagged(path, "psfsub", truncate),
                    write_psfsub,
                    exposure,
                    host,
                    self._provenance_of(truncate),
                )
        # resample propagates VAR_*; where there are none it falls back on the input's ERR
        return {k: stack.replace(err=flagged.err) for k, stack in subtracted.items()}

    def _shares(self, exposure, flagged, references, mask) -> list[Share]:
        """Plan the alignment of a science exposure on every device."""
        from gpucoron.pipeline.subtraction import Share
        from gpucoron.steps.align_refs import Alignment

        shares = []
        for place, prepared in zip(self.places, references, strict=True):
            with self._step("align_refs", place):
                own = self._on(place, flagged)
                try:
                    alignment = Alignment(
                        own,
                        prepared,
                        mask,
                        batch=self.batch,
                        align=self.parameters.align_refs.align,
                    )
                except InputError as problem:
                    raise InputError(f"{exposure.path.name}: {problem}") from problem
            shares.append(Share(place, own, alignment))
        empty = [i + 1 for i in range(len(flagged)) if not shares[0].alignment.has_pixels(i)]
        if empty:
            log.warning(
                "%s: integration%s %s ha%s no usable pixel and come%s out NaN",
                exposure.root,
                "s"[: len(empty) > 1],
                ", ".join(map(str, empty)),
                "ve" if len(empty) > 1 else "s",
                "" if len(empty) > 1 else "s",
            )
        return shares

    def _psfalign(self, exposure, reference_exposures, alignment):
        from gpucoron.io.products import PsfalignWriter

        if "psfalign" not in self.job.save or self.parameters.align_refs.skip:
            return nullcontext()
        path = self.job.path(exposure.root, "psfalign", self.association.asn_id)
        if self.job.record.has(path):
            self.job.files.append(path)
            return nullcontext()
        shape = alignment.shape
        if alignment.align == "each":
            shape = (len(alignment.science), *shape)
        return PsfalignWriter(
            path, reference_exposures, shape, self.provenance, overwrite=self.job.overwrite
        )

    def _subtract(self, exposure, shares, writer) -> dict[int, IntegrationStack]:
        """Align, model and subtract; complete psfalign and tell how the fits went."""
        from gpucoron.pipeline.subtraction import Subtraction
        from gpucoron.steps.align_refs import AlignedReferences

        job, skip = self.job, self.parameters.align_refs.skip
        work = Subtraction(job, exposure.root, shares, "psfalign" in job.keep and not skip)
        subtracted = work.run(writer)
        self.record.exposures[exposure.root].eigenvalues = work.spectra
        if not skip:
            self.result.fits[exposure.root] = work.table
            _report_fits(exposure.root, work.table)
        if work.kept:
            images, errors = (
                np.stack(a) if work.each else a[0] for a in zip(*work.kept, strict=True)
            )
            self.result.psfalign[exposure.root] = AlignedReferences(images, errors, work.table)
        if writer is not None:
            with job.timed("write"):
                job.background.wait()
                writer.close(work.table)
            job.record.wrote(writer.path)
            job.files.append(writer.path)
        return subtracted

    # ---- resample

    def _resample(
        self, science: list[Exposure], subtracted: list[IntegrationStack], truncate: int
    ) -> None:
        from gpucoron.io import wcs as wcs_module
        from gpucoron.io.products import write_i2d
        from gpucoron.steps.resample import resample

        job, parameters = self.job, self.parameters.resample
        with self._step("resample"):
            inputs = [wcs_module.read_wcs(e.asdf_bytes, e.path.name) for e in science]
            shapes = [s.shape[1:] for s in subtracted]
            output = wcs_module.output_wcs(
                inputs,
                [e.meta for e in science],
                shapes,
                pixel_scale=parameters.pixel_scale,
                pixel_scale_ratio=parameters.pixel_scale_ratio,
                rotation=parameters.rotation,
                crpix=parameters.crpix,
                crval=parameters.crval,
                output_shape=parameters.output_shape,
                output_wcs_file=parameters.output_wcs,
            )
            maps = {}
            for wcs, shape in zip(inputs, shapes, strict=True):
                if wcs.key not in maps:
                    maps[wcs.key] = self.places[0].upload(wcs_module.pixel_map(wcs, output, shape))
            image = resample(
                subtracted,
                [maps[w.key] for w in inputs],
                output.shape,
                pixel_scale_ratio=output.pixel_scale_ratio,
                exposure_times=[_exposure_time(e) for e in science],
                pixfrac=parameters.pixfrac,
                kernel=parameters.kernel,
                fillval=parameters.fillval,
                weight_type=parameters.weight_type,
                err_from="var" if self.parameters.like_jwst else "auto",
            )
        self.record.note_combined(truncate, image, output)
        job.progress("resample", 1, 1, self.result.name)
        host = self.places[0].later(image, brief="i2d" not in job.keep)
        if "i2d" in job.keep:
            self.result.i2ds[truncate] = host()
            self.result.i2d, self.result.wcs = next(iter(self.result.i2ds.values())), output
        if "i2d" in job.save:
            path = job.path(self.result.name, "i2d", self.association.asn_id)
            job.write(
                job.tagged(path, "i2d", truncate),
                write_i2d,
                science,
                host,
                output,
                self._provenance_of(truncate),
            )


def _exposure_time(exposure: Exposure) -> Any:
    """Return what weights an exposure with ``weight_type="exptime"``, s."""
    meta = exposure.meta
    return meta.exposure_time if meta.measurement_time is None else meta.measurement_time


def _report_fits(root: str, table: np.ndarray) -> None:
    """Say how far the references were moved, and which fits are no good."""
    failed = table[table["status"] == 1]
    if len(failed):
        worst = ", ".join(f"{r['sci_integration']}/{r['ref_plane']}" for r in failed[:5])
        log.warning(
            "%s: %d of %d alignments did not converge (integration/reference %s%s)",
            root,
            len(failed),
            len(table),
            worst,
            " ..." if len(failed) > 5 else "",
        )
    good = table[table["status"] == 0]
    if len(good):
        length = np.hypot(good["x"], good["y"])
        log.info(
            "%s: %d alignments, shifts of %.3f px (median) to %.3f px (largest)",
            root,
            len(table),
            float(np.median(length)),
            float(length.max()),
        )
