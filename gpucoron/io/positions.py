"""The table of positions of images in psfalign and psfsub."""

from __future__ import annotations

import numpy as np
from astropy.io.fits import Header

from gpucoron.io.fits.headers import add_history
from gpucoron.io.fits.writing import Hdu

__all__ = ["POSITION_UNITS", "positions_hdu"]

#: Of columns that ALIGN has, too.
POSITION_UNITS = {"x": "pix", "y": "pix", "x_err": "pix", "y_err": "pix", "xy_cov": "pix**2"}
_TEXT = (
    "A row for each science integration, then for each reference image.",
    "x, y: where the star is, relative to its mean place in the science",
    "exposure. _err: standard deviations; xy_cov: covariance of x and y.",
    "brightness: relative to the science images. chi2: reduced, of the shifts",
    "that the image has with others by their errors. n_fits: shifts that the",
    "position is from. status: 0 measured, 2 no usable pixel, 4 not",
    "registered: from other images of the exposure, or from the headers.",
)


def positions_hdu(table: np.ndarray) -> Hdu:
    """Return the HDU POSITIONS of a table, `gpucoron.steps.positions.POSITIONS_DTYPE`."""
    header = Header()
    add_history(header, _TEXT, "COMMENT")
    kinds = [(str(name), str(table.dtype[name])) for name in table.dtype.names or ()]
    text = [name for name, kind in kinds if "U" in kind]
    widths = {n: max(1, int(np.char.str_len(table[n]).max(initial=1))) for n in text}
    stored = [(n, f"S{widths[n]}" if n in widths else kind) for n, kind in kinds]
    return Hdu("POSITIONS", table.astype(stored), header, POSITION_UNITS)
