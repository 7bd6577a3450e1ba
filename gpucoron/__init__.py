"""gpucoron: PSF subtraction for JWST coronagraphy, from an association to what lies round the star.

>>> import gpucoron
>>> result = gpucoron.run("jw01386-c1020_coron3_asn.json")   # doctest: +SKIP
>>> result.product.i2d.data                                  # doctest: +SKIP

`run` does the whole job. `gpucoron.steps` has the five steps and `gpucoron.ops` what they are made
of; both take arrays and never touch a file. Names are looked up on first use, so that importing the
package costs next to nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_MODULE_OF = {
    "run": "pipeline",
    "plan": "pipeline",
    "Result": "result",
    "ProductResult": "result",
    "IntegrationStack": "stack",
    "PlaneSource": "stack",
    "Parameters": "parameters",
    "GpucoronError": "errors",
    "UsageError": "errors",
    "ParameterError": "errors",
    "InputError": "errors",
    "AssociationError": "errors",
    "ExposureError": "errors",
    "MaskError": "errors",
    "DeviceError": "errors",
    "OutputError": "errors",
}
_PACKAGES = ("io", "ops", "simulate", "steps")

__all__ = sorted({*_MODULE_OF, *_PACKAGES, "__version__"} - {"io"})


def __getattr__(name: str):
    """Import what a public name stands for when it is first asked for."""
    if name in _PACKAGES:
        return import_module(f"gpucoron.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'gpucoron' has no attribute {name!r}")
    value = getattr(import_module(f"gpucoron.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted(set(globals()) | set(__all__))
