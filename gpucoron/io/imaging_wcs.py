"""The WCS of a JWST image, evaluated without asdf, astropy.modeling and gwcs.

Results are those of gwcs to the last bit. A WCS with anything out of the ordinary raises `Unusual`
when it is read, and goes to gwcs (see `gpucoron.io.wcs`).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np

from gpucoron.io.asdf_nodes import Node, Unusual, blocks, number, read_nodes
from gpucoron.io.transforms import Builder, Transform

__all__ = ["ImagingWcs", "read_imaging_wcs", "split_document"]

Interval = tuple[float, float]
_WCS_TAG = re.compile(r"tag:stsci\.edu:gwcs/wcs-1\.\d+\.\d+")
_STEP_TAG = re.compile(r"tag:stsci\.edu:gwcs/step-1\.\d+\.\d+")
_FRAME_TAG = re.compile(r"tag:stsci\.edu:gwcs/(frame2d|celestial_frame)-1\.\d+\.\d+")
_BOX_TAG = re.compile(r"tag:stsci\.edu:asdf/transform/property/bounding_box-1\.\d+\.\d+")


@dataclass(frozen=True)
class ImagingWcs:
    """Pixels, counted from 0, to RA and Dec in degrees, and back.

    Parameters
    ----------
    forward : Transform
    box : ((x1, x2), (y1, y2)) or None
        Where it is valid; None means everywhere.
    """

    forward: Transform
    box: tuple[Interval, Interval] | None

    def pixel_to_sky(self, x, y, everywhere: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """RA and Dec; NaN outside the bounding box unless `everywhere`."""
        x, y, shape = _points(x, y)
        if everywhere or self.box is None:
            return _shaped(self.forward.evaluate(x, y), shape)
        (x1, x2), (y1, y2) = self.box
        inside = ~((x < x1) | (x > x2) | (y < y1) | (y > y2))
        sky = [np.full(x.shape, np.nan), np.full(x.shape, np.nan)]
        if inside.any():
            for out, found in zip(sky, self.forward.evaluate(x[inside], y[inside]), strict=True):
                out[inside] = found
        return _shaped(sky, shape)

    def sky_to_pixel(self, ra, dec) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of sky positions.

        Raises
        ------
        NoInverse
            The WCS has no inverse in closed form.
        """
        ra, dec, shape = _points(ra, dec)
        return _shaped(self.backward.evaluate(ra, dec), shape)

    @functools.cached_property
    def backward(self) -> Transform:
        """The inverse; raises NoInverse where there is none in closed form."""
        return self.forward.inverse()


def _points(a, b):
    """Return two inputs as arrays of at least one axis, and their common shape."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    return np.atleast_1d(a), np.atleast_1d(b), a.shape


def _shaped(arrays, shape):
    return tuple(np.reshape(a, shape) for a in arrays)


def split_document(document: bytes) -> tuple[bytes, bytes]:
    """Return the YAML text of an ASDF file and what follows it; Unusual where there is no text."""
    end = re.search(rb"^\.\.\.(?:\r?\n|\Z)", document, re.MULTILINE)
    if end is None:
        raise Unusual("no end of the YAML text")
    return document[: end.end()], document[end.end() :]


def read_imaging_wcs(document: bytes) -> ImagingWcs:
    """Read meta.wcs of an ASDF file.

    Raises
    ------
    Unusual
        It cannot be evaluated here.
    TooDeep
        It is nested so deeply that it must not be evaluated at all.
    """
    text, binary = split_document(document)
    meta = read_nodes(text).get("meta")
    wcs = meta.get("wcs") if meta is not None else None
    if wcs is None or not _WCS_TAG.fullmatch(wcs.tag or ""):
        raise Unusual("no meta.wcs")
    steps = wcs.get("steps")
    others = set(wcs.value) - {"name", "steps", "pixel_shape"}
    if others or steps is None or len(steps.items) < 2:
        raise Unusual("steps of the WCS")
    builder = Builder(blocks(binary))
    transforms = _transforms(steps.items)
    forward = functools.reduce(Transform.then, map(builder.build, transforms))
    if (forward.n_inputs, forward.n_outputs) != (2, 2):
        raise Unusual("a WCS of other than two axes")
    return ImagingWcs(forward, _box(transforms[0]))


def _transforms(steps: list[Node]) -> list[Node]:
    """Return the transforms of the steps, whose frames must be ordinary ones."""
    found = []
    for step in steps:
        frame = step.get("frame")
        if not _STEP_TAG.fullmatch(step.tag or "") or set(step.value) - {"frame", "transform"}:
            raise Unusual("a step of the WCS")
        if frame is None or not _FRAME_TAG.fullmatch(frame.tag or ""):
            raise Unusual("a frame of the WCS")
        order = frame.get("axes_order")
        if order is not None and [number(n) for n in order.items] != [0, 1]:
            raise Unusual("a frame with its axes exchanged")
        found.append(step.get("transform"))
    last = found.pop()
    if last is not None and not last.null:
        raise Unusual("a transform of the last frame")
    return found


def _box(transform: Node) -> tuple[Interval, Interval] | None:
    """Return the bounding box of the first transform, x first."""
    box = transform.get("bounding_box")
    if box is None:
        return None
    if isinstance(box.value, list) and box.tag is None and len(box.value) == 2:
        return _interval(box.value[1]), _interval(box.value[0])  # as long ago: y first
    inputs, intervals, ignored = transform.get("inputs"), box.get("intervals"), box.get("ignore")
    if (
        not _BOX_TAG.fullmatch(box.tag or "")
        or inputs is None
        or intervals is None
        or (ignored is not None and ignored.value)
    ):
        raise Unusual("bounding_box")
    names = [str(name.value) for name in inputs.items]
    if len(set(names)) != 2 or set(names) != set(intervals.value):
        raise Unusual("intervals of bounding_box")
    x, y = (_interval(intervals.value[name]) for name in names)
    return x, y


def _interval(node: Node) -> Interval:
    if len(node.items) != 2:
        raise Unusual("an interval of bounding_box")
    low, high = map(number, node.items)
    if low > high:
        raise Unusual("an interval that ends before it begins")
    return low, high
