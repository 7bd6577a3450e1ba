"""gpucoron: PSF subtraction for JWST coronagraphy, from an association to what lies round the star.

>>> import gpucoron
>>> result = gpucoron.run("jw01386-c1020_coron3_asn.json")   # doctest: +SKIP
>>> result.product.i2d.data                                  # doctest: +SKIP

`run` does the whole job. `gpucoron.steps` has the five steps and `gpucoron.ops` what they are made
of; both take arrays and never touch a file. Names are looked up on first use, so that importing the
package costs next to nothing.
"""

from gpucoron._lazy import attach

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

__getattr__, __dir__ = attach(globals(), _MODULE_OF, _PACKAGES)
