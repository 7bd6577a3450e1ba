"""The distorted WCS of an exposure, evaluated by gwcs, and its map to the output image."""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from gpucoron.errors import ExposureError
from gpucoron.io.asdf.guard import open_asdf
from gpucoron.io.second_process import in_second_process
from gpucoron.io.wcs.tan import Box, OutputWcs, Pair, pair, tangent_plane

if TYPE_CHECKING:
    import gwcs

__all__ = [
    "InputWcs",
    "direction",
    "find_wcs",
    "pixel_map",
    "read_wcs",
    "reason",
    "sky_position",
    "unusable",
]

T = TypeVar("T")

_BOUNDARY_STEP_PX = 15


@dataclass(frozen=True)
class InputWcs:
    """The distorted WCS of an exposure; pixels count from 0 at the first's centre."""

    #: From pixels to RA and Dec in ICRS, degrees; or the ASDF extension with such a GWCS.
    source: gwcs.WCS | bytes = field(repr=False, compare=False)
    key: str  # the same for the same ASDF extension
    where: str = field(default="", compare=False)  # name of the file, for messages
    #: Rotation of the sky (3, 3) that follows the GWCS; None where there is none.
    turn: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def gwcs(self) -> gwcs.WCS:
        """The GWCS, without the rotation that follows it."""
        return _gwcs_of(self.source)

    def _evaluate(self, work: Callable[..., T], *arguments) -> T:
        """Return what `work` makes of the GWCS, beside the run if it is in an ASDF extension."""
        with self._evaluating():
            if isinstance(self.source, bytes):
                return in_second_process(work, self.source, *arguments)
            return work(self.source, *arguments)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Turn what astropy.modeling and gwcs raise for odd transforms into an ExposureError."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                yield
        except Exception as error:
            raise ExposureError(
                f"{self.where}: the WCS cannot be evaluated: {reason(error)}"
            ) from error

    def pixel_to_sky(self, x, y, *, everywhere: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return RA and Dec in degrees; NaN outside the bounding box unless `everywhere`."""
        sky = self._evaluate(_to_sky, x, y, not everywhere)
        return sky if self.turn is None else _rotated(self.turn, *sky)

    def sky_to_pixel(self, ra, dec) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels x, y of sky positions in degrees; by iteration where no inverse is set."""
        if self.turn is not None:
            ra, dec = _rotated(self.turn.T, ra, dec)
        return self._evaluate(_to_pixel, ra, dec)

    def turned(self, start: Pair, end: Pair) -> InputWcs:
        """Return this WCS with the sky rotated so that the position `start` comes to `end`.

        Both are RA and Dec in degrees. The rotation is the smallest one, along the great circle
        through both: scale and orientation of the image stay.
        """
        a, b = (direction(*sky) for sky in (start, end))
        axis, cosine = np.cross(a, b), float(a @ b)
        cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        turn = np.eye(3) + cross + cross @ cross / (1.0 + cosine)  # Rodrigues
        before = np.eye(3) if self.turn is None else self.turn
        return replace(self, turn=turn @ before, key=f"{self.key} {start} {end}")

    def box(self, shape: tuple[int, int]) -> Box:
        """Return the bounding box ((x1, x2), (y1, y2)), as far as it lies in an image of `shape`.

        That is all of the image if it is not set, or lies outside.
        """
        image = (-0.5, shape[1] - 0.5), (-0.5, shape[0] - 0.5)
        x, y = (
            (max(low, first), min(high, last))
            for (low, high), (first, last) in zip(self.full_box() or image, image, strict=True)
        )
        return (x, y) if x[0] < x[1] and y[0] < y[1] else image

    def full_box(self) -> Box | None:
        """Return the bounding box as the GWCS has it; None where it is not set."""
        return self._evaluate(_full_box)

    def footprint(self, shape: tuple[int, int], *, whole_pixels: bool = False) -> np.ndarray:
        """Return RA, Dec (4, 2) of the corners of the bounding box.

        With `whole_pixels` they are rounded, halves up, as those of S_REGION in JWST's files.
        """
        return _footprint(self, shape, whole_pixels)

    def mean_pixel_area(self, shape: tuple[int, int]) -> float:
        """Return the mean area (sr) of the pixels: the bounding box on an equal-area plane."""
        ny, nx = shape
        (x1, x2), (y1, y2) = self.box(shape)
        x1, x2 = max(0, int(x1 + 0.5)), min(nx - 1, int(x2 - 0.5))
        y1, y2 = max(0, int(y1 + 0.5)), min(ny - 1, int(y2 - 0.5))
        step_x = max(2, -(-(x2 - x1) // _BOUNDARY_STEP_PX))
        step_y = max(2, -(-(y2 - y1) // _BOUNDARY_STEP_PX))
        xs, ys = np.linspace(x1, x2, step_x + 1), np.linspace(y1, y2, step_y + 1)
        x = np.concatenate([xs[:-1], np.full(step_y, x2), xs[:0:-1], np.full(step_y, x1)])
        y = np.concatenate([np.full(step_x, y1), ys[:-1], np.full(step_x, y2), ys[:0:-1]])
        ra, dec = self.pixel_to_sky(x.astype(float), y.astype(float), everywhere=True)
        ra0, dec0 = self.pixel_to_sky((x1 + x2) / 2.0, (y1 + y2) / 2.0, everywhere=True)
        u, v = np.deg2rad(tangent_plane(ra, dec, float(ra0), float(dec0)))
        radius = np.hypot(u, v)
        squeeze = 2.0 * np.sin(0.5 * np.arctan(radius)) / np.where(radius > 0, radius, 1.0)
        u, v = u * squeeze, v * squeeze
        area = 0.5 * abs(float(np.sum(u * np.roll(v, -1) - v * np.roll(u, -1))))
        if not math.isfinite(area) or area <= 0:
            raise ExposureError(f"{self.where}: the WCS gives no pixel area")
        return area / ((x2 - x1) * (y2 - y1))


@functools.lru_cache(maxsize=64)  # asked for before the work and in it
def _footprint(wcs: InputWcs, shape: tuple[int, int], whole_pixels: bool) -> np.ndarray:
    (x1, x2), (y1, y2) = wcs.box(shape)
    if whole_pixels:
        x1, x2, y1, y2 = (math.floor(value + 0.5) for value in (x1, x2, y1, y2))
    corners = np.array([(x1, y1), (x1, y2), (x2, y2), (x2, y1)], dtype=np.float64)
    ra, dec = wcs.pixel_to_sky(*corners.T, everywhere=True)
    outline = np.column_stack([np.mod(ra, 360.0), dec])
    outline.flags.writeable = False
    return outline


def direction(ra, dec) -> np.ndarray:
    """Return unit vectors (3, ...) of sky positions in degrees."""
    ra, dec = np.deg2rad(ra), np.deg2rad(dec)
    return np.array([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])


def sky_position(vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return RA (0 to 360) and Dec in degrees of vectors (3, ...) of any length."""
    x, y, z = vector
    ra = np.mod(np.rad2deg(np.arctan2(y, x)), 360.0)
    return ra, np.rad2deg(np.arctan2(z, np.hypot(x, y)))


def _rotated(turn: np.ndarray, ra, dec) -> tuple[np.ndarray, np.ndarray]:
    """Rotate sky positions (degrees); NaN stays."""
    return sky_position(np.einsum("ij,j...->i...", turn, direction(ra, dec)))


def _to_sky(source: gwcs.WCS | bytes, x, y, in_box: bool) -> tuple[np.ndarray, np.ndarray]:
    return _values(_gwcs_of(source)(x, y, with_bounding_box=in_box), "deg")


def _to_pixel(source: gwcs.WCS | bytes, ra, dec) -> tuple[np.ndarray, np.ndarray]:
    return _values(_gwcs_of(source).invert(ra, dec, with_bounding_box=False), "pix")


def _full_box(source: gwcs.WCS | bytes) -> Box | None:
    box = _gwcs_of(source).bounding_box
    if box is None:
        return None
    x, y = (pair(sorted(limits)) for limits in box.bounding_box(order="F"))
    return x, y


def _gwcs_of(source: gwcs.WCS | bytes) -> gwcs.WCS:
    return cast("gwcs.WCS", _parse(source)) if isinstance(source, bytes) else source


def _values(pair, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """Return two arrays without units, which transforms whose parameters have some add."""
    from astropy.units import Quantity

    first, second = (Quantity(values, unit).value for values in pair)
    return first, second


def read_wcs(asdf_bytes: bytes | None, where: str) -> InputWcs:
    """Read the GWCS of an exposure called `where` from the contents of its ASDF extension.

    The last 64 different ones are kept.

    Raises
    ------
    ExposureError
        No extension, no WCS in it, one that cannot be read, or one that does not lead from two
        axes of pixels to RA and Dec in ICRS.
    """
    found = find_wcs(asdf_bytes, where)
    if found is None:
        what = "no WCS with two axes in the ASDF extension (meta.wcs)"
        what = what if asdf_bytes else "no ASDF extension, so no WCS"
        raise ExposureError(f"{where}: {what}; expected one from assign_wcs (calwebb_image2)")
    return found


def find_wcs(asdf_bytes: bytes | None, where: str) -> InputWcs | None:
    """Return what `read_wcs` does; None where there is no extension, or no WCS in it."""
    if not asdf_bytes:
        return None
    try:
        found, problem = _examined(asdf_bytes)
    except Exception as error:
        raise ExposureError(
            f"{where}: the ASDF extension cannot be read: {reason(error)}"
        ) from error
    if problem:
        raise ExposureError(
            f"{where}: {problem} in the ASDF extension (meta.wcs); "
            f"expected RA and Dec in ICRS, from assign_wcs (calwebb_image2)"
        )
    return InputWcs(asdf_bytes, hashlib.sha256(asdf_bytes).hexdigest(), where) if found else None


@functools.lru_cache(maxsize=64)
def _examined(content: bytes) -> tuple[bool, str | None]:
    """Return whether there is a WCS in an ASDF extension, and why it is unusable."""
    return in_second_process(_examine, content)


def _examine(content: bytes) -> tuple[bool, str | None]:
    wcs = _parse(content)
    return wcs is not None, None if wcs is None else unusable(wcs)


@functools.lru_cache(maxsize=64)
def _parse(content: bytes) -> gwcs.WCS | None:
    with open_asdf(content) as tree:
        return tree.get("meta", {}).get("wcs")


def unusable(wcs) -> str | None:
    """Return why this is no WCS of an image of the sky; None where it is one."""
    from asdf.tagged import get_tag
    from astropy import units
    from gwcs.coordinate_frames import CelestialFrame

    transform, frame = (getattr(wcs, n, None) for n in ("forward_transform", "output_frame"))
    if get_tag(wcs):
        return f"a WCS that the installed gwcs does not know ({get_tag(wcs)})"
    if transform is None or (transform.n_inputs, transform.n_outputs) != (2, 2):
        return "no WCS with two axes"
    if not isinstance(frame, CelestialFrame):
        return f"a WCS whose output frame is {getattr(frame, 'name', frame)!r}"
    if frame.reference_frame is None or frame.reference_frame.name != "icrs":
        return f"a WCS in {getattr(frame.reference_frame, 'name', None)}"
    if tuple(frame.axes_order) != (0, 1) or any(unit != units.deg for unit in frame.unit):
        return f"a WCS with axes {frame.axes_order} in {', '.join(map(str, frame.unit))}"
    return None


def reason(error: Exception) -> str:
    """Return an exception of another package in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def pixel_map(input_wcs: InputWcs, output_wcs: OutputWcs, shape: tuple[int, ...]) -> np.ndarray:
    """Map every pixel of an input image of `shape` (..., ny, nx) to the output image.

    Returns
    -------
    (ny, nx, 2) float64
        x and y in output pixels (0-based); NaN outside the input's bounding box.
    """
    ny, nx = shape[-2:]
    (x1, x2), (y1, y2) = input_wcs.full_box() or input_wcs.box((ny, nx))
    inside = x1 <= 0 and y1 <= 0 and x2 >= nx - 1 and y2 >= ny - 1
    y, x = np.indices((ny, nx), dtype=np.float64)
    sky = input_wcs.pixel_to_sky(x, y, everywhere=inside)
    mapped = np.empty((ny, nx, 2))
    mapped[..., 0], mapped[..., 1] = output_wcs.sky_to_pixel(*sky)
    return mapped
