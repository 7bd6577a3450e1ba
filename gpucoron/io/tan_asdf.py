"""The GWCS of a resampled image as an ASDF file, written without asdf, gwcs and their two seconds.

One transform, FITSImagingWCSTransform, leads from the pixels to the sky: the structure that the
jwst package gives its i2d. Tags are those of the ASDF standard 1.6.0.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gpucoron.io.tan import OutputWcs

__all__ = ["tan_blob"]

_ARRAYS = ("crpix", "crval", "cdelt", "pc")
_TEXT = """\
#ASDF 1.0.0
#ASDF_STANDARD 1.6.0
%YAML 1.1
%TAG ! tag:stsci.edu:asdf/
--- !core/asdf-1.1.0
asdf_library: !core/software-1.0.0 {{name: gpucoron, version: {version}}}
meta:
  wcs: !<tag:stsci.edu:gwcs/wcs-1.4.0>
    name: ''
    pixel_shape: [{nx}, {ny}]
    steps:
    - !<tag:stsci.edu:gwcs/step-1.3.0>
      frame: !<tag:stsci.edu:gwcs/frame2d-1.2.0>
        axes_names: [x, y]
        axes_order: [0, 1]
        axis_physical_types: ['custom:x', 'custom:y']
        name: detector
        unit: [!unit/unit-1.0.0 pixel, !unit/unit-1.0.0 pixel]
      transform: !<tag:stsci.edu:gwcs/fitswcs_imaging-1.0.0>
        bounding_box: !transform/property/bounding_box-1.2.0
          ignore: []
          intervals:
            x: [{x1}, {x2}]
            y: [{y1}, {y2}]
          order: F
{arrays}\
        inputs: [x, y]
        outputs: [lon, lat]
        projection: !transform/gnomonic-1.4.0
          direction: pix2sky
          inputs: [x, y]
          outputs: [phi, theta]
    - !<tag:stsci.edu:gwcs/step-1.3.0>
      frame: !<tag:stsci.edu:gwcs/celestial_frame-1.2.0>
        axes_names: [lon, lat]
        axes_order: [0, 1]
        axis_physical_types: [pos.eq.ra, pos.eq.dec]
        name: world
        reference_frame: !<tag:astropy.org:astropy/coordinates/frames/icrs-1.1.0>
          frame_attributes: {{}}
        unit: [!unit/unit-1.0.0 deg, !unit/unit-1.0.0 deg]
      transform: null
...
"""
_ARRAY = """\
        {name}: !core/ndarray-1.1.0
          source: {source}
          datatype: float64
          byteorder: little
          shape: {shape}
"""


def tan_blob(wcs: OutputWcs) -> bytes:
    """Return an ASDF file with the GWCS of the output image under ``meta.wcs``."""
    from gpucoron import __version__

    arrays = {name: np.asarray(getattr(wcs, name), dtype="<f8") for name in _ARRAYS}
    entries = "".join(
        _ARRAY.format(name=name, source=i, shape=list(a.shape))
        for i, (name, a) in enumerate(arrays.items())
    )
    (x1, x2), (y1, y2) = wcs.box()
    text = _TEXT.format(
        version=__version__,
        nx=int(wcs.shape[1]),
        ny=int(wcs.shape[0]),
        arrays=entries,
        x1=_number(x1),
        x2=_number(x2),
        y1=_number(y1),
        y2=_number(y2),
    )
    return text.encode("ascii") + b"".join(_block(a.tobytes()) for a in arrays.values())


def _number(value: float) -> str:
    """Return a float as YAML 1.1 takes it for one: with a point, and all digits."""
    text = repr(float(value))
    return text if "." in text else text.replace("e", ".0e")


def _block(data: bytes) -> bytes:
    """Return an ASDF block: header, and data as they are."""
    size = len(data)
    head = struct.pack(">I4sQQQ16s", 0, b"", size, size, size, hashlib.md5(data).digest())
    return b"\xd3BLK" + struct.pack(">H", len(head)) + head + data
