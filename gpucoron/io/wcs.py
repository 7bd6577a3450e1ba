"""World coordinates: the GWCS of exposures, the WCS of their combination, and pixel maps."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import re
import warnings
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gpucoron.errors import ExposureError
from gpucoron.io.asdf_guard import opened
from gpucoron.io.asdf_nodes import Unusual
from gpucoron.io.imaging_wcs import ImagingWcs, read_imaging_wcs
from gpucoron.io.tan import OutputWcs
from gpucoron.io.transforms import NoInverse

if TYPE_CHECKING:
    import gwcs

    from gpucoron.io.exposures import ExposureMeta

__all__ = [
    "InputWcs",
    "OutputWcs",
    "check_outlines",
    "output_wcs",
    "pixel_map",
    "pixel_maps",
    "read_wcs",
]

log = logging.getLogger(__name__)

CACHED = 64


@dataclass(frozen=True, eq=False)
class InputWcs:
    """The distorted WCS of an exposure. Equal, and equal in hash, for equal transforms.

    Pixels count from 0 at the centre of the first one.

    Parameters
    ----------
    document : bytes
        ASDF file with the WCS under ``meta.wcs``.
    key : str
        What equality and hash go by.
    where : str
        Name of the file, for messages.
    """

    document: bytes = field(repr=False)
    key: str
    where: str = ""

    def __eq__(self, other):
        return isinstance(other, InputWcs) and self.key == other.key

    def __hash__(self):
        return hash(self.key)

    @property
    def gwcs(self) -> gwcs.WCS:
        """The same as a GWCS, made on first use; importing what that takes costs two seconds."""
        return _parse(self.document)

    @contextmanager
    def _evaluating(self):
        """Say in one line what astropy.modeling and gwcs make of odd transforms."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                yield
        except Exception as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise ExposureError(
                f"{self.where}: the WCS cannot be evaluated: {type(error).__name__}: {reason}"
            ) from error

    @property
    def _imaging(self):
        return _evaluator(self.document)

    def pixel_to_sky(self, x, y, *, everywhere: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """RA and Dec in degrees; NaN outside the bounding box unless `everywhere`."""
        if self._imaging is not None:
            return self._imaging.pixel_to_sky(x, y, everywhere)
        with self._evaluating():
            ra, dec = self.gwcs(x, y, with_bounding_box=not everywhere)
        return ra, dec

    def sky_to_pixel(self, ra, dec) -> tuple[np.ndarray, np.ndarray]:
        """Pixels x, y of sky positions in degrees."""
        if self._imaging is not None:
            with suppress(NoInverse):
                return self._imaging.sky_to_pixel(ra, dec)
        with self._evaluating():
            x, y = self.gwcs.invert(ra, dec, with_bounding_box=False)
        return x, y

    def box(self, shape: tuple[int, int]) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the bounding box ((x1, x2), (y1, y2)); all of an image of `shape` if unset."""
        if self._imaging is not None:
            box = self._imaging.box
        else:
            box = self.gwcs.bounding_box
            box = None if box is None else box.bounding_box(order="F")
        if box is None:
            return (-0.5, shape[1] - 0.5), (-0.5, shape[0] - 0.5)
        x, y = (tuple(map(float, limits)) for limits in box)
        return (min(x), max(x)), (min(y), max(y))

    def footprint(self, shape: tuple[int, int]) -> np.ndarray:
        """RA, Dec (4, 2) of the corners of the bounding box."""
        (x1, x2), (y1, y2) = self.box(shape)
        corners = np.array([(x1, y1), (x1, y2), (x2, y2), (x2, y1)])
        ra, dec = self.pixel_to_sky(*corners.T, everywhere=True)
        return np.column_stack([np.mod(ra, 360.0), dec])


def read_wcs(asdf_bytes: bytes | None, where: str) -> InputWcs:
    """Read the GWCS of an exposure from the contents of its ASDF extension.

    Parameters
    ----------
    asdf_bytes : bytes or None
        The embedded ASDF file.
    where : str
        Name of the file, for messages.

    Returns
    -------
    InputWcs
        From a cache where the transform was read before.

    Raises
    ------
    ExposureError
        No extension, no WCS in it, or one that cannot be read.

    Notes
    -----
    A WCS as the JWST pipeline writes it takes a few milliseconds (`gpucoron.io.imaging_wcs`);
    any other goes through asdf and gwcs, whose import takes two seconds, with the same results.
    """
    if not asdf_bytes:
        raise ExposureError(
            f"{where}: no ASDF extension, so no WCS; expected one from assign_wcs (calwebb_image2)"
        )
    document = _wcs_document(bytes(asdf_bytes))
    try:
        usable = _evaluator(document) is not None or _has_two_axes(_parse(document))
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ExposureError(
            f"{where}: the ASDF extension cannot be read: {type(error).__name__}: {reason}"
        ) from error
    if not usable:
        raise ExposureError(
            f"{where}: no WCS with two axes in the ASDF extension (meta.wcs); "
            f"expected one from assign_wcs (calwebb_image2)"
        )
    return InputWcs(document, hashlib.sha256(document).hexdigest(), where)


def _has_two_axes(wcs) -> bool:
    return hasattr(wcs, "forward_transform") and wcs.output_frame.naxes == 2


@functools.lru_cache(maxsize=CACHED)
def _evaluator(document: bytes) -> ImagingWcs | None:
    """Return what evaluates the WCS of an ASDF file; None where that takes gwcs."""
    try:
        return read_imaging_wcs(document)
    except Unusual as problem:
        log.debug("a WCS that needs asdf and gwcs: %s", " ".join(str(problem).split()))
    return None


def _wcs_document(blob):
    """Cut the WCS and the binary blocks out of an ASDF file as one of its own; else all of it."""
    end = blob.find(b"\n...")
    begin = re.search(rb"^---[^\n]*\n", blob[: max(end, 0)], re.MULTILINE)
    meta = re.search(rb"^meta:[ ]*$", blob[: max(end, 0)], re.MULTILINE)
    found = meta and re.compile(rb"^  wcs:", re.MULTILINE).search(blob, meta.end(), end)
    if not (begin and found):
        return blob
    after = re.compile(rb"^ {0,2}\S", re.MULTILINE).search(blob, found.end(), end)
    section = blob[found.start() : after.start() if after else end + 1]
    if set(re.findall(rb"\*(id\d+)", section)) - set(re.findall(rb"&(id\d+)", section)):
        return blob
    blocks = blob.find(b"\xd3BLK", end)
    index = blob.rfind(b"#ASDF BLOCK INDEX")
    binary = blob[blocks : index if index > blocks else None] if blocks > 0 else b""
    return blob[: begin.end()] + b"meta:\n" + section.rstrip(b"\n") + b"\n...\n" + binary


@functools.lru_cache(maxsize=CACHED)
def _parse(document):
    with opened(document) as tree:
        return tree.get("meta", {}).get("wcs")


def output_wcs(
    wcss: Sequence[InputWcs],
    metas: Sequence[ExposureMeta],
    shapes: Sequence[tuple[int, ...]],
    *,
    pixel_scale: float | None = None,
    pixel_scale_ratio: float | None = 1.0,
    rotation: float | None = None,
    crpix: Sequence[float] | None = None,
    crval: Sequence[float] | None = None,
    output_shape: Sequence[int] | None = None,
    output_wcs_file: str | None = None,
) -> OutputWcs:
    """Lay out the image that combines exposures, as the jwst package does.

    Parameters
    ----------
    wcss, metas, shapes : sequences, one entry an exposure
        WCS, metadata and shape (..., ny, nx) of the exposures; the first sets scale and rotation.
    pixel_scale : float, arcsec
        Output scale; overrides `pixel_scale_ratio`.
    pixel_scale_ratio : float
        Output over input scale, the input's being that at RA_REF, DEC_REF.
    rotation : float, degrees
        Position angle of the y axis, east of north; None keeps the first exposure's orientation.
    crpix : (x, y)
        Reference pixel, counted from 0.
    crval : (ra, dec), degrees
        Its position; by default the middle of all footprints.
    output_shape : (nx, ny)
        Shape, x first as in the jwst package; by default what holds all footprints.
    output_wcs_file : str
        ASDF file with a WCS under ``wcs``, and perhaps ``pixel_scale``, ``pixel_area``,
        ``array_shape`` or ``pixel_shape``. The other parameters but `output_shape` are ignored.

    Returns
    -------
    OutputWcs

    Raises
    ------
    ParameterError
        A parameter of the wrong kind, a file that cannot be used, or a shape below 2 x 2 pixels.
    ExposureError
        The first exposure's WCS cannot be evaluated.

    Notes
    -----
    CRVAL is the direction of the middle between least and greatest Cartesian coordinates of all
    corners of S_REGION; the scale is the geometric mean of the x and y scales; PC follows ROLL_REF,
    V3I_YANG and VPARITY; CRPIX puts the least corner at 0, and the shape is the greatest, rounded.
    An exposure without S_REGION counts with the footprint of its GWCS, and one without angles with
    the orientation of its GWCS, each with a line in the log.
    """
    from gpucoron.io import wcs_layout

    request = wcs_layout.check_request(
        pixel_scale=pixel_scale,
        pixel_scale_ratio=pixel_scale_ratio,
        rotation=rotation,
        crpix=crpix,
        crval=crval,
        output_shape=output_shape,
    )
    shapes = [tuple(shape[-2:]) for shape in shapes]
    if output_wcs_file:
        layout = wcs_layout.from_file(output_wcs_file, request.shape, wcss[0], metas[0], shapes[0])
    else:
        layout = wcs_layout.from_inputs(wcss, metas, shapes, request)
    return dataclasses.replace(
        layout, s_region=wcs_layout.combined_region(layout, wcss, metas, shapes)
    )


def check_outlines(
    wcss: Sequence[InputWcs], metas: Sequence[ExposureMeta], shapes: Sequence[tuple[int, ...]]
) -> None:
    """Raise ExposureError where exposures are too far apart for one image; as `output_wcs`."""
    from gpucoron.io import wcs_layout

    wcs_layout.check_outlines(wcss, metas, [tuple(shape[-2:]) for shape in shapes])


def pixel_map(input_wcs: InputWcs, output_wcs: OutputWcs, shape: tuple[int, ...]) -> np.ndarray:
    """Map every pixel of an input image to the output image.

    Parameters
    ----------
    input_wcs : InputWcs
    output_wcs : OutputWcs
    shape : (..., ny, nx)
        Shape of the input.

    Returns
    -------
    (ny, nx, 2) float64
        x and y in output pixels (0-based); NaN outside the input's bounding box.
    """
    ny, nx = shape[-2:]
    (x1, x2), (y1, y2) = input_wcs.box((ny, nx))
    inside = x1 <= 0 and y1 <= 0 and x2 >= nx - 1 and y2 >= ny - 1
    y, x = np.indices((ny, nx), dtype=np.float64)
    sky = input_wcs.pixel_to_sky(x, y, everywhere=inside)
    mapped = np.empty((ny, nx, 2))
    mapped[..., 0], mapped[..., 1] = output_wcs.sky_to_pixel(*sky)
    return mapped


def pixel_maps(
    input_wcss: Sequence[InputWcs], output_wcs: OutputWcs, shapes: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
    """Map several inputs, computing each different map once: equal inputs get the same array."""
    known: dict[tuple, np.ndarray] = {}
    maps = []
    for wcs, shape in zip(input_wcss, shapes, strict=True):
        key = (wcs, tuple(shape[-2:]))
        if key not in known:
            known[key] = pixel_map(wcs, output_wcs, shape)
        maps.append(known[key])
    return maps
