"""Comparison of the combined images of several numbers of KL modes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from gpucoron.analysis.contrast import Contrast
from gpucoron.analysis.measure import Sky
from gpucoron.analysis.photometry import SkyCandidate
from gpucoron.analysis.record import Record
from gpucoron.report import plots
from gpucoron.report.canvas import chart, drawing
from gpucoron.report.sections import number

RANGES = 4  # of separation, where numbers of KL modes are compared
COMPARED = 5  # candidates whose SNR is


def modes_compared(
    record: Record, sky: Sky | None, candidates: list[SkyCandidate], contrast: Contrast | None
) -> dict[str, Any] | None:
    """Compare the combined images of several numbers of KL modes; None for one.

    A row for each: the rms in four ranges of separation (medians over their annuli), the throughput
    there, where a contrast curve was measured, and the SNR of the first candidates.
    """
    found = plots.image_curves(record, sky)
    curves = {c.truncate: c for c in found if c.truncate is not None}
    if len(curves) < 2:
        return None
    separations = next(iter(curves.values())).separation
    edges = np.linspace(separations[0], separations[-1], RANGES + 1)
    edges[-1] = np.nextafter(edges[-1], np.inf)
    parts = [(a <= separations) & (separations < b) for a, b in itertools.pairwise(edges)]
    shown = candidates[:COMPARED]
    measured = contrast if contrast is not None and contrast.calibrated else None
    names = [f"{a:.1f}–{b:.1f}″" for a, b in itertools.pairwise(edges)]
    header = ["KL modes", *(f"rms {name}" for name in names)]
    header += [f"throughput {name}" for name in names] if measured else []
    header += [f"SNR of {k}" for k in range(1, len(shown) + 1)]
    rows = []
    for truncate, curve in curves.items():
        row = [str(truncate), *(number(_median(curve.rms[part]), 3) for part in parts)]
        if measured:
            share = measured.throughput[measured.truncations.index(truncate)]
            at = measured.separation
            near = [(a <= at) & (at < b) for a, b in itertools.pairwise(edges)]
            row += [number(_median(share[part]), 2) for part in near]
        row += [number(s.by_truncation.get(truncate), 1) for s in shown]
        rows.append(row)
    axes = None
    if shown:
        axes = chart()
        plots.draw_by_modes(axes, shown)
    return {
        "header": header,
        "rows": rows,
        "right": list(range(len(header))),
        "unit": record.unit,
        "view": axes and drawing(axes.figure, "SNR of candidates against the number of KL modes"),
    }


def _median(values: np.ndarray) -> float:
    """Median of what is finite; NaN where nothing is."""
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else math.nan
