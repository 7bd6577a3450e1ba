"""Reading and writing files: the only FITS, ASDF and WCS code, together with its modules below.

Names are looked up on first use, so that importing this package costs nothing.
"""

from gpucoron._lazy import attach

_MODULE_OF = {
    "Association": "association",
    "Member": "association",
    "Product": "association",
    "check_members": "inspection",
    "exposure_root": "names",
    "product_names": "product_naming",
    "read_association": "association",
    "standard_product_name": "product_naming",
    "Exposure": "exposures",
    "ExposureMeta": "exposures",
    "read_exposure": "exposures",
    "read_meta": "exposures",
    "find_psfmask": "psfmask",
    "read_psfmask": "psfmask",
    "InputWcs": "wcs",
    "OutputWcs": "wcs",
    "output_wcs": "wcs",
    "pixel_map": "wcs",
    "read_wcs": "wcs",
    "Provenance": "products",
    "PsfalignWriter": "products",
    "write_crfints": "products",
    "write_i2d": "products",
    "write_psfstack": "products",
    "write_psfsub": "products",
}

__all__ = sorted(_MODULE_OF)

__getattr__, __dir__ = attach(globals(), _MODULE_OF)
