"""GWCS and TAN-SIP approximation of an exposure, built as the assign_wcs step builds them."""

from __future__ import annotations

import functools
import re
from functools import reduce
from operator import and_

import gwcs
import numpy as np
from astropy import coordinates
from astropy import units as u
from astropy.modeling import bind_bounding_box, models
from gwcs import coordinate_frames as cf
from gwcs.geometry import CartesianToSpherical, SphericalToCartesian

from gpucoron.simulate.geometry import VA_SCALE, Pointing, Window, polynomial_grid

INVERSE_DEGREE = 7
SIP_DEGREE = 4


def _polynomials(grids):
    degree = grids[0].shape[0] - 1
    both = []
    for grid in grids:
        names = {f"c{i}_{j}": grid[i, j] for i in range(degree + 1) for j in range(degree + 1 - i)}
        both.append(models.Polynomial2D(degree, **names))
    return models.Mapping((0, 1, 0, 1)) | reduce(and_, both)


def _shift(x, y):
    return models.Shift(x) & models.Shift(y)


def _inverse_grids(window, grids):
    """Fit the inverse of the distortion over the window, in ideal coordinates."""
    ny, nx = window.shape
    cx, cy = window.centre
    x, y = np.meshgrid(np.linspace(-1, nx, 40) - cx, np.linspace(-1, ny, 40) - cy)
    ideal = [np.polynomial.polynomial.polyval2d(x, y, g).ravel() for g in grids]
    size = max(np.abs(v).max() for v in ideal)
    powers = [(i, j) for i in range(INVERSE_DEGREE + 1) for j in range(INVERSE_DEGREE + 1 - i)]
    terms = np.stack([(ideal[0] / size) ** i * (ideal[1] / size) ** j for i, j in powers], axis=1)
    solution = np.linalg.lstsq(terms, np.stack([x.ravel(), y.ravel()], axis=1), rcond=None)[0]
    inverse = np.zeros((2, INVERSE_DEGREE + 1, INVERSE_DEGREE + 1))
    for (i, j), pair in zip(powers, solution, strict=True):
        inverse[:, i, j] = pair / size ** (i + j)
    return list(inverse)


@functools.lru_cache(maxsize=16)
def _distortion(window: Window):
    """Window pixels to V2V3, with an inverse that closes to about 1e-7 px."""
    a = window.aperture
    grids = [polynomial_grid(c, a.degree) for c in a.sci2idl]
    angle = np.deg2rad(a.v3_idl_yangle_deg)
    matrix = np.array(
        [[a.vparity * np.cos(angle), np.sin(angle)], [-a.vparity * np.sin(angle), np.cos(angle)]]
    )
    offset = np.array([a.v2_ref, a.v3_ref])
    centre = [a.corner[k] + a.reference_pixel[k] - 2 for k in (0, 1)]  # full detector, from 0
    to_tel = models.AffineTransformation2D(matrix, offset)
    back = np.linalg.inv(matrix)
    from_tel = models.AffineTransformation2D(back, -back @ offset)
    model = _shift(-centre[0], -centre[1]) | _polynomials(grids) | to_tel
    model.inverse = from_tel | _polynomials(_inverse_grids(window, grids)) | _shift(*centre)
    ny, nx = window.shape
    model = _shift(float(window.corner[0] - 1), float(window.corner[1] - 1)) | model
    bind_bounding_box(model, ((-0.5, nx - 0.5), (-0.5, ny - 0.5)), order="F")
    return model


def _aberration(window):
    a = window.aperture
    model = models.Scale(VA_SCALE, name="dva_scale_v2") & models.Scale(
        VA_SCALE, name="dva_scale_v3"
    )
    model |= models.Shift((1 - VA_SCALE) * a.v2_ref, name="dva_v2_shift") & models.Shift(
        (1 - VA_SCALE) * a.v3_ref, name="dva_v3_shift"
    )
    model.name = "DVA_Correction"
    return model


def _to_sky(pointing: Pointing):
    a = pointing.window.aperture
    angles = [
        a.v2_ref / 3600,
        -a.v3_ref / 3600,
        pointing.roll_ref_deg,
        pointing.dec_ref,
        -pointing.ra_ref,
    ]
    model = (
        (models.Scale(1 / 3600) & models.Scale(1 / 3600))
        | SphericalToCartesian(wrap_lon_at=180)
        | models.RotationSequence3D(angles, axes_order="zyxyz")
        | CartesianToSpherical(wrap_lon_at=360)
    )
    model.name = "v23tosky"
    return model


def build_gwcs(pointing: Pointing) -> gwcs.WCS:
    """Build the GWCS: detector, v2v3, v2v3vacorr, world."""

    def telescope(name):
        return cf.Frame2D(
            name=name, axes_order=(0, 1), axes_names=("v2", "v3"), unit=(u.arcsec, u.arcsec)
        )

    return gwcs.WCS(
        [
            (
                cf.Frame2D(name="detector", axes_order=(0, 1), unit=(u.pix, u.pix)),
                _distortion(pointing.window),
            ),
            (telescope("v2v3"), _aberration(pointing.window)),
            (telescope("v2v3vacorr"), _to_sky(pointing)),
            (cf.CelestialFrame(reference_frame=coordinates.ICRS(), name="world"), None),
        ]
    )


def sip_keywords(wcs: gwcs.WCS, centre: tuple[float, float]) -> dict[str, float | int | str]:
    """Approximate a GWCS by a TAN-SIP WCS around a pixel (from 0), better than 0.01 px.

    Returns ``crpix1`` ... ``bp_order``, named as in ``meta.wcsinfo``.
    """
    reference = [c + 1 for c in centre]
    header = wcs.to_fits_sip(degree=SIP_DEGREE, inv_degree=SIP_DEGREE, crpix=reference)
    keywords = r"(WCSAXES|CRPIX|CRVAL|CTYPE|CUNIT|CD\d_)\d?|[AB]P?_(ORDER|\d_\d)"
    return {k.lower(): v for k, v in header.items() if re.fullmatch(keywords, k)}
