"""Names and types of the step parameters that `gpucoron.run` takes as keywords."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, TypedDict

from gpucoron.core.parameters import (
    AlignRefs,
    Analysis,
    Klip,
    OutlierDetection,
    Resample,
    StackRefs,
)

__all__ = ["StepKeywords"]


class StepKeywords(TypedDict, total=False):
    """Every step parameter as ``STEP_PARAMETER``, or those of a step as a mapping; short names.

    `gpucoron.core.parameters` says what they do.
    """

    outlier_detection: Mapping[str, Any] | OutlierDetection
    outlier_detection_skip: bool
    outlier_detection_snr: str | float
    outlier_detection_maskpt: float
    outlier_detection_good_bits: str | int | None
    outlier_detection_save_intermediate_results: bool
    stack_refs: Mapping[str, Any] | StackRefs
    stack_refs_skip: bool
    align_refs: Mapping[str, Any] | AlignRefs
    align_refs_skip: bool
    align_refs_align: str
    align_refs_median_box_length: int
    align_refs_bad_bits: str | int | None
    align_refs_star: Sequence[float] | str | None
    align_refs_star_model: str | PathLike[str] | None
    align_refs_exclude: Iterable[tuple[float, float, float]] | str | None
    align_refs_psfmask_center: str
    klip: Mapping[str, Any] | Klip
    klip_skip: bool
    klip_truncate: int | Sequence[int]
    klip_mode: str
    klip_movement: float
    klip_exclude_reference: Iterable[str] | str | None
    klip_annuli: int
    klip_subsections: int
    klip_annuli_spacing: str
    klip_iwa: float | str
    klip_owa: float | str | None
    klip_optimise: float | str
    klip_guard: float | str
    klip_maxnumbasis: int | None
    klip_subtract_model: str | PathLike[str] | None
    resample: Mapping[str, Any] | Resample
    resample_skip: bool
    resample_pixfrac: float
    resample_kernel: str
    resample_fillval: str | float
    resample_weight_type: str
    resample_center: str
    resample_output_shape: tuple[int, int] | str | None
    resample_crpix: tuple[float, float] | str | None
    resample_crval: tuple[float, float] | str | None
    resample_rotation: float | None
    resample_pixel_scale_ratio: float
    resample_pixel_scale: float | None
    resample_output_wcs: str | PathLike[str] | None
    analysis: Mapping[str, Any] | Analysis
    analysis_star_flux: float | str | None
    analysis_star_spectrum: str | PathLike[str] | None
    analysis_filter_curve: str | PathLike[str] | None
    analysis_star_magnitude: float | None
    analysis_vega_zero_point: float | None
    analysis_psf: str | PathLike[str] | None
    subtract_model: str | PathLike[str] | None
    star_spectrum: str | PathLike[str] | None
    filter_curve: str | PathLike[str] | None
    star_magnitude: float | None
    vega_zero_point: float | None
