"""The FITS WCS of an exposure's header (TAN or TAN-SIP) as a GWCS."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucoron.errors import ExposureError
from gpucoron.io.fits.headers import quiet
from gpucoron.io.wcs.exposure import InputWcs, reason
from gpucoron.io.wcs.tan import pair

if TYPE_CHECKING:
    import gwcs
    from astropy.io.fits import Header

__all__ = ["header_wcs"]

_KEYWORDS = re.compile(
    r"C(RPIX|RVAL|TYPE|UNIT|DELT|ROTA)[12]|(CD|PC)[12]_[12]|[AB]P?_(\d_\d|ORDER)|LONPOLE"
)
_PLANES = [{"RA---TAN", "DEC--TAN"}, {"RA---TAN-SIP", "DEC--TAN-SIP"}]
_LARGEST_ORDER = 9  # of SIP, as the convention has it
_DEGREE, _SAMPLES = 6, 40  # of the inverse, and the points a side that it is fitted to


def header_wcs(header: Header, shape: tuple[int, ...], where: str) -> InputWcs | None:
    """Make a GWCS of the FITS WCS in the header of an image.

    Parameters
    ----------
    header : astropy Header
        Of SCI.
    shape : (..., ny, nx)
        The GWCS's bounding box is the image.
    where : str
        Name of the file, for messages.

    Returns
    -------
    InputWcs or None
        None where the header has no CTYPE1 and CTYPE2.

    Raises
    ------
    ExposureError
        Another projection than TAN or TAN-SIP, another frame than ICRS, or keywords that make no
        WCS.

    Notes
    -----
    The positions are those of `astropy.wcs.WCS.all_pix2world`, which reads the keywords.

    References
    ----------
    Calabretta and Greisen 2002, A&A 395, 1077; Shupe et al. 2005, ASPC 347, 491 (SIP).
    """
    kinds = [header.get(f"CTYPE{i}") for i in (1, 2)]
    if None in kinds:
        return None
    kinds = [str(kind).strip().upper() for kind in kinds]
    if set(kinds) not in _PLANES:
        raise ExposureError(
            f"{where}: the FITS WCS has CTYPE1, CTYPE2 = {', '.join(kinds)}, "
            "expected RA---TAN, DEC--TAN, with or without -SIP"
        )
    frame = str(header.get("RADESYS", "ICRS")).strip().upper()
    if frame not in ("", "ICRS"):
        raise ExposureError(f"{where}: the FITS WCS is in RADESYS {frame}, expected ICRS")
    try:
        key = hashlib.sha256(f"{header.tostring()} {shape}".encode()).hexdigest()
        return InputWcs(_as_gwcs(_parsed(header), shape), key, where)
    except Exception as error:  # whatever wcslib and astropy make of odd keywords
        raise ExposureError(f"{where}: the FITS WCS cannot be used: {reason(error)}") from error


def _parsed(header: Header) -> Any:
    """Return what astropy makes of the keywords of two axes."""
    from astropy.io.fits import Header as NewHeader
    from astropy.wcs import WCS

    cards = NewHeader(c for c in header.cards if _KEYWORDS.fullmatch(c.keyword))
    for name in ("A_ORDER", "B_ORDER", "AP_ORDER", "BP_ORDER"):
        order = cards.get(name, 0)
        if type(order) is not int or not 0 <= order <= _LARGEST_ORDER:
            raise ValueError(f"{name} is {order!r}, expected an integer from 0 to {_LARGEST_ORDER}")
    with quiet():
        wcs = WCS(cards, naxis=2)
        wcs.wcs.set()
    return wcs


def _as_gwcs(wcs: Any, shape: tuple[int, ...]) -> gwcs.WCS:
    import gwcs
    from astropy import coordinates, units
    from astropy.modeling import models

    order = [wcs.wcs.lng, wcs.wcs.lat]
    matrix = np.asarray(wcs.pixel_scale_matrix, dtype=np.float64)[order]
    ra, dec = pair(wcs.wcs.crval[order])
    x, y = pair(wcs.wcs.crpix - 1)
    numbers = [ra, dec, x, y, wcs.wcs.lonpole, *matrix.flat]
    if not np.all(np.isfinite(numbers)) or abs(dec) > 90 or np.linalg.det(matrix) == 0:
        raise ValueError("its CRVAL, CRPIX and CD (or PC and CDELT) are no position and scale")
    transform = models.Shift(-x) & models.Shift(-y)
    if wcs.sip is not None and wcs.sip.a is not None and wcs.sip.b is not None:
        transform = transform | _distortion(wcs.sip, (x, y), shape)
    transform = (
        transform
        | models.AffineTransformation2D(matrix)
        | models.Pix2Sky_TAN()
        | models.RotateNative2Celestial(ra, dec, float(wcs.wcs.lonpole))
    )
    detector = gwcs.coordinate_frames.Frame2D(name="detector", unit=(units.pix, units.pix))
    world = gwcs.coordinate_frames.CelestialFrame(name="world", reference_frame=coordinates.ICRS())
    made = gwcs.WCS([gwcs.Step(detector, transform), gwcs.Step(world, None)])
    ny, nx = shape[-2:]
    made.bounding_box = ((-0.5, nx - 0.5), (-0.5, ny - 0.5))
    return made


def _distortion(sip: Any, reference: tuple[float, float], shape: tuple[int, ...]) -> Any:
    """Return SIP's polynomials of pixels from CRPIX, with an inverse that is fitted to the image.

    SIP's own inverse, if any, is too coarse, and gwcs's iteration fails for unnamed projections.
    """
    from astropy.modeling.models import Mapping

    def both(grids):
        bent = [_polynomial(grid, linear) for grid, linear in zip(grids, (0, 1), strict=True)]
        return Mapping((0, 1, 0, 1)) | bent[0] & bent[1]

    forward = both([sip.a, sip.b])
    ny, nx = shape[-2:]
    x, y = (np.linspace(-1.0, n, _SAMPLES) - c for n, c in zip((nx, ny), reference, strict=True))
    x, y = (values.ravel() for values in np.meshgrid(x, y))
    bent = np.array(forward(x, y))
    size = float(np.abs(bent).max())
    powers = [(i, j) for i in range(_DEGREE + 1) for j in range(_DEGREE + 1 - i)]
    terms = np.stack([(bent[0] / size) ** i * (bent[1] / size) ** j for i, j in powers], axis=1)
    fitted = np.linalg.lstsq(terms, np.stack([x, y], axis=1) - bent.T, rcond=None)[0]
    grids = np.zeros((2, _DEGREE + 1, _DEGREE + 1))
    for (i, j), values in zip(powers, fitted, strict=True):
        grids[:, i, j] = values / size ** (i + j)
    forward.inverse = both(grids)
    return forward


def _polynomial(grid: np.ndarray, linear: int) -> Any:
    """Return the polynomial with coefficients grid[i, j] of u^i v^j, plus u (0) or v (1)."""
    from astropy.modeling.models import Polynomial2D

    degree = max(1, len(grid) - 1)
    names = {f"c{i}_{j}": float(grid[i, j]) for i in range(len(grid)) for j in range(len(grid) - i)}
    own = "c0_1" if linear else "c1_0"
    return Polynomial2D(degree, **{**names, own: names.get(own, 0.0) + 1.0})
