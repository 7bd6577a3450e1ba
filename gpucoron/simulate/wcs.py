"""The GWCS and the header approximation of one exposure, built as assign_wcs builds them."""

from __future__ import annotations

import functools
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

__all__ = ["build_gwcs", "s_region", "sip_keywords"]

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
    """Build detector -> v2v3 -> v2v3vacorr -> world.

    Parameters
    ----------
    pointing : Pointing

    Returns
    -------
    gwcs.WCS
    """

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


def s_region(pointing: Pointing) -> str:
    """Footprint of the window as the ``S_REGION`` keyword holds it.

    Parameters
    ----------
    pointing : Pointing

    Returns
    -------
    str
        Corners counter-clockwise in pixels from the first one, degrees with nine decimals.
    """
    ny, nx = pointing.window.shape
    left, right, bottom, top = -0.5, nx - 0.5, -0.5, ny - 0.5
    ra, dec = pointing.pixel_to_sky([left, left, right, right], [bottom, top, top, bottom])
    corners = " ".join(f"{a:.9f} {d:.9f}" for a, d in zip(ra, dec, strict=True))
    return f"POLYGON ICRS  {corners}"


def sip_keywords(pointing: Pointing) -> dict[str, float | int | str]:
    """FITS keywords of the TAN-SIP approximation.

    Parameters
    ----------
    pointing : Pointing

    Returns
    -------
    dict
        ``crpix1`` ... ``bp_order``, named as in ``meta.wcsinfo``; better than 0.01 px.
    """
    cx, cy = pointing.window.centre
    ra0, dec0 = (float(v) for v in pointing.pixel_to_sky(cx, cy))
    ny, nx = pointing.window.shape
    x, y = (
        v.ravel()
        for v in np.meshgrid(np.linspace(0, nx - 1, 24) - cx, np.linspace(0, ny - 1, 24) - cy)
    )
    plane = np.stack(_tangent_plane(*pointing.pixel_to_sky(x + cx, y + cy), ra0, dec0))
    terms = [(i, j) for i in range(SIP_DEGREE + 1) for j in range(SIP_DEGREE + 1 - i) if i + j >= 1]
    fit = np.linalg.lstsq(_powers(x, y, terms), plane.T, rcond=None)[0]
    linear = np.array([fit[terms.index((1, 0))], fit[terms.index((0, 1))]]).T
    forward = np.linalg.solve(linear, fit.T)
    u_, v_ = np.linalg.solve(linear, plane)
    bent = [t for t in terms if sum(t) >= 2]  # the linear inverse terms have no FITS keyword
    back = np.linalg.lstsq(_powers(u_, v_, bent), np.stack([x - u_, y - v_], axis=1), rcond=None)[0]
    keywords = {
        "crpix1": cx + 1,
        "crpix2": cy + 1,
        "crval1": ra0,
        "crval2": dec0,
        "ctype1": "RA---TAN-SIP",
        "ctype2": "DEC--TAN-SIP",
        "cunit1": "deg",
        "cunit2": "deg",
        "cd1_1": linear[0, 0],
        "cd1_2": linear[0, 1],
        "cd2_1": linear[1, 0],
        "cd2_2": linear[1, 1],
        **{f"{p}_order": SIP_DEGREE for p in ("a", "b", "ap", "bp")},
    }
    curved = forward[:, [terms.index(t) for t in bent]]
    for p, values in zip(("a", "b", "ap", "bp"), (*curved, *back.T), strict=True):
        keywords |= {f"{p}_{i}_{j}": v for (i, j), v in zip(bent, values, strict=True)}
    return {k: v if isinstance(v, (int, str)) else float(v) for k, v in keywords.items()}


def _powers(x, y, terms):
    return np.stack([x**i * y**j for i, j in terms], axis=1)


def _tangent_plane(ra, dec, ra0, dec0):
    """Gnomonic projection, degrees."""
    a, d, d0 = np.deg2rad(ra - ra0), np.deg2rad(dec), np.deg2rad(dec0)
    depth = np.sin(d) * np.sin(d0) + np.cos(d) * np.cos(d0) * np.cos(a)
    xi = np.cos(d) * np.sin(a) / depth
    eta = (np.sin(d) * np.cos(d0) - np.cos(d) * np.sin(d0) * np.cos(a)) / depth
    return np.rad2deg(xi), np.rad2deg(eta)
