"""World coordinates: the GWCS of exposures, the WCS of their combination, and pixel maps."""

from gpucoron.io.wcs.exposure import InputWcs, pixel_map, read_wcs
from gpucoron.io.wcs.layout import check_outlines, output_wcs
from gpucoron.io.wcs.tan import OutputWcs

__all__ = ["InputWcs", "OutputWcs", "check_outlines", "output_wcs", "pixel_map", "read_wcs"]
