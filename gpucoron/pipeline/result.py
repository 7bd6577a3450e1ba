"""Results of a run."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.core.display import ArrayFields
from gpucoron.core.products import ByExposureAndModes
from gpucoron.errors import GpucoronError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from astropy.table import QTable
    from matplotlib.figure import Figure

    from gpucoron.analysis.contrast import Contrast
    from gpucoron.analysis.forward import ForwardModel
    from gpucoron.analysis.record import Record
    from gpucoron.backend.device import Device
    from gpucoron.core.parameters import Parameters
    from gpucoron.core.stack import IntegrationStack
    from gpucoron.core.star import CombinedStar, StarPositions
    from gpucoron.core.star_flux import StarFlux
    from gpucoron.io.association import LeftOut
    from gpucoron.io.wcs import OutputWcs
    from gpucoron.pipeline.companion import Companion
    from gpucoron.steps.align_refs import AlignedReferences
    from gpucoron.steps.resample import ResampledImage

log = logging.getLogger("gpucoron")


@dataclass(eq=False, repr=False)
class ProductResult(ArrayFields):
    """The products of one entry of the association; None or empty for skipped steps.

    Attributes
    ----------
    name : str
        The product's name; its files begin with it.
    crfints : dict of str to IntegrationStack
        Flagged exposures, science and references, by root name.
    median : dict of str to (ny, nx) array
        Median image of each exposure's integrations.
    psfstack : IntegrationStack
        All reference integrations; `sources` tells where each plane came from.
    psfalign : dict of str to AlignedReferences
        Aligned references by science exposure. Only what `run` was asked to keep.
    fits : dict of str to structured array
        The alignment's fits by science exposure (`gpucoron.steps.align_refs.FITS_DTYPE`).
    positions : dict of str to structured array
        The position of every image, by science exposure, with ``align="joint"``
        (`gpucoron.steps.positions.POSITIONS_DTYPE`).
    references : dict of str to structured array
        How the reference exposures of each science exposure rank
        (`gpucoron.steps.reference_ranking.RANKING_DTYPE`).
    psfsub : dict of (str, int) to IntegrationStack
        PSF-subtracted science exposures by root name and number of KL modes,
        ``psfsub[root, 10]``. ``psfsub[root]`` is that of the first truncation.
    i2d : ResampledImage
        The combined image, of the first truncation where there are several; UsageError where there
        is none.
    i2ds : dict of int to ResampledImage
        The combined image of each truncation.
    wcs : OutputWcs
        Of the combined image, whether or not it was kept; UsageError where there is none.
    stars : dict of str to StarPositions
        Where the star is in each science exposure, by root name.
    star : CombinedStar
        Where it is in `i2d`.
    measured_contrast : Contrast or None
        What `Result.contrast` returns, where the run has measured it.
    psfmask : str
        Where the psfmask came from.
    record : Record
        What the report shows: small arrays and tables, kept whatever `run` was asked to keep.
    left_out : tuple of (expname, exptype, reason)
        Members that were not used, with ``skip_bad=True``.
    """

    name: str
    crfints: dict[str, IntegrationStack] = field(default_factory=dict)
    median: dict[str, np.ndarray] = field(default_factory=dict)
    psfstack: IntegrationStack | None = None
    psfalign: dict[str, AlignedReferences] = field(default_factory=dict)
    fits: dict[str, np.ndarray] = field(default_factory=dict)
    positions: dict[str, np.ndarray] = field(default_factory=dict)
    references: dict[str, np.ndarray] = field(default_factory=dict)
    psfsub: ByExposureAndModes[IntegrationStack] = field(default_factory=ByExposureAndModes)
    i2ds: dict[int, ResampledImage] = field(default_factory=dict)
    stars: dict[str, StarPositions] = field(default_factory=dict)
    star: CombinedStar | None = None
    measured_contrast: Contrast | None = None
    psfmask: str = ""
    record: Record | None = None
    left_out: tuple[LeftOut, ...] = ()

    @property
    def star_flux(self) -> StarFlux | None:
        """Flux density of the star without the mask, as given or fitted; None where unknown.

        That of the combined image, else of the first exposure.
        """
        found = [*([] if self.star is None else [self.star.position]), *self.stars.values()]
        return next((star.flux for star in found if star.flux is not None), None)

    @property
    def i2d(self) -> ResampledImage:
        """The combined image, of the first truncation where there are several.

        UsageError where there is none, because resample was skipped or `keep` left it out; `i2ds`
        is then empty.
        """
        if not self.i2ds:
            raise UsageError(
                f"{self.name}: no combined image in memory; expected a run with resample, and "
                "'i2d' in keep"
            )
        return next(iter(self.i2ds.values()))

    @property
    def forward_model(self) -> ForwardModel | None:
        """Predicts what `i2d` shows of a source; None where the run did not keep it."""
        return None if self.record is None else self.record.forward

    @property
    def wcs(self) -> OutputWcs:
        """The WCS of the combined image; UsageError where there is none."""
        wcs = None if self.record is None else self.record.wcs
        if wcs is None:
            raise UsageError(f"{self.name}: no WCS; expected a run with resample, on this machine")
        return wcs


@dataclass(eq=False, repr=False)
class Result(ArrayFields):
    """The result of `gpucoron.run`.

    Attributes
    ----------
    products : tuple of ProductResult
        One for each entry of the association that was processed.
    files : tuple of Path
        What was written, in order.
    timings : dict of str to float
        Wall seconds by step, and for reading and writing.
    warnings : tuple of str
        Every warning of the run.
    parameters : Parameters
        All parameters as used.
    device : Device
        Where it ran.
    spans : tuple of (str, float, float)
        Step, start and end of each piece of work, s on the clock of `time.perf_counter`.
    """

    products: tuple[ProductResult, ...]
    files: tuple[Path, ...]
    timings: dict[str, float]
    warnings: tuple[str, ...]
    parameters: Parameters
    device: Device
    spans: tuple[tuple[str, float, float], ...] = ()

    @property
    def product(self) -> ProductResult:
        """The only product, or the first of several."""
        return self.products[0]

    def report(
        self,
        path: str | PathLike = ".",
        star: tuple[float, float] | None = None,
        overwrite: bool = True,
    ) -> Path:
        """Write an HTML report of the run.

        Parameters
        ----------
        path : path
            The file (.html), or the folder in which ``<product>_report.html`` is made.
        star : (ra, dec), degrees, optional
            Where the star is. Default: `ProductResult.stars`.
        overwrite : bool
            Whether an existing report may be replaced.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        OutputError
            It cannot be written, or exists and must not be replaced.
        """
        from gpucoron.backend.logs import quiet

        with quiet("matplotlib"):  # which logs that it builds its font cache
            from gpucoron.report.page import write_report

            return write_report(self, path, star, overwrite)

    def with_report(
        self, path: str | PathLike, star: tuple[float, float] | None, overwrite: bool
    ) -> Result:
        """Return this result with a report written (see `report`), its file and time included.

        Where the report fails for a reason of its own, with a warning instead: products are
        complete all the same.
        """
        start, files, warnings = time.perf_counter(), self.files, self.warnings
        try:
            files = (*files, self.report(path, star, overwrite))
        except GpucoronError:
            raise
        except Exception as problem:
            text = f"no report: {type(problem).__name__}: {problem}"
            log.warning("%s", text)
            warnings = (*warnings, text)
        timings = {**self.timings, "report": time.perf_counter() - start}
        return replace(self, files=files, warnings=warnings, timings=timings)

    def plot(self, star: tuple[float, float] | None = None) -> Figure:
        """Draw the first product: combined image, residuals, shifts, eigenvalues.

        Parameters
        ----------
        star : (ra, dec), degrees, optional
            As for `report`.

        Returns
        -------
        matplotlib.figure.Figure
            ``figure.savefig("run.png")``; as the last line of a notebook's cell it is shown.
        """
        from gpucoron.report.figures import plot

        return plot(self.product, star)

    def contrast(self, **options: Any) -> Contrast:
        """Measure the contrast curve and map of the first product.

        Parameters
        ----------
        **options
            Of `gpucoron.analysis.contrast.measure_contrast`: `known`, regions (east, north,
            radius in arcsec) that do not count as noise, beside bright sources and ``--exclude``;
            `sigma`; `step_fwhm`.

        Returns
        -------
        Contrast
            ``contrast.table()`` is the curve, ``contrast.map`` the map.

        Raises
        ------
        UsageError
            Nothing was combined.
        InputError
            The star's position is not known.

        Notes
        -----
        Calibrated only where the run kept its forward model: in memory, or with
        ``run(..., forward_model=True)``; otherwise there is a warning.
        """
        if not options and self.product.measured_contrast is not None:
            return self.product.measured_contrast
        from gpucoron.pipeline.contrast import contrast_of

        return contrast_of(self.product, self.parameters, **options)

    def companion(self, separation: float, angle: float, **options: Any) -> Companion:
        """Fit position and flux of a companion in the first product's combined image.

        Parameters
        ----------
        separation, angle : arcsec, degrees
            Where it is, to one FWHM; the position angle counts from north to east.
        **options
            Of `gpucoron.pipeline.companion.companion_of`: `covariance`, ``"matern"`` or
            ``"diagonal"``; `walkers`, `steps`, `seed`.

        Returns
        -------
        Companion
            ``companion.table()`` has median and errors, ``companion.samples`` is the posterior,
            ``companion.plot()`` its corner plot.

        Raises
        ------
        InputError
            The run kept no forward model, or no companion is there.
        """
        from gpucoron.pipeline.companion import companion_of

        return companion_of(self.product, separation, angle, **options)

    def candidates(self, star: tuple[float, float] | None = None) -> QTable:
        """Find point sources in the first product's combined image, as the report does.

        Parameters
        ----------
        star : (ra, dec), degrees, optional
            As for `report`.

        Returns
        -------
        astropy.table.QTable
            A row for each candidate, those without doubt first: `separation`, `pa`, `dra`, `ddec`,
            `ra`, `dec`, `flux`, `contrast` and others with units, their errors in columns
            ``..._err``, `snr`, `significance` (Gaussian sigmas), and a `caveat` if it is doubtful
            (`gpucoron.analysis.photometry.Candidates.table`). No rows without a combined image.
            ``table.write("candidates.ecsv")`` saves it.
        """
        from gpucoron.analysis import measure, photometry

        record = self.product.record
        sky = measure.locate_star(record, star) if record is not None and record.images else None
        if record is None or sky is None:
            return photometry.Candidates().table()
        return photometry.search(record, sky, max(record.images))[1].table(
            photometry.described(record, sky, max(record.images))
        )
