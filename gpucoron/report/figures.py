"""The figure of a product that `Result.plot` returns."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure

from gpucoron.analysis import measure, photometry
from gpucoron.analysis.record import Record
from gpucoron.report import images, plots


class NotebookFigure(Figure):
    """A figure that a notebook shows without pyplot or ``%matplotlib inline``."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def plot(product: Any, star: tuple[float, float] | None = None) -> Figure:
    """Draw the combined image, residuals, shifts and eigenvalues of a `gpucoron.ProductResult`.

    `star` is ra, dec in degrees; see `gpucoron.analysis.measure.locate_star`. Panels of skipped
    steps say so.
    """
    record = product.record or Record()
    sky = measure.locate_star(record, star)
    curves = plots.image_curves(record, sky) or plots.exposure_curves(record, sky)
    fits = plots.shifts_by_exposure(record, product.fits)
    spectrum = plots.spectrum(record)
    figure = NotebookFigure(figsize=(10.5, 9), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    figure.suptitle(product.name, parse_math=False)
    if record.images:
        truncate = max(record.images)
        image = record.images[truncate]
        frame = images.combined_frame(record, sky)
        images.draw_image(panels[0], image, images.asinh_norm(image), frame, unit=record.unit)
        if sky:
            images.draw_compass(panels[0], sky.north, sky.east)
            candidates = photometry.search(record, sky, truncate)[1]
            images.draw_candidates(panels[0], candidates, frame, sky)
    if curves:
        plots.draw_residuals(panels[1], curves, record.unit)
    if fits:
        plots.draw_shifts(panels[2], fits)
    if spectrum:
        plots.draw_spectrum(panels[3], spectrum)
    titles = ("combined image", "residuals", "shifts of the references", "eigenvalues")
    drawn = (record.images, curves, fits, spectrum)
    for panel, title, content in zip(panels, titles, drawn, strict=True):
        panel.set_title(title, loc="left")
        if not content:
            panel.text(0.5, 0.5, "not in this run", ha="center", transform=panel.transAxes)
    return figure
