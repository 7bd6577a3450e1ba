"""The five steps of calwebb_coron3 on arrays."""

from gpucoron.steps.align_refs import AlignedReferences, Alignment, align_refs
from gpucoron.steps.bad_pixels import BadPixelFiller, ReferenceLibrary
from gpucoron.steps.klip import klip
from gpucoron.steps.outlier_detection import OutlierResult, outlier_detection
from gpucoron.steps.resample import ResampledImage, resample
from gpucoron.steps.stack_refs import stack_refs

__all__ = [
    "AlignedReferences",
    "Alignment",
    "BadPixelFiller",
    "OutlierResult",
    "ReferenceLibrary",
    "ResampledImage",
    "align_refs",
    "klip",
    "outlier_detection",
    "resample",
    "stack_refs",
]


def __dir__() -> list[str]:
    return __all__
