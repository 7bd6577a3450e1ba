"""The fit of a companion in a product's combined image: table, posterior and corner plot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpucoron.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from astropy.table import QTable
    from matplotlib.figure import Figure

    from gpucoron.analysis.companion import CompanionFit
    from gpucoron.analysis.measure import Sky
    from gpucoron.analysis.photometry import SkyCandidate
    from gpucoron.analysis.record import Record
    from gpucoron.pipeline.result import ProductResult

__all__ = ["Companion", "companion_of"]


@dataclass(frozen=True, eq=False)
class Companion:
    """A companion with the posterior of its position and flux.

    Attributes
    ----------
    name : str
        Of the product.
    fit : CompanionFit
        Samples in pixels of the combined image, and how they were made.
    entry : SkyCandidate
        Median and errors on the sky.
    samples : (n, 3) float64
        East and north of the star (mas), and contrast or, where the star's flux is not known, flux.
    labels : list of str
        What the columns of `samples` are.
    about : dict
        What was assumed, for the table's metadata.
    """

    name: str
    fit: CompanionFit
    entry: SkyCandidate
    samples: np.ndarray
    labels: list[str]
    about: dict[str, Any]

    def __repr__(self) -> str:
        at, snr = self.entry, self.entry.candidate.snr
        return (
            f'<Companion of {self.name}: {at.separation:.3f}", {at.angle:.2f} deg, SNR {snr:.1f}>'
        )

    def table(self) -> QTable:
        """Return one row with the columns of `Result.candidates`; ``write("c.ecsv")`` saves it."""
        from gpucoron.analysis.photometry import Candidates

        return Candidates([self.entry]).table(self.about)

    def plot(self) -> Figure:
        """Draw the corner plot of the posterior."""
        from gpucoron.report.corner import draw_corner

        return draw_corner(self.samples, self.labels, f"{self.name}_companion")


def companion_of(
    product: ProductResult,
    separation: float,
    angle: float,
    *,
    covariance: str = "matern",
    walkers: int = 64,
    steps: int = 1000,
    seed: int = 0,
) -> Companion:
    """Fit position and flux of a companion by negative injection into the combined image.

    Parameters
    ----------
    product : ProductResult
        Of a run that kept its forward model. Of several numbers of KL modes the largest is used.
    separation, angle : arcsec, degrees
        Where the companion is, to one FWHM; the position angle counts from north to east.
    covariance, walkers, steps, seed
        As for `gpucoron.analysis.companion.fit_companion`; a fifth of the steps is dropped. Other
        candidates without a caveat are subtracted.

    Raises
    ------
    InputError
        No forward model, or no companion there.
    """
    from gpucoron.analysis import photometry
    from gpucoron.analysis.companion import fit_companion
    from gpucoron.analysis.point_source import source_model
    from gpucoron.backend.threads import limited_to

    record, sky = _with_model(product)
    truncate = max(record.images)
    start = sky.at(separation, angle)
    found = photometry.search(record, sky, truncate)[1]
    known = [c.candidate for c in found if not c.doubtful]
    others = [c for c in known if math.dist((c.x, c.y), start) > sky.fwhm_px]
    with limited_to(1):  # the arrays are small, and threads would wait for each other
        fit = fit_companion(
            photometry.field_of(record, sky, truncate),
            source_model(record, truncate, sky.fwhm_px),
            start,
            covariance=covariance,
            others=others,
            walkers=walkers,
            steps=steps,
            burn_in=steps // 5,
            seed=seed,
        )
        best = float(fit.best[0]), float(fit.best[1])
        measured = photometry.measure_at(record, sky, truncate, best, others).candidate
        entry = photometry.on_sky(record, sky, truncate, fit.as_candidate(measured), others)
    samples, labels = photometry.samples_on_sky(record, sky, truncate, fit.samples)
    about = photometry.described(record, sky, truncate) | {
        "covariance": fit.covariance,
        "correlation_length_px": fit.correlation_px,
        "chi2_per_pixel": fit.chi2,
        "likelihoods": fit.n_likelihoods,
        "autocorrelation_steps": fit.autocorrelation,
    }
    return Companion(product.name, fit, entry, samples, labels, about)


def _with_model(product: ProductResult) -> tuple[Record, Sky]:
    """Return record and sky of a product that has a forward model."""
    from gpucoron.analysis.measure import locate_star

    record = product.record
    sky = locate_star(record) if record is not None and record.images else None
    if record is None or sky is None or record.forward is None:
        raise InputError(
            f"{product.name}: no forward model of a source, expected a run with klip and resample "
            "whose star and optics are known"
        )
    return record, sky
