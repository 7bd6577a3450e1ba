"""Where the star is in the science exposures of a product."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.core.star import StarPositions
from gpucoron.errors import GpucoronError
from gpucoron.pipeline.centering import Centering, choose_center
from gpucoron.pipeline.expected_star import number_of, star_of_headers
from gpucoron.pipeline.reference_star import DitheredReferences, ReferenceFit
from gpucoron.pipeline.star_model import ExposureMean, measure_star

if TYPE_CHECKING:
    from gpucoron.core.parameters import Parameters
    from gpucoron.core.stack import IntegrationStack, PlaneSource
    from gpucoron.core.star_flux import StarFlux
    from gpucoron.io.exposures import Exposure
    from gpucoron.io.wcs import InputWcs
    from gpucoron.optics.star_fit import Prior
    from gpucoron.optics.star_images import StarImages
    from gpucoron.pipeline.centering import Place
    from gpucoron.pipeline.result import ProductResult
    from gpucoron.steps.align_refs import Alignment

__all__ = ["Stars", "relative_positions"]

log = logging.getLogger("gpucoron")

#: By how much the shifts between exposures differ from the motion of the star, pixels: speckles
#: depend on where the star is behind the mask. Simulated sets: NIRCam 0.01 to 0.08 px, 4QPM 0.1 to
#: 0.15 px.
_UNLIKE_PX = 0.1


class Stars:
    """Finds the star in the science exposures of a product.

    Positions are put into ``result.stars`` and the record of the report.

    Parameters
    ----------
    science : sequence of Exposure
    parameters : Parameters
    result : ProductResult
        ``result.fits`` has the fits of the alignment of an exposure before it is looked at.
    star_model : StarImages, optional
        Images of a star that replace the model of the coronagraph.
    threaded : bool
        Fit in the background, one image after the other; `find` waits for the result. Leaving the
        block as a context manager waits for all.
    flux : StarFlux, optional
        The star's flux density, in place of the one that is fitted.
    """

    def __init__(
        self,
        science: Sequence[Exposure],
        parameters: Parameters,
        result: ProductResult,
        star_model: StarImages | None = None,
        threaded: bool = False,
        flux: StarFlux | None = None,
    ):
        self._flux = flux
        #: the wavefront, in the modes of a CoronagraphModel, where dithered references tell it
        self.modes_nm: np.ndarray | None = None
        self._science, self._parameters, self._result = science, parameters, result
        self._star_model = star_model
        self._pool = ThreadPoolExecutor(1, "gpucoron-star") if threaded else None
        self._references: Future[ReferenceFit | None] | None = None
        self._pending: dict[str, Future[None]] = {}

    def __enter__(self) -> Stars:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=kind is not None)

    def _submit(self, work: Callable[..., Any], *arguments: Any) -> Future:
        """Run in the background, or at once; what fails is raised by the future's `result`."""
        if self._pool is not None:
            return self._pool.submit(work, *arguments)
        done: Future = Future()
        done.set_result(work(*arguments))
        return done

    def find(self, exposure: Exposure) -> StarPositions:
        """Return where the star is in a science exposure; see `StarPositions`.

        May be called from any thread.
        """
        if exposure.root in self._pending:
            self._pending[exposure.root].result()
        if exposure.root not in self._result.stars:
            self.note(exposure, self._given(exposure) or star_of_headers(exposure))
        return self._result.stars[exposure.root]

    def wait(self) -> None:
        """Wait for what is measured in the background; raises what failed there."""
        for work in self._pending.values():
            work.result()

    def note(self, exposure: Exposure, star: StarPositions) -> None:
        """Note where the star is in a science exposure, for the result and the report."""
        if self._flux is not None:
            star = replace(star, flux=self._flux)
        self._result.stars[exposure.root] = star
        x, y = star.mean
        if self._result.record is not None and math.isfinite(x) and math.isfinite(y):
            self._result.record.exposures[exposure.root].star_px = (x - 1, y - 1)

    @property
    def _to_measure(self) -> bool:
        return not (self._parameters.align_refs.stars or self._parameters.like_jwst)

    def learn_from(self, references: Sequence[Exposure], stacked: IntegrationStack) -> None:
        """Fit wavefront and mask to the references, where they are dithered.

        Parameters
        ----------
        references : sequence of Exposure
        stacked : IntegrationStack
            Their integrations.
        """
        if self._to_measure and self._star_model is None:
            dithered = DitheredReferences.of(references, stacked)
            if dithered is not None:
                self._references = self._submit(dithered.fit)

    def measure(
        self,
        exposure: Exposure,
        alignment: Alignment,
        weight: np.ndarray | None = None,
        sources: Sequence[PlaneSource] = (),
    ) -> None:
        """Measure the star in a science exposure by a model of its coronagraph, and note it.

        Nothing is done where its position is given or the preset is jwst's. A coronagraph that is
        not modelled, or an exposure of which no image could be registered, gives a warning.

        Parameters
        ----------
        exposure : Exposure
        alignment : Alignment
            Has the integrations with bad pixels filled, and their positions.
        weight : (ny, nx) floating, optional
            Of the pixels; 0 hides a known source.
        sources : sequence of PlaneSource
            Of the references.
        """
        if not self._to_measure:
            return
        try:
            mean = ExposureMean.of(alignment)
        except GpucoronError as problem:
            self._warn(exposure, problem)
            return
        work = self._submit(self._measure, exposure, mean, weight, sources)
        self._pending[exposure.root] = work

    def _measure(self, exposure, mean, weight, sources) -> None:
        try:
            known = self._known(exposure, sources)
            star = measure_star(exposure, mean, weight, self._star_model, known)
        except GpucoronError as problem:
            self._warn(exposure, problem)
            return
        self.note(exposure, star)
        log.info(
            "%s: star at x, y = %.3f, %.3f (%.3f, %.3f px) by %s",
            *(exposure.root, *star.mean, *star.mean_error),
            self._method(star) + (", which dithered references determine" if known else ""),
        )

    def _known(self, exposure: Exposure, sources: Sequence[PlaneSource]) -> Prior | None:
        """Return what the references tell, where the registration confirms their dithers."""
        found = None if self._references is None else self._references.result()
        fits = self._result.fits.get(exposure.root)
        if found is None or fits is None or not sources:
            return None
        if found.agrees(fits, sources):
            self.modes_nm = found.known.modes_nm
            return found.known
        log.info(
            "%s: the registration does not see the dithers of the references' headers (images that "
            "were recentred?), so the star is measured without them",
            exposure.root,
        )
        return None

    @staticmethod
    def _warn(exposure: Exposure, problem: GpucoronError) -> None:
        log.warning(
            "%s: the star's position is not measured, and is that of the headers: %s "
            "(--star X,Y gives it)",
            *(exposure.path.name, problem),
        )

    def _method(self, star: StarPositions) -> str:
        if star.source != "model":
            return "the image's symmetry"
        if self._star_model is None:
            return "a model of the coronagraph"
        return f"the images of {self._parameters.align_refs.star_model}"

    def _given(self, exposure: Exposure) -> StarPositions | None:
        """Return the position that is given, moved as the alignment says; None where none is."""
        stars, n = self._parameters.align_refs.stars, exposure.shape[0]
        if not stars:
            return None
        number = number_of(exposure, self._science, stars)
        star, origin = stars[number], self._science[number]
        own = exposure.root == origin.root
        skipped = self._parameters.align_refs.skip or self._parameters.klip.skip
        moved = None if skipped else self._moved(exposure, origin)
        if moved is not None and np.isfinite(moved[0]).any():
            x, y, x_err, y_err = (np.broadcast_to(values, n) for values in moved)
            if not own:
                x_err, y_err = np.hypot(x_err, _UNLIKE_PX), np.hypot(y_err, _UNLIKE_PX)
            return StarPositions(star[0] + x, star[1] + y, x_err, y_err, "given")
        if skipped or own:
            log.warning(
                "%s: %s, so the star is taken to be at x, y = %g, %g (align_refs.star) in every "
                "integration",
                *(exposure.path.name, "nothing is aligned" if skipped else "no alignment is good"),
                *star,
            )
            return StarPositions.constant(star, n, 0.0, "given")
        log.warning(
            "%s: has no good alignment in common with %s, for which align_refs.star is given; the "
            "star is taken to be where the headers have it",
            *(exposure.path.name, origin.path.name),
        )
        return None

    def _moved(self, exposure: Exposure, origin: Exposure) -> np.ndarray | None:
        """Return `relative_positions` of an exposure to `origin`; None without fits."""
        first, table = (self._result.fits.get(e.root) for e in (origin, exposure))
        if first is None or table is None:
            return None
        record = self._result.record
        if record is not None and record.own_sources:
            sources = record.sources_of(origin.root), record.sources_of(exposure.root)
            first, table = _to_same_references(first, table, sources, origin.root)
        return relative_positions(first, table)

    def center(self, wcss: Sequence[InputWcs]) -> Centering:
        """Decide how the exposures are combined, warn of stars apart; `wcss` are the exposures'."""
        stars = [self.find(exposure) for exposure in self._science]
        center = choose_center(self._parameters.resample.center, self._science, stars)
        centering = Centering(self._science, stars, wcss, center)
        centering.warn_of_differences(self._compared(stars))
        if self._result.record is not None:
            for exposure, wcs in zip(self._science, centering.wcss, strict=True):
                self._result.record.exposures[exposure.root].wcs = wcs
        return centering

    def _compared(self, stars: Sequence[StarPositions]) -> list[Place] | None:
        """Return mean x, y of the star in each exposure, and the error between it and the first's.

        They are the positions found where all are measured; else that of the first exposure and
        the alignment. None where that is not known.
        """
        if all(star.measured for star in stars):
            errors = [np.nan_to_num(math.hypot(*star.mean_error)) for star in stars]
            return [(*star.mean, float(e)) for star, e in zip(stars, errors, strict=True)]
        moved = [self._moved(exposure, self._science[0]) for exposure in self._science]
        if any(m is None for m in moved) or not np.isfinite(stars[0].mean).all():
            return None
        means = [StarPositions(m[0], m[1], m[2], m[3], "wcs") for m in moved if m is not None]
        x, y = np.transpose([m.mean for m in means])
        x, y = x - x[0] + stars[0].mean[0], y - y[0] + stars[0].mean[1]
        return list(zip(x, y, (math.hypot(*m.mean_error) for m in means), strict=True))


