"""Corner plot of the posterior of a companion's position and flux."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_corner"]

MOST_SAMPLES = 20_000


def draw_corner(samples: np.ndarray, labels: Sequence[str], title: str = "") -> Figure:
    """Draw the distributions of parameters, and of each pair of them.

    Parameters
    ----------
    samples : (n, k) floating
    labels : sequence of k str
    title : str

    References
    ----------
    Foreman-Mackey 2016, JOSS 1, 24 (corner).
    """
    import corner
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 7.5))
    figure.subplots(samples.shape[1], samples.shape[1])
    corner.corner(
        samples[:: math.ceil(len(samples) / MOST_SAMPLES)],
        fig=figure,
        labels=list(labels),
        quantiles=(0.16, 0.5, 0.84),
        show_titles=True,
        title_fmt=".3g",
    )
    figure.suptitle(title, x=0.98, ha="right", parse_math=False)
    return figure
