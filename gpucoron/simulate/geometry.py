"""Transform pixels to the sky and back: the chain of the GWCS on plain arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.coordinates.matrix_utilities import rotation_matrix

from gpucoron.optics.instruments import Aperture

VA_SCALE = 1.00003  # differential velocity aberration, as a visit would have it


@dataclass(frozen=True)
class Window:
    """The part of the detector that is read out."""

    aperture: Aperture
    shape: tuple[int, int]  # rows and columns
    corner: tuple[int, int]  # first pixel (x, y) on the full detector, counted from 1

    @classmethod
    def centred(cls, aperture: Aperture, shape: tuple[int, int] | None) -> Window:
        """Return the whole subarray, or a window of `shape` with the mask near its centre."""
        if shape is None or tuple(shape) == aperture.shape:
            return cls(aperture, aperture.shape, aperture.corner)
        start = []
        for k, size in enumerate((shape[1], shape[0])):
            first = round(aperture.reference_pixel[k] - (size + 1) / 2)
            start.append(int(np.clip(first, 0, aperture.shape[1 - k] - size)))
        corner = (aperture.corner[0] + start[0], aperture.corner[1] + start[1])
        return cls(aperture, (shape[0], shape[1]), corner)

    @property
    def centre(self) -> tuple[float, float]:
        """Mask centre (x, y), counted from 0: the aperture's reference pixel."""
        return self.aperture.centre_in(self.corner)


def polynomial_grid(coefficients, degree: int) -> np.ndarray:
    """Arrange coefficients in SIAF order (1, x, y, x^2, xy, ...) as ``grid[i, j]`` of x^i y^j."""
    grid = np.zeros((degree + 1, degree + 1))
    values = iter(coefficients)
    for total in range(degree + 1):
        for j in range(total + 1):
            grid[total - j, j] = next(values)
    return grid


@dataclass(frozen=True)
class Pointing:
    """Pointing of one exposure: transforms between pixels and sky."""

    window: Window
    ra_ref: float  # sky position of the aperture's reference point, deg
    dec_ref: float
    roll_ref_deg: float  # position angle of V3 there, north over east

    def rotation(self) -> np.ndarray:
        """Rotation matrix (3, 3) from V2V3 to the sky, for unit vectors."""
        a = self.window.aperture
        angles = (a.v2_ref / 3600, -a.v3_ref / 3600, self.roll_ref_deg, self.dec_ref, -self.ra_ref)
        matrix = np.eye(3)
        for axis, angle in zip("zyxyz", angles, strict=True):
            matrix = rotation_matrix(angle, axis) @ matrix
        return matrix

    def pixel_to_sky(self, x, y) -> tuple[np.ndarray, np.ndarray]:
        """Sky coordinates (ra, dec, deg) of pixel positions counted from 0."""
        v2, v3 = _to_v2v3(self.window, np.asarray(x, float), np.asarray(y, float))
        a = self.window.aperture
        v2 = np.deg2rad((VA_SCALE * v2 + (1 - VA_SCALE) * a.v2_ref) / 3600)
        v3 = np.deg2rad((VA_SCALE * v3 + (1 - VA_SCALE) * a.v3_ref) / 3600)
        vector = np.stack([np.cos(v3) * np.cos(v2), np.cos(v3) * np.sin(v2), np.sin(v3)])
        sx, sy, sz = np.tensordot(self.rotation(), vector, axes=1)
        return np.rad2deg(np.arctan2(sy, sx)) % 360, np.rad2deg(np.arctan2(sz, np.hypot(sx, sy)))

    def sky_to_pixel(self, ra, dec) -> tuple[np.ndarray, np.ndarray]:
        """Pixel positions (x, y, from 0) of sky coordinates in degrees, to about 1e-9 px."""
        ra, dec = np.deg2rad(np.asarray(ra, float)), np.deg2rad(np.asarray(dec, float))
        sky = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
        vx, vy, vz = np.tensordot(self.rotation().T, sky, axes=1)
        a = self.window.aperture
        v2 = np.rad2deg(np.arctan2(vy, vx)) * 3600
        v3 = np.rad2deg(np.arctan2(vz, np.hypot(vx, vy))) * 3600
        v2 = (v2 - (1 - VA_SCALE) * a.v2_ref) / VA_SCALE
        v3 = (v3 - (1 - VA_SCALE) * a.v3_ref) / VA_SCALE
        return _invert(self.window, v2, v3)


def _to_v2v3(window, x, y):
    a = window.aperture
    cx, cy = window.centre
    grids = [polynomial_grid(c, a.degree) for c in a.sci2idl]
    xi, yi = (np.polynomial.polynomial.polyval2d(x - cx, y - cy, g) for g in grids)
    angle = np.deg2rad(a.v3_idl_yangle_deg)
    v2 = a.v2_ref + a.vparity * np.cos(angle) * xi + np.sin(angle) * yi
    v3 = a.v3_ref - a.vparity * np.sin(angle) * xi + np.cos(angle) * yi
    return v2, v3


def _invert(window, v2, v3):
    x = np.full(np.shape(v2), window.centre[0])
    y = np.full(np.shape(v2), window.centre[1])
    base = np.array(_to_v2v3(window, *window.centre))
    steps = np.array(window.centre) + np.eye(2)
    inverse = np.linalg.inv(np.array([np.array(_to_v2v3(window, *to)) - base for to in steps]).T)
    for _ in range(12):
        found = _to_v2v3(window, x, y)
        error = np.stack([v2 - found[0], v3 - found[1]])
        step = np.tensordot(inverse, error, axes=1)
        x, y = x + step[0], y + step[1]
    return x, y


def aim(
    window: Window, ra: float, dec: float, roll_deg: float, position: tuple[float, float]
) -> Pointing:
    """Find the pointing that puts a target (ra, dec, deg) on a pixel position (x, y, from 0).

    `roll_deg` is the position angle of V3 at the reference point.
    """
    pointing = Pointing(window, ra, dec, roll_deg)
    for _ in range(5):
        seen_ra, seen_dec = pointing.pixel_to_sky(*position)
        pointing = Pointing(
            window,
            pointing.ra_ref + (ra - float(seen_ra)),
            pointing.dec_ref + (dec - float(seen_dec)),
            roll_deg,
        )
    return pointing


def pixel_area(window: Window) -> np.ndarray:
    """Area of every pixel relative to the nominal pixel, (ny, nx) float32."""
    ny, nx = window.shape
    x, y = np.meshgrid(np.arange(nx + 1) - 0.5, np.arange(ny + 1) - 0.5)
    v2, v3 = _to_v2v3(window, x, y)
    diagonal, other = ((v[1:, 1:] - v[:-1, :-1], v[1:, :-1] - v[:-1, 1:]) for v in (v2, v3))
    area = np.abs(diagonal[0] * other[1] - other[0] * diagonal[1]) / 2
    sx, sy = window.aperture.scale
    return (area / (sx * sy)).astype(np.float32)
