"""The WCS of a resampled image: a plane tangent to the sky, in closed form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import gwcs

__all__ = ["OutputWcs", "tangent_plane"]

MAX_SIDE_PX = 50_000  # of an output image
ARCSEC2_PER_SR = (180.0 / np.pi * 3600.0) ** 2

Pair = tuple[float, float]
Box = tuple[Pair, Pair]


def pair(values: Iterable[float]) -> Pair:
    """Return two numbers as floats."""
    first, second = values
    return float(first), float(second)


@dataclass(frozen=True)
class OutputWcs:
    """A gnomonic (TAN) WCS in ICRS without distortion; pixels count from 0 at the first's centre.

    Its fields are what the FITS keywords of these names say, but for the origin of CRPIX.
    """

    shape: tuple[int, int]  # (ny, nx)
    crpix: Pair  # x, y
    crval: Pair  # RA, Dec in degrees
    cdelt: Pair  # degrees per pixel
    pc: Box
    pixel_scale: float  # side of an output pixel, arcsec
    pixel_scale_ratio: float = 1.0  # over that of an input pixel
    bounding_box: Box | None = None  # ((x1, x2), (y1, y2)) that the inputs fill; None means all
    s_region: str | None = None  # footprint of the inputs in the image

    @property
    def pixel_area_arcsec2(self) -> float:
        """Area of an output pixel in square arcsec; an input's nominal area differs by up to 0.5%.

        It is the true one: surface brightness times area summed over pixels is flux.
        """
        return self.pixel_scale**2

    @property
    def pixel_area_sr(self) -> float:
        """Area of an output pixel in steradian."""
        return self.pixel_scale**2 / ARCSEC2_PER_SR

    @property
    def position_angle(self) -> float:
        """Position angle of the y axis in degrees, from north over east, 0 to 360."""
        east, north = self.matrix()[:, 1]
        return float(np.degrees(np.arctan2(east, north)) % 360)

    def sky_to_pixel(self, ra, dec) -> tuple[np.ndarray, np.ndarray]:
        """Pixel x, y of sky positions in degrees; NaN beyond 90 degrees from `crval`."""
        x, y = tangent_plane(ra, dec, *self.crval)
        inverse = np.linalg.inv(self.matrix())
        return (
            inverse[0, 0] * x + inverse[0, 1] * y + self.crpix[0],
            inverse[1, 0] * x + inverse[1, 1] * y + self.crpix[1],
        )

    def pixel_to_sky(self, x, y) -> tuple[np.ndarray, np.ndarray]:
        """Sky positions (degrees) of pixels."""
        dx, dy = np.subtract(x, self.crpix[0]), np.subtract(y, self.crpix[1])
        m = np.deg2rad(self.matrix())
        xi, eta = m[0, 0] * dx + m[0, 1] * dy, m[1, 0] * dx + m[1, 1] * dy
        dec0 = np.deg2rad(self.crval[1])
        across = np.cos(dec0) - eta * np.sin(dec0)
        ra = np.rad2deg(np.arctan2(xi, across)) + self.crval[0]
        dec = np.arctan2(np.sin(dec0) + eta * np.cos(dec0), np.hypot(xi, across))
        return np.mod(ra, 360.0), np.rad2deg(dec)

    def matrix(self) -> np.ndarray:
        """Return the (2, 2) matrix from pixels to degrees on the tangent plane."""
        return np.diag(self.cdelt) @ np.asarray(self.pc, dtype=np.float64)

    def box(self) -> Box:
        """Return the bounding box, of the whole image where none is set."""
        ny, nx = self.shape
        return self.bounding_box or ((-0.5, nx - 0.5), (-0.5, ny - 0.5))

    def to_gwcs(self) -> gwcs.WCS:
        """Build the GWCS that the jwst package puts into its i2d: detector to world in one step."""
        import gwcs
        from astropy import coordinates, units
        from astropy.modeling.models import Pix2Sky_TAN

        detector = gwcs.coordinate_frames.Frame2D(name="detector", unit=(units.pix, units.pix))
        world = gwcs.coordinate_frames.CelestialFrame(
            name="world", reference_frame=coordinates.ICRS()
        )
        transform = gwcs.FITSImagingWCSTransform(
            Pix2Sky_TAN(), crpix=self.crpix, crval=self.crval, cdelt=self.cdelt, pc=self.pc
        )
        wcs = gwcs.WCS([gwcs.Step(detector, transform), gwcs.Step(world, None)])
        wcs.bounding_box = self.box()
        wcs.pixel_shape = self.shape[::-1]
        return wcs

    def to_header_cards(self) -> list[tuple[str, Any, str]]:
        """Keyword, value and comment of the FITS cards, in the order of the jwst package's i2d."""
        axes = (
            ("CRPIX", tuple(c + 1 for c in self.crpix), "pixel coordinate of ref point, 1-indexed"),
            ("CRVAL", self.crval, "coordinate value at reference point"),
            ("CTYPE", ("RA---TAN", "DEC--TAN"), "type"),
            ("CUNIT", ("deg", "deg"), "units"),
            ("CDELT", self.cdelt, "coordinate increment at reference point"),
        )
        cards: list[tuple[str, Any, str]] = [
            ("RADESYS", "ICRS", "Name of the coordinate reference frame"),
            ("WCSAXES", 2, "number of World Coordinate System axes"),
        ]
        for name, values, comment in axes:
            cards += [(f"{name}{i}", v, f"Axis {i} {comment}") for i, v in enumerate(values, 1)]
        for i, row in enumerate(self.pc, 1):
            comment = "Linear transformation matrix element"
            cards += [(f"PC{i}_{j}", v, comment) for j, v in enumerate(row, 1)]
        if self.s_region:
            cards.append(("S_REGION", self.s_region, "Spatial footprint of the observation"))
        return cards


def tangent_plane(ra, dec, ra0: float, dec0: float) -> tuple[np.ndarray, np.ndarray]:
    """Project sky positions onto the plane tangent at (ra0, dec0), all in degrees.

    References
    ----------
    Calabretta and Greisen 2002, A&A 395, 1077, section 5.1.3; differences of nearby angles are
    taken before their sines, which keeps 1e-13 degrees for small images.
    """
    delta = np.deg2rad(np.subtract(ra, ra0))
    dec, dec0 = np.deg2rad(dec), np.deg2rad(dec0)
    cos_dec = np.cos(dec)
    haversine = 2.0 * np.sin(0.5 * delta) ** 2 * cos_dec
    north = np.sin(dec - dec0) + np.sin(dec0) * haversine
    depth = np.cos(dec - dec0) - np.cos(dec0) * haversine
    with np.errstate(invalid="ignore", divide="ignore"):
        depth = np.where(depth > 0, depth, np.nan)
        return np.rad2deg(cos_dec * np.sin(delta) / depth), np.rad2deg(north / depth)
