"""Flag pixels of PSF-subtracted images whose model is mostly an estimate itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.backend.arrays import to_host
from gpucoron.ops.dq import DO_NOT_USE, FLUX_ESTIMATED

if TYPE_CHECKING:
    from gpucoron.ops.zones import Zones

__all__ = ["estimated_models"]

MOSTLY = 0.5  # share of a model


def estimated_models(
    coefficients: Any, reference_dq: np.ndarray, zones: Zones | None = None
) -> np.ndarray:
    """Flag pixels whose PSF model comes mostly from bad pixels of the references.

    Parameters
    ----------
    coefficients : (n, nref) floating, or (nzones, n, nref) with zones
        Of the references in the models that were subtracted.
    reference_dq : (nref, ny, nx) uint32
        Flags of the aligned references, as `gpucoron.steps.align_refs.Alignment.shift_dq` gives
        them; DO_NOT_USE counts. On the host.
    zones : Zones, optional
        In which KLIP was done.

    Returns
    -------
    (n, ny, nx) uint32
        FLUX_ESTIMATED where the references that are flagged at a pixel have more than half of
        ``sum_j |c_j|``; else 0. On the host.
    """
    shares = np.abs(to_host(coefficients))
    shares = shares / np.maximum(shares.sum(axis=-1, keepdims=True), 1e-300)
    bad = ((reference_dq & np.uint32(DO_NOT_USE)) != 0).reshape(len(reference_dq), -1)
    flags = np.zeros((shares.shape[-2], bad.shape[1]), dtype=np.uint32)
    parts = [(shares, np.flatnonzero(bad.any(axis=0)))]
    if zones is not None:
        parts = [
            (rows, pixels[bad[:, pixels].any(axis=0)])
            for rows, pixels in zip(shares, map(to_host, zones.pixels), strict=True)
        ]
    for rows, pixels in parts:
        estimated = rows @ bad[:, pixels].astype(np.float64) > MOSTLY
        flags[:, pixels] = np.where(estimated, np.uint32(FLUX_ESTIMATED), np.uint32(0))
    return flags.reshape(-1, *reference_dq.shape[1:])
