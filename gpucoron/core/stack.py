"""`IntegrationStack`, the data that steps exchange."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from gpucoron.backend.cuda import as_device_arrays
from gpucoron.backend.device import on_gpu
from gpucoron.core.display import ArrayFields
from gpucoron.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "KLIP_VARIANCES",
    "LEAST_VARIANCE",
    "VARIANCES",
    "IntegrationStack",
    "PlaneSource",
    "ReferenceNoise",
]

VARIANCES: tuple[str, ...] = ("var_poisson", "var_rnoise", "var_flat")
#: What PSF subtraction adds to them.
KLIP_VARIANCES = ("var_ref", "var_speckle")
#: The smallest normal number of float32: a read-noise variance below it gives no weight.
LEAST_VARIANCE = 2.0**-126


class PlaneSource(NamedTuple):
    """Exposure and integration of one plane of a stack."""

    exposure: str
    integration: int  # counted from 1, as INT_TIMES counts


class ReferenceNoise(NamedTuple):
    """Noise of the references that all integrations of an exposure have in common.

    It does not average down: it is counted once for an exposure. All arrays are on the host.
    """

    variance: np.ndarray  # (ny, nx) float32 in the mean of all integrations, (MJy/sr)^2
    coefficients: np.ndarray  # (nref,) float64 of the references, mean of all integrations
    deviations: np.ndarray  # (nref,) float64, root mean square of the references' noise, MJy/sr


@dataclass(frozen=True, eq=False, repr=False)
class IntegrationStack(ArrayFields):
    """Integrations of one exposure, or of several concatenated.

    Parameters
    ----------
    data : (n, ny, nx) floating array, MJy/sr
        The images. NumPy or CuPy; every array of one stack lives on the same device. Anything else
        on a GPU (``__cuda_array_interface__`` or DLPack) is held as a CuPy array of that memory.
    err : (n, ny, nx) floating array, MJy/sr
        Standard deviation of `data`.
    dq : (n, ny, nx) uint32 array
        JWST data quality bits (DO_NOT_USE 1, SATURATED 2, JUMP_DET 4, OUTLIER 16, NON_SCIENCE 512).
    var_poisson, var_rnoise, var_flat : (n, ny, nx) floating array, (MJy/sr)^2, or None
        Variance components, where the exposure has them.
    var_ref, var_speckle : (n, ny, nx) floating array, (MJy/sr)^2, or None
        After PSF subtraction: the references' noise, and the speckles that are left.
    reference_noise : ReferenceNoise or None
        What the integrations share of `var_ref`.
    sources : tuple of PlaneSource
        Exposure and integration of each plane; empty where unknown.

    Raises
    ------
    InputError
        Shapes that differ, an array that is not 3-D, a `dq` that is not uint32, or arrays on
        another GPU than the current one.
    TypeError
        Some arrays on the host and some on a GPU.
    """

    # NumPy's or CuPy's, which has the same methods
    data: npt.NDArray[Any]
    err: npt.NDArray[Any]
    dq: npt.NDArray[np.uint32]
    var_poisson: npt.NDArray[Any] | None = None
    var_rnoise: npt.NDArray[Any] | None = None
    var_flat: npt.NDArray[Any] | None = None
    var_ref: npt.NDArray[Any] | None = None
    var_speckle: npt.NDArray[Any] | None = None
    reference_noise: ReferenceNoise | None = None
    sources: tuple[PlaneSource, ...] = ()

    def __post_init__(self) -> None:
        names = ("data", "err", "dq", *VARIANCES, *KLIP_VARIANCES)
        arrays = as_device_arrays(*(getattr(self, name) for name in names))
        on_gpu(*arrays)
        for name, array in zip(names, arrays, strict=True):
            object.__setattr__(self, name, array)
        shape = self.data.shape
        if len(shape) != 3:
            raise InputError(f"data has shape {shape}, expected (n, ny, nx)")
        for name in names[1:]:
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise InputError(f"{name} has shape {array.shape}, but data has {shape}")
        if str(self.dq.dtype) != "uint32":
            raise InputError(f"dq has dtype {self.dq.dtype}, expected uint32")
        if self.sources and len(self.sources) != shape[0]:
            raise InputError(f"{len(self.sources)} sources given for {shape[0]} integrations")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, ny, nx)."""
        return self.data.shape

    def __len__(self) -> int:
        return self.data.shape[0]

    def replace(self, **changes: Any) -> IntegrationStack:
        """Return a stack with some arrays replaced."""
        return dataclasses.replace(self, **changes)

    def planes(self, index: slice | Iterable[Any]) -> IntegrationStack:
        """Return the stack of the planes that `index` (a slice, mask or list) selects."""
        whole = ("sources", "reference_noise")
        arrays: dict[str, Any] = {
            f.name: None if getattr(self, f.name) is None else getattr(self, f.name)[index]
            for f in dataclasses.fields(self)
            if f.name not in whole
        }
        sources = self.sources
        if sources:
            keep = range(len(sources))[index] if isinstance(index, slice) else _positions(index)
            sources = tuple(sources[i] for i in keep)
        return IntegrationStack(**arrays, reference_noise=self.reference_noise, sources=sources)


def _positions(index: Iterable[Any]) -> list[int]:
    values = [v.item() if hasattr(v, "item") else v for v in index]
    if values and isinstance(values[0], bool):
        return [i for i, v in enumerate(values) if v]
    return values
