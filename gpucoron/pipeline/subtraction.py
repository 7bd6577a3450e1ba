"""Align and subtract one science exposure in batches, on one or several devices."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.core.stack import KLIP_VARIANCES
from gpucoron.errors import DeviceMemoryError
from gpucoron.ops.dq import DO_NOT_USE, NON_SCIENCE
from gpucoron.ops.registration import LEFT_OUT
from gpucoron.pipeline.responses import (
    SourceResponse,
    Subtracted,
    answer_of,
    basis_response,
    gram_response,
)
from gpucoron.steps.klip import basis, klip
from gpucoron.steps.model_flags import estimated_models
from gpucoron.steps.psf_noise import own_variance, reference_noise, with_scatter
from gpucoron.steps.reference_ranking import rank_references, with_shares
from gpucoron.steps.roll_subtraction import subtract_rolls

if TYPE_CHECKING:
    from gpucoron.backend.transfer import CpuBackend
    from gpucoron.core.stack import IntegrationStack, PlaneSource
    from gpucoron.io.products import PsfalignWriter
    from gpucoron.ops.zones import Zones
    from gpucoron.pipeline.responses import References
    from gpucoron.pipeline.run import Run
    from gpucoron.steps.align_refs import Alignment
    from gpucoron.steps.psf_noise import ReferenceErrors

log = logging.getLogger("gpucoron")

LARGEST_GROUP = 32  # integrations that a GPU takes at once; more are no faster
_SPARE = 0.85  # share of a device's free memory that is planned for


class DeviceWork(NamedTuple):
    """The work of one device: its stack and alignment."""

    place: CpuBackend
    stack: IntegrationStack  # the science exposure, there
    alignment: Alignment
    weight: np.ndarray | None = None  # (ny, nx) of the pixels in KLIP, on the host


class Ranked(NamedTuple):
    """What is needed to rank references."""

    sources: Sequence[PlaneSource]
    center: tuple[float, float]  # the star, about, pixels from 0


class Subtraction:
    """Align the references to a science exposure and subtract its KLIP model.

    The result, for each of `truncations`, is put together on the first of the devices that share
    the work; with `keep`, aligned references are kept. Without `truncations` the references are
    aligned only. With `zones` KLIP is done in each of them, by the references that
    `allowed` (nzones, n, nref) says.

    Attributes
    ----------
    table : (npairs,) structured array of `gpucoron.steps.align_refs.FITS_DTYPE`
        After `run`.
    kept : list of (images, errors, flags)
        Aligned references of each fitted integration, on the host, if wanted.
    spectra : list of (rank,) arrays
        Eigenvalues of each KL basis, where it was made.
    ranking : (n_exposures,) structured array or None
        `gpucoron.steps.reference_ranking.RANKING_DTYPE`, where it was asked for by `ranked`.
    response : SourceResponse or None
        What is left of a source in the exposure, if it is to be kept, by `responding`. With
        references of its own for every integration it is that of the first.
    """

    def __init__(
        self,
        job: Run,
        root: str,
        shares: list[DeviceWork],
        truncations: Sequence[int],
        keep: bool,
        zones: Zones | None = None,
        allowed: np.ndarray | None = None,
        ranked: Ranked | None = None,
        responding: References | None = None,
    ):
        self.job, self.root, self.shares, self._keep = job, root, shares, keep
        self.truncations, self._zones, self._allowed = truncations, zones, allowed
        self._ranked, self._responding = ranked, responding
        self.ranking: np.ndarray | None = None
        self.skip = job.parameters.align_refs.skip
        self.joint = shares[0].alignment.align == "joint" and not self.skip
        self.each = shares[0].alignment.align != "first"
        self.table: Any = None
        self.kept: list = []
        self.spectra: list = []
        self.response: SourceResponse | None = None
        self._first: tuple[Any, Any] | None = None  # references of one integration, and its fits
        self._errors: dict[int, ReferenceErrors | None] = {}
        self._lock = threading.Lock()
        self._weights: list | None = None
        self._done = 0
        self._tables: dict[int, np.ndarray] = {}
        self._aligned: dict[int, tuple] = {}

    def run(self, writer: PsfalignWriter | None) -> dict[int, IntegrationStack]:
        """Align and subtract; return a stack for each truncation.

        Aligned references are written as they come about.
        """
        stack, integrations = self.shares[0].stack, self.shares[0].alignment.integrations
        xp, like_jwst = cuda.array_namespace(stack.data), self.job.parameters.like_jwst
        names = ("data", "err") if like_jwst else ("data", "err", *KLIP_VARIANCES)
        self._out = {
            k: {name: xp.full(stack.shape, np.nan, dtype=np.float32) for name in names}
            for k in self.truncations
        }
        n_references = self.shares[0].alignment.shape[0]
        of_zones = () if self._zones is None else (len(self._zones),)
        shape = (*of_zones, len(stack), n_references)
        self._coefficients = {k: np.zeros(shape) for k in self.truncations}
        self._writer, self._total = writer, len(integrations)
        if self.joint:
            self._run_jointly(self.shares[0], integrations)
            return self._finish(integrations)
        parts = [part.tolist() for part in np.array_split(integrations, len(self.shares))]
        if len(self.shares) == 1:
            self._run_on_device(self.shares[0], parts[0])
        else:
            with ThreadPoolExecutor(len(parts), "gpucoron-device") as pool:
                list(pool.map(self._run_on_device, self.shares, parts))
        return self._finish(integrations)

    def _finish(self, integrations):
        self.table = np.concatenate([self._tables[i] for i in integrations])
        self.kept = [self._aligned[i] for i in integrations if self._keep]
        if self.ranking is not None and self._ranked is not None:
            rows = self._coefficients[max(self.truncations)]
            self.ranking = with_shares(self.ranking, self._ranked.sources, rows)
        if self._first is not None:
            work = self.shares[0]
            with work.place.activate():
                self._respond(work, *self._first, work.alignment.science_missing)
        stack, errors = self.shares[0].stack, self._errors.get(0)
        flags, stacks = self._flags(), {}
        reference_dq = self.shares[0].alignment.reference_dq(not self.skip) if self._out else None
        for k, planes in self._out.items():
            dq = flags
            if reference_dq is not None:
                estimated = estimated_models(self._coefficients[k], reference_dq, self._zones)
                dq = flags | cuda.array_namespace(flags).asarray(estimated)
            stack = stack.replace(dq=dq)
            if errors is None:
                stacks[k] = stack.replace(data=planes["data"], err=planes["err"])
                continue
            with self.shares[0].place.activate():
                shared = reference_noise(self._coefficients[k], errors, self._zones)
            stacks[k] = stack.replace(**planes, reference_noise=shared)
        return stacks

    def _flags(self):
        """Return DQ of the result, with NON_SCIENCE where no PSF was subtracted."""
        alignment = self.shares[0].alignment
        if self._zones is None or not self._out:
            return alignment.science_dq
        data = next(iter(self._out.values()))["data"]
        xp = cuda.array_namespace(data)
        outside = xp.isnan(data) & xp.isfinite(alignment.science)
        bits = np.uint32(DO_NOT_USE | NON_SCIENCE)
        return alignment.science_dq | xp.where(outside, bits, np.uint32(0))

    def _run_jointly(self, work, integrations):
        """Subtract from all integrations with one decomposition, on one device."""
        place, alignment = work.place, work.alignment
        with place.activate(), place.errors("align_refs, klip"):
            with self._timed(place, "align_refs"):
                positions = alignment.positions
                aligned = alignment.in_common_frame()
            self.job.progress("align_refs", 1, 1, self.root)
            if self.truncations:
                with self._timed(place, "klip"):
                    errors = self._reference_errors(work, None)
                    self._klip(work, integrations, aligned[None], errors, positions.science)
                self.job.progress("klip", 1, 1, self.root)
            self._tables = {i: alignment.fit(i) for i in integrations}
            if self._writer is None and not self._keep:
                return
            buffer = aligned[None]
            for i in integrations:
                with self._timed(place, "align_refs"):
                    alignment.shift(self._tables[i], buffer[0])
                    self._keep_aligned(work, [i], buffer, [self._tables[i]])
                self._write(work, [i], buffer, [self._tables[i]])

    def _run_on_device(self, work, integrations):
        """Process the integrations of one device, in smaller groups if its memory is full."""
        size, start, buffer = self._group_size(work), 0, None
        with work.place.activate():
            while start < len(integrations):
                group = integrations[start : start + size]
                try:
                    with work.place.errors("align_refs, klip"):
                        if buffer is None:
                            xp = cuda.array_namespace(work.stack.data)
                            buffer = xp.empty((len(group), *work.alignment.shape))
                        self._group(work, group, buffer[: len(group)])
                    start += len(group)
                except DeviceMemoryError as problem:
                    if len(group) == 1:
                        raise
                    size, buffer = (len(group) + 1) // 2, None
                    log.info(
                        "%s; going on with %d integration%s at a time",
                        str(problem),
                        size,
                        "s"[: size != 1],
                    )
                if buffer is None:
                    gc.collect()  # what failed still holds its arrays

    def _group_size(self, work):
        """Return the number of integrations to process at once."""
        free = work.place.free_memory()
        if free is None or not self.each:
            return 1
        if self.job.memory is not None:
            free = min(free, self.job.budget())
        aligned = 8 * int(np.prod(work.alignment.shape, dtype=np.int64))
        # beside the aligned images: spectra on the way, the transform's and the products' memory
        return int(min(LARGEST_GROUP, max(1, (_SPARE * free - 4 * aligned) // (1.1 * aligned))))

    def _group(self, work, group, aligned):
        """Align the references to some integrations and subtract."""
        place, alignment = work.place, work.alignment
        with self._timed(place, "align_refs"):
            fits = [alignment.unshifted(i) if self.skip else alignment.fit(i) for i in group]
            for images, pair_fits in zip(aligned, fits, strict=True):
                alignment.shift(pair_fits, images)
            self._keep_aligned(work, group, aligned, fits)
        if not place.is_gpu:  # where klip changes the aligned images
            self._write(work, group, aligned, fits)
        if self.truncations:
            with self._timed(place, "klip"):
                self._klip(work, group, aligned, self._reference_errors(work, fits), fits=fits)
        if place.is_gpu:
            self._write(work, group, aligned, fits)
        with self._lock:
            self._tables.update(zip(group, fits, strict=True))
            self._done += len(group)
            steps = "align_refs, klip" if self.truncations else "align_refs"
            self.job.progress(steps, self._done, self._total, self.root)

    def _keep_aligned(self, work, group, aligned, fits):
        """Keep aligned references on the host, where they are wanted."""
        if not self._keep:
            return
        kept = [
            (
                *work.place.download_later((images.copy(), work.alignment.shift_err(pair_fits)))(),
                work.alignment.shift_dq(pair_fits),
            )
            for images, pair_fits in zip(aligned, fits, strict=True)
        ]
        self._aligned.update(zip(group, kept, strict=True))

    def _reference_errors(self, work, fits):
        """Return the noise of the references, moved as for the first integration of a device.

        `fits` are those of some integrations; None where one decomposition serves all.
        """
        share = next(k for k, one in enumerate(self.shares) if one is work)
        if self.job.parameters.like_jwst or share in self._errors:
            return self._errors.get(share)
        usable = fits and [f for f in fits if (f["status"] != LEFT_OUT).any()]
        errors = work.alignment.reference_errors(usable[0] if usable else None)
        if usable or fits is None:
            self._errors[share] = errors
        return errors

    def _klip(self, work, group, aligned, errors, offsets=None, fits=None):
        own = self.each and offsets is None  # references of its own for each integration
        planes = slice(group[0], group[-1] + 1) if own else slice(None)
        filled = work.stack.replace(data=work.alignment.science).planes(planes)
        missing = work.alignment.science_missing
        coefficients: list = []
        bases: list = []
        options: dict[str, Any] = {
            "offsets": offsets,
            "weight": self._weight(work),
            "errors": errors,
            "coefficients": coefficients,
            "missing": None if missing is None else missing[planes],
        }
        seen = next((k for k, i in enumerate(group) if work.alignment.has_pixels(i)), None)
        responds = self._responding is not None and self.response is None and seen is not None
        if own and responds and self._first is None and not self._simple:
            self._first = aligned[seen].copy(), fits[seen]
        # one integration shares its references with itself, and the KL vectors can be kept
        alone = own and len(group) == 1 and seen is not None and not work.place.is_gpu
        if own and responds and self._simple and not alone:
            bases.append(basis(aligned[seen].copy(), True, options["weight"]))
        references = aligned if own and not alone else aligned[0]
        if self.ranking is None and work is self.shares[0]:
            self._rank(filled.data, aligned[0], options["weight"])
        parts: Any
        if self.job.parameters.klip.mode == "roll":
            parts = [subtract_rolls(filled, references, **options)]
        else:
            allowed = self._allowed
            parts = klip(
                filled,
                references,
                list(self._out),
                overwrite_references=True,
                spectra=self.spectra,
                bases=bases,
                zones=self._zones,
                allowed=None if allowed is None else allowed[:, planes],
                maxnumbasis=self.job.parameters.klip.maxnumbasis,
                **options,
            )
        if errors is None and not self.job.parameters.like_jwst:
            noise = own_variance(filled, filled.err[0] * 0)
            parts = [with_scatter(part, noise) for part in parts]
        self._keep_results(work, planes, parts, coefficients)
        if not responds or self._first is not None:
            return
        if self._simple and bases:
            vectors = bases[0].kl_vectors(max(self.truncations))
            answer = self._answer(work, offsets)
            self.response = basis_response(vectors, options["weight"], missing, offsets, answer)
        elif not self._simple:
            self._respond(work, aligned[0], None if fits is None else fits[0], missing, offsets)

    def _keep_results(self, work, planes, parts, coefficients):
        """Put what was subtracted from some integrations on the first device."""
        first = self.shares[0].place
        for k, part, rows in zip(self._out, parts, coefficients, strict=True):
            out = self._out[k]
            self._coefficients[k][..., planes, :] = to_host(rows)
            names = [name for name in out if getattr(part, name) is not None]
            images = tuple(getattr(part, name) for name in names)
            if work.place is not first:
                images = first.upload(work.place.download_later(images)())
            with first.activate():
                for name, image in zip(names, images, strict=True):
                    out[name][planes] = image

    def _rank(self, targets, references, weight):
        """Compare the references with the target, as they are aligned to the first integration."""
        if self._ranked is None:
            return
        sources, center = self._ranked
        truncate = max(self.truncations) or references.shape[0]
        self.ranking = rank_references(
            targets, references, sources, center, truncate=truncate, weight=weight
        )

    @property
    def _simple(self) -> bool:
        """Whether KL vectors of whole images alone tell what is left of a source."""
        klip, rolls = self.job.parameters.klip, self._responding and self._responding.rolls
        chosen = self._allowed is not None or klip.maxnumbasis is not None
        return not (rolls or chosen or self._zones is not None)

    def _answer(self, work, offsets):
        """Return how the registration answers to a source; None where nothing is aligned."""
        if self.skip:
            return None
        science, like_jwst = work.alignment.science, self.job.parameters.like_jwst
        left = self._out[max(self.truncations)]["data"]
        return answer_of(science, left, offsets, work.alignment, like_jwst)

    def _respond(self, work, references, fits, missing, offsets=None) -> None:
        """Note what is left of a source, whose stamps stand where the star is on average."""
        done = Subtracted(
            work.alignment.science,
            references,
            self._coefficients[max(self.truncations)],
            self._weight(work),
            missing,
            offsets,
            self._zones,
            self.job.parameters.klip.mode == "roll",
            self._answer(work, offsets),
        )
        if self._responding is not None:
            self.response = gram_response(done, self._responding, work.alignment, fits)
        self._first = None

    def _weight(self, work):
        """Return the weights of the pixels: without known sources, and without areas of no data."""
        with self._lock:
            if self._weights is None:
                own = (work.weight, work.alignment.klip_weight(aligned=not self.skip))
                self._weights = [w for w in own if w is not None]
        return np.prod(self._weights, axis=0) if self._weights else None

    def _write(self, work, group, aligned, fits):
        """Write aligned references in the background, on the CPU a batch at a time."""
        if self._writer is None:
            return
        place, alignment = work.place, work.alignment
        parts = [slice(0, alignment.shape[0])] if place.is_gpu else alignment.batches()
        for i, images, pair_fits in zip(group, aligned, fits, strict=True):
            for part in parts:
                with self.job.timed("align_refs"):
                    planes = place.download_later(
                        (
                            images[part].astype(np.float32),
                            alignment.shift_err(pair_fits, part).astype(np.float32),
                        ),
                        pinned=True,
                    )
                with self.job.timed("write"):
                    flags = partial(alignment.shift_dq, pair_fits, part)
                    self.job.background.submit(
                        self._put, self._writer, i if self.each else 0, planes, flags, part.start
                    )

    @staticmethod
    def _put(writer, row, planes, flags, start):
        writer.write(row, *planes(), start, flags())

    @contextmanager
    def _timed(self, place, step):
        with self.job.timed(step):
            yield
            place.finish()
