"""Reading and writing files: the only FITS, ASDF and WCS code, together with its modules below.

Names are looked up on first use, so that importing this package costs nothing.
"""

from importlib import import_module

_MODULE_OF = {
    "Association": "association",
    "Member": "association",
    "Product": "association",
    "check_members": "association",
    "exposure_root": "names",
    "product_names": "names",
    "read_association": "association",
    "standard_product_name": "names",
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


def __getattr__(name: str):
    """Import the module that holds a public name when the name is first asked for."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted(set(globals()) | set(__all__))
