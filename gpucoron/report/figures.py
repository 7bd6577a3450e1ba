"""The same for notebooks: a figure of matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.analysis import measure
from gpucoron.analysis.record import Record
from gpucoron.errors import UsageError
from gpucoron.report.diagnostics import curves, labels
from gpucoron.report.pictures import robust_stretch, round_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["plot"]


def plot(product: Any, star: tuple[float, float] | None = None) -> Figure:
    """Draw the combined image, residuals, shifts and eigenvalues of a product.

    Parameters
    ----------
    product : gpucoron.ProductResult
    star : (ra, dec), degrees, optional
        See `gpucoron.analysis.measure.sky_of`.

    Returns
    -------
    Figure
        Panels of what a run left out say so.

    Raises
    ------
    UsageError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("plot() needs matplotlib: pip install 'gpucoron[plot]'") from None
    record = product.record or Record()
    sky = measure.sky_of(record, star)
    figure = Figure(figsize=(10, 8.5), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    drawn = (
        _image(panels[0], record, sky),
        _residuals(panels[1], record, sky),
        _shifts(panels[2], record, product.fits),
        _eigenvalues(panels[3], record),
    )
    for panel, there in zip(panels, drawn, strict=True):
        if not there:
            panel.text(0.5, 0.5, "not in this run", ha="center", transform=panel.transAxes)
    figure.suptitle(product.name)
    return figure


def _image(panel, record, sky) -> bool:
    panel.set_title("combined image, MJy/sr")
    if not record.images:
        return False
    image = record.images[max(record.images)]
    stretch = robust_stretch(image)
    if stretch is None:
        return False
    ny, nx = image.shape
    extent = (-0.5, nx - 0.5, -0.5, ny - 0.5)
    if sky is not None:
        x, y = sky.star
        extent = tuple(
            sky.arcsec_per_px
            * np.array((extent[0] - x, extent[1] - x, extent[2] - y, extent[3] - y))
        )
        panel.plot(0, 0, "+", color="white")
    from matplotlib.colors import AsinhNorm

    shown = panel.imshow(
        image,
        origin="lower",
        extent=extent,
        interpolation="nearest",
        norm=AsinhNorm(stretch.softening, vmin=stretch.low, vmax=stretch.high),
    )
    ticks = round_values(stretch)
    bar = panel.figure.colorbar(shown, ax=panel)
    bar.set_ticks(ticks, labels=[f"{v:g}" for v in ticks])
    bar.minorticks_off()
    if sky is not None:
        panel.set(xlabel="x from the star, arcsec", ylabel="y from the star, arcsec")
        for name, (dx, dy) in (("N", sky.north), ("E", sky.east)):
            panel.annotate(
                name,
                (0.12, 0.12),
                (0.12 + 0.09 * dx, 0.12 + 0.09 * dy),
                "axes fraction",
                "axes fraction",
                color="white",
                arrowprops={"arrowstyle": "<-", "color": "white"},
                ha="center",
                va="center",
            )
    return True


def _residuals(panel, record, sky) -> bool:
    panel.set(title="residuals", xlabel="separation, arcsec", ylabel="rms, MJy/sr")
    exposures, images = curves(record, sky)
    known = [(f"combined, {c[0]}", *c[1:3]) for c in images] + [
        c[:3] for c in exposures if "before" in c[0]
    ]
    for name, r, rms in known:
        panel.plot(r, rms, label=name)
    if known:
        panel.set_yscale("log")
        panel.legend()
    return bool(known)


def _shifts(panel, record, fits) -> bool:
    panel.set(title="shifts of the references", xlabel="x, px", ylabel="y, px")
    names = labels(record)
    for root, table in fits.items():
        if len(table):
            s = measure.reference_shifts(table, record.sources)
            panel.errorbar(
                s.x, s.y, s.y_err, s.x_err, fmt="o", markersize=3, label=names.get(root, root)
            )
    if any(map(len, fits.values())):
        panel.legend()
    return any(map(len, fits.values()))


def _eigenvalues(panel, record) -> bool:
    panel.set(title="eigenvalues", xlabel="mode", ylabel="(MJy/sr)²")
    spectra = [v for e in record.exposures.values() for v in e.eigenvalues if len(v)]
    for values in spectra:
        panel.semilogy(np.arange(1, len(values) + 1), values, ".-", color="C0", alpha=0.5)
    return bool(spectra)
