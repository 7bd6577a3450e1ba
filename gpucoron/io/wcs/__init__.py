"""World coordinates: the GWCS of exposures, the WCS of their combination, and pixel maps."""

from gpucoron.io.wcs.exposure import (
    InputWcs,
    direction,
    find_wcs,
    pixel_map,
    read_wcs,
    sky_position,
)
from gpucoron.io.wcs.from_header import header_wcs
from gpucoron.io.wcs.layout import check_outlines, output_wcs, region_distance
from gpucoron.io.wcs.tan import OutputWcs

__all__ = [
    "InputWcs",
    "OutputWcs",
    "check_outlines",
    "direction",
    "find_wcs",
    "header_wcs",
    "output_wcs",
    "pixel_map",
    "read_wcs",
    "region_distance",
    "sky_position",
]
