"""The contrast curve and map of a product, and their files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucoron.errors import UsageError

if TYPE_CHECKING:
    from gpucoron.analysis.contrast import Contrast
    from gpucoron.analysis.noise import Source
    from gpucoron.core.parameters import Parameters
    from gpucoron.pipeline.result import ProductResult

__all__ = ["contrast_of", "contrast_paths", "curve_and_map", "keywords_of"]

_CANDIDATE_FWHM = 2.0  # radius about a candidate that does not count as noise


def contrast_of(product: ProductResult, parameters: Parameters, **options: Any) -> Contrast:
    """Measure the contrast of a product without its candidates and excluded regions.

    Parameters
    ----------
    product : ProductResult
    parameters : Parameters
        ``align_refs.exclude`` has the regions.
    **options
        Of `gpucoron.analysis.contrast.measure_contrast`; `known` are more regions.

    Raises
    ------
    UsageError
        Nothing was combined.
    InputError, ParameterError
        As `measure_contrast`.
    """
    from gpucoron.analysis.contrast import measure_contrast

    if product.record is None or not product.record.images:
        raise UsageError(f"{product.name}: no combined image, expected a run with resample")
    excluded = parameters.align_refs.exclude or ()
    known = [*excluded, *options.pop("known", ())]
    sources = [*_candidates(product), *options.pop("sources", ())]
    return measure_contrast(product.record, known=known, sources=sources, **options)


def _candidates(product: ProductResult) -> Sequence[Source]:
    """Return the candidates without a caveat of the combined image of most KL vectors."""
    from gpucoron.analysis import measure, photometry
    from gpucoron.analysis.noise import Source

    record: Any = product.record
    sky = measure.locate_star(record)
    if sky is None:
        return []
    found = photometry.search(record, sky, max(record.images))[1]
    sure = [c.candidate for c in found if not c.doubtful]
    return [Source(c.x, c.y, _CANDIDATE_FWHM * sky.fwhm_px) for c in sure]


def contrast_paths(i2d: Path) -> tuple[Path, Path]:
    """Return the names of table and FITS file beside a product of this name."""
    stem = i2d.name.removesuffix("_i2d.fits")
    return i2d.with_name(f"{stem}_contrast.ecsv"), i2d.with_name(f"{stem}_contrast.fits")


def curve_and_map(contrast: Contrast) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return the table, the images by extension, and the keywords of the files."""
    name = "CONTRAST" if contrast.star_jy is not None else "LIMIT"
    planes = {name: (contrast.map, contrast.unit)}
    return contrast.table(), planes, keywords_of(contrast)


def keywords_of(contrast: Contrast) -> dict[str, Any]:
    """Return everything that was assumed, by keyword."""
    error = contrast.star_jy_error
    known = contrast.assumptions
    return {
        "CONTSIG": contrast.sigma,
        "CONTCONV": known["convention"],
        "STARFLUX": contrast.star_jy,
        "STARFERR": error if error is not None and math.isfinite(error) else None,
        "STARFSRC": known["star"],
        "CALIBRAT": contrast.calibrated,
        "JYPERFLX": contrast.jansky if math.isfinite(contrast.jansky) else None,
        "FWHMPX": contrast.fwhm_px,
        "PSFSRC": known["psf"],
        "MASKED": known["masked"],
    }