def relative_positions(first: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return where the star is, relative to the first integration of an exposure.

    Parameters
    ----------
    first, table : structured arrays, `gpucoron.steps.align_refs.FITS_DTYPE`
        The fits of that exposure, and those of the same references to the exposure wanted.

    Returns
    -------
    (4, n) float64, pixels
        x, y and their standard deviations for each fitted integration: the median over the
        references that both integrations are well fitted to of the first one's shift minus this
        one's. The standard deviations are the fits' own (noise that all references share with
        these images), or that of the median by its scatter, where that is larger. NaN where there
        is no such reference; 0 for the first integration itself.
    """
    (origin, origin_err), (shifts, errors) = map(_good_shifts, (first, table))
    found = np.full((4, len(shifts)), np.nan)
    usable = np.isfinite(origin).all(axis=2)
    if not usable.any():
        return found
    start = int(np.argmax(usable.any(axis=1)))  # the first one that has good fits
    for i, (shift, error) in enumerate(zip(shifts, errors, strict=True)):
        both = usable[start] & np.isfinite(shift).all(axis=1)
        if not both.any():
            continue
        away = origin[start][both] - shift[both]
        middle = np.median(away, axis=0)
        scatter = 1.4826 * np.median(np.abs(away - middle), axis=0) / math.sqrt(len(away))
        own = np.hypot(np.median(origin_err[start][both], axis=0), np.median(error[both], axis=0))
        same = not np.any(away)
        found[:, i] = *middle, *(0.0 * own if same else np.maximum(own, scatter))
    return found


def _to_same_references(
    first: np.ndarray,
    table: np.ndarray,
    sources: tuple[Sequence[PlaneSource], Sequence[PlaneSource]],
    origin: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the fits of two exposures to the references that both have.

    Where there are none, the other one's fits to the first integration of the exposure `origin`,
    which is one of its references, beside that one's fit to itself.
    """
    from gpucoron.ops.registration import CONVERGED

    rows = [t.reshape(-1, len(s)) for t, s in zip((first, table), sources, strict=True)]
    places = [{source: k for k, source in enumerate(s)} for s in sources]
    common = [source for source in places[0] if source in places[1]]
    if common:
        rows = [r[:, [p[s] for s in common]].copy() for r, p in zip(rows, places, strict=True)]
    else:
        own = [k for k, source in enumerate(sources[1]) if source.exposure == origin][:1]
        rows = [np.zeros((1, len(own)), first.dtype), rows[1][:, own].copy()]
        rows[0]["status"] = CONVERGED
    for r in rows:
        r["ref_plane"] = np.arange(1, r.shape[1] + 1)
    return rows[0].ravel(), rows[1].ravel()


def _good_shifts(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return shifts (n, nref, 2) in x and y and their errors; NaN where a fit is no good."""
    from gpucoron.ops.registration import CONVERGED

    rows = table.reshape(-1, max(int(table["ref_plane"].max(initial=0)), 1))
    good = (rows["status"] == CONVERGED)[..., None]
    shifts, errors = (
        np.where(good, np.stack([rows[x], rows[y]], axis=-1), np.nan)
        for x, y in (("x", "y"), ("x_err", "y_err"))
    )
    return shifts, errors
