"""Collect what the report of a run shows: mean images, pixel counts, eigenvalues, members."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.backend import cuda
from gpucoron.backend.arrays import to_host
from gpucoron.core.display import ArrayFields
from gpucoron.errors import GpucoronError
from gpucoron.ops.dq import DO_NOT_USE

if TYPE_CHECKING:
    from gpucoron.analysis.forward import ForwardModel
    from gpucoron.core.stack import IntegrationStack, PlaneSource
    from gpucoron.core.star import CombinedStar
    from gpucoron.core.star_flux import StarFlux
    from gpucoron.io.association import Association, Product
    from gpucoron.io.exposures import Exposure, ExposureMeta
    from gpucoron.io.wcs import InputWcs, OutputWcs
    from gpucoron.steps.outlier_detection import OutlierResult
    from gpucoron.steps.resample import ResampledImage


@dataclass(eq=False, repr=False)
class ExposureRecord(ArrayFields):
    """Diagnostics of one exposure; None or empty where a step was skipped."""

    root: str
    file: str
    exptype: str
    shape: tuple[int, int, int]  # (n, ny, nx)
    meta: ExposureMeta
    wcs: InputWcs | None = None  # of a science exposure only
    star_px: tuple[float, float] | None = None  # its star, mean x, y from 0
    outliers: Any = None  # (n,) int, pixels flagged in each integration
    unusable: Any = None  # (n,) int, pixels with DO_NOT_USE, outliers included
    before: Any = None  # (ny, nx) float32, MJy/sr, mean of a science exposure's good pixels
    #: The same after PSF subtraction, by truncation.
    after: dict[int, Any] = field(default_factory=dict)
    #: Of each KL basis, (rank,) float64, descending.
    eigenvalues: list[Any] = field(default_factory=list)
    path: Path | None = None


@dataclass(eq=False, repr=False)
class Record(ArrayFields):
    """Diagnostics of one product."""

    asn: str = ""  # file name of the association
    asn_id: str = ""
    program: str | None = None
    target: str | None = None
    #: Members that are neither science nor psf, or left out: name and exptype.
    ignored: list[tuple[str, str]] = field(default_factory=list)
    #: By root name, science first.
    exposures: dict[str, ExposureRecord] = field(default_factory=dict)
    sources: tuple[PlaneSource, ...] = ()  # exposure and integration of each reference image
    #: Of those of each science exposure, by root.
    own_sources: dict[str, tuple[PlaneSource, ...]] = field(default_factory=dict)
    mask: Any = None  # (ny, nx), the psfmask, 1 where pixels are used
    #: The combined image of each truncation, (ny, nx) float32, MJy/sr.
    images: dict[int, Any] = field(default_factory=dict)
    #: Its errors, (ny, nx) float32, MJy/sr.
    errors: dict[int, Any] = field(default_factory=dict)
    wcs: OutputWcs | None = None  # of the images
    star: CombinedStar | None = None  # in them
    star_flux: StarFlux | None = None  # of the science star; None where it is not known
    forward: ForwardModel | None = None  # of a point source, where the run has it
    #: What `gpucoron.analysis.photometry.search` has found, by truncation and star.
    searched: dict[Any, Any] = field(default_factory=dict)
    asn_path: Path | None = None  # None where the association was not a file

    @classmethod
    def of(cls, association: Association, product: Product) -> Record:
        """Start a record from the association."""
        return cls(
            association.table_name,
            association.asn_id,
            association.program,
            association.target,
            [(m.expname, m.exptype) for m in product.ignored]
            + [(m.expname, f"{m.exptype}, left out: {m.reason}") for m in product.left_out],
            asn_path=association.path if association.in_file else None,
        )

    @property
    def unit(self) -> str:
        """The unit of all images, as a label shows it."""
        found = (e.meta.bunit for e in self.exposures.values() if e.exptype == "science")
        return (next(found, None) or "no unit").replace("$", "")[:40]

    def sources_of(self, root: str) -> tuple[PlaneSource, ...]:
        """Return exposure and integration of each reference image of a science exposure."""
        return self.own_sources.get(root, self.sources)

    def note_exposures(self, *exposures: Exposure) -> None:
        """Record the exposures; their pixels need not be read."""
        from gpucoron.io.wcs import read_wcs

        for e in exposures:
            entry = ExposureRecord(
                e.root, e.path.name, e.exptype, e.shape, e.meta, path=e.path.absolute()
            )
            if e.exptype == "science":
                with suppress(GpucoronError):  # resample, which needs it, reports the error
                    entry.wcs = read_wcs(e.asdf_bytes, e.path.name)
            self.exposures[e.root] = entry

    def note_outliers(self, root: str, found: OutlierResult) -> None:
        """Record the number of flagged pixels of each integration."""
        entry = self.exposures[root]
        entry.outliers = found.flagged
        entry.unusable = ((found.stack.dq & np.uint32(DO_NOT_USE)) != 0).sum(axis=(1, 2))

    def note_subtracted(
        self, root: str, before: IntegrationStack, after: dict[int, IntegrationStack]
    ) -> None:
        """Record mean images before and after subtraction."""
        entry = self.exposures[root]
        entry.before = _mean(before.data)
        entry.after = {k: _mean(stack.data) for k, stack in after.items()}

    def note_combined(self, truncate: int, image: ResampledImage, wcs: OutputWcs) -> None:
        """Record a combined image."""
        self.images[truncate], self.errors[truncate], self.wcs = image.data, image.err, wcs

    def to_host(self) -> None:
        """Copy GPU arrays to the host; only this waits for the GPU."""
        for e in self.exposures.values():
            for name in ("outliers", "unusable", "before"):
                if getattr(e, name) is not None:
                    setattr(e, name, to_host(getattr(e, name)))
            e.after = {k: to_host(image) for k, image in e.after.items()}
            e.eigenvalues = [to_host(values) for values in e.eigenvalues]
        self.mask = None if self.mask is None else to_host(self.mask)
        self.images, self.errors = (
            {k: to_host(image) for k, image in planes.items()}
            for planes in (self.images, self.errors)
        )


def _mean(images):
    """Average the finite values along the first axis; NaN where there are none."""
    xp = cuda.array_namespace(images)
    good = xp.isfinite(images)
    count = good.sum(axis=0)
    total = xp.where(good, images, 0).sum(axis=0, dtype=np.float64)
    mean = total / xp.maximum(count, 1)
    return xp.where(count > 0, mean, np.nan).astype(np.float32)
