"""A product in several tasks: some exposures are subtracted here, others there, all end together.

`ProductRun` does the work; these say which part of it, and pass images on through the file system.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.backend.transfer import places
from gpucoron.errors import OutputError
from gpucoron.pipeline.product import ProductRun
from gpucoron.pipeline.result import ProductResult

if TYPE_CHECKING:
    from gpucoron.cluster.messages import Order, Piece
    from gpucoron.pipeline.job import Job

__all__ = ["EndRun", "PartRun", "WholeRun"]


class WholeRun(ProductRun):
    """A product from beginning to end, told what to do by an `Order`."""

    def __init__(self, job: Job, association, product, name: str, order: Order):
        super().__init__(job, association, product, name)
        self.order = order

    def _mask(self, exposure):
        mask = super()._mask(exposure)
        if self.order.psfmask:  # products name it as the user did
            given = self.order.psfmask[0]
            self.provenance = replace(self.provenance, psfmask=given)
            self.result.psfmask = f"given: {given}"
        return mask

    def _leave(self, exposures, *suffixes: str) -> None:
        """Take products of exposures as written: another task does that."""
        self.job.begun.update(
            self.job.path(e.root, suffix, self.association.asn_id)
            for e in exposures
            for suffix in suffixes
        )

    def _scratch(self, exposure: int, truncate: int, first: int) -> Path:
        """Return where subtracted images are between two tasks."""
        return Path(self.order.scratch) / f"{self.result.name}-{exposure}-{truncate}-{first}.npy"


class PartRun(WholeRun):
    """Some science exposures of a product, from prepared references."""

    def prepare(self, writes: bool) -> None:
        """Prepare the references.

        Parameters
        ----------
        writes : bool
            Whether their products are written here.
        """
        self.places = places(self.job.device)
        with self.places[0].here():
            self.science, self.references = self._begin()
            self._only_part(writes)
            self.stacks = self._loaded(self.references)
            self.prepared = self._prepared(self.science, self.references)

    def take(self, job: Job, order: Order) -> None:
        """Go on for another task."""
        self.job, self.order = job, order
        self.result = ProductResult(self.result.name, psfmask=self.result.psfmask)
        self._only_part(False)

    def _only_part(self, writes: bool) -> None:
        if not writes:
            self._leave(self.references, "crfints", "median")
            self.job.begun.add(self.job.path(self.result.name, "psfstack", self.association.asn_id))

    def subtract(self, pieces: Sequence[Piece]) -> None:
        """Do the exposures, and leave what comes of them where the last task finds it."""
        with self.places[0].here():
            for number, first, stop in pieces:
                exposure = self.science[number]
                self.stacks = self._loaded([exposure])
                self._now = number, first, stop
                if stop is not None:  # the last task has all of it
                    self._leave_slice(exposure, first)
                self._science(exposure, self.prepared, self.references, self.mask)
            self.record.to_host()

    def _leave_slice(self, exposure, first: int) -> None:
        job, asn_id = self.job, self.association.asn_id
        path = job.path(exposure.root, "psfsub", asn_id)
        job.begun.update(job.tagged(path, "psfsub", k) for k in self.parameters.klip.truncations)
        if first:
            self._leave([exposure], "crfints", "median")

    def _shares(self, exposure, flagged, references, mask):
        shares = super()._shares(exposure, flagged, references, mask)
        for share in shares:
            share.alignment.only = slice(*self._now[1:])
        return shares

    def _subtract(self, exposure, shares, writer):
        subtracted = super()._subtract(exposure, shares, writer)
        number, first, stop = self._now
        for truncate, stack in subtracted.items():
            images = self.places[0].later((stack.data[first:stop], stack.err[first:stop]))()
            with self.job.timed("write"):
                _put(self._scratch(number, truncate, first), np.stack(images))
        return subtracted

    def notes(self, writes: bool) -> dict[str, Any]:
        """Return what the last task needs to know, and cannot read from files."""
        record = self.record.exposures
        notes = {
            "fits": self.result.fits,
            "eigenvalues": {root: record[root].eigenvalues for root in self.result.fits},
        }
        if writes:
            notes["flagged"] = {
                e.root: (record[e.root].outliers, record[e.root].unusable) for e in self.references
            }
            notes["sources"] = self.record.sources
        return notes


class EndRun(WholeRun):
    """The end of a product: all science exposures, subtracted by other tasks, are combined."""

    def end(self, notes: Sequence[dict[str, Any]]) -> ProductResult:
        """Do it.

        Parameters
        ----------
        notes : sequence of dict
            From `PartRun.notes` of all tasks, in order.
        """
        self.places = places(self.job.device)
        with self.places[0].here():
            science, _ = self._begin()
            self._leave(science, "crfints", "median")
            self.stacks = self._loaded(science)
            self._note(notes)
            subtracted = [self._subtracted(k, exposure) for k, exposure in enumerate(science)]
            self._combine(science, subtracted)
            self.record.to_host()
        return self.result

    def _note(self, notes) -> None:
        for own in notes:
            for root, table in own["fits"].items():
                before = self.result.fits.get(root)
                self.result.fits[root] = (
                    table if before is None else np.concatenate([before, table])
                )
                self.record.exposures[root].eigenvalues += own["eigenvalues"][root]
            for root, (outliers, unusable) in own.get("flagged", {}).items():
                entry = self.record.exposures[root]
                entry.outliers, entry.unusable = outliers, unusable
            self.record.sources = own.get("sources") or self.record.sources

    def _subtracted(self, number, exposure) -> dict:
        """Return a science exposure's subtracted stacks; write those that came in slices."""
        from gpucoron.io.products import write_psfsub

        job, klip = self.job, self.parameters.klip
        flagged = self._outliers(exposure)
        if klip.skip:
            self.record.note_subtracted(exposure.root, flagged, {})
            return {klip.truncations[0]: flagged}
        stacks = {}
        for truncate in klip.truncations:
            parts = list(self._parts(number, truncate, len(flagged)))
            images = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
            data, err = (self.places[0].upload(np.ascontiguousarray(a)) for a in images)
            stacks[truncate] = flagged.replace(data=data, err=err)
            path = job.path(exposure.root, "psfsub", self.association.asn_id)
            if "psfsub" in job.save and len(parts) > 1:
                job.write(
                    job.tagged(path, "psfsub", truncate),
                    write_psfsub,
                    exposure,
                    self.places[0].later(stacks[truncate]),
                    self._provenance_of(truncate),
                )
        self.record.note_subtracted(exposure.root, flagged, stacks)
        return {k: stack.replace(err=flagged.err) for k, stack in stacks.items()}

    def _parts(self, number: int, truncate: int, n: int) -> Iterator[np.ndarray]:
        """Read the pieces of an exposure in order: (2, n, ny, nx), SCI and ERR."""
        first = 0
        while first < n:
            with self.job.timed("read"):
                images = np.load(self._scratch(number, truncate, first), allow_pickle=False)
            yield images
            first += images.shape[1]


def _put(path: Path, images: np.ndarray) -> None:
    """Write a file that has its name once it is whole; a task that is repeated replaces it."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        with open(part, "xb") as file:
            np.save(file, images, allow_pickle=False)
        os.replace(part, path)
    except OSError as problem:
        raise OutputError(f"cannot write {path}: {problem.strerror or problem}") from problem
