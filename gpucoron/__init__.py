"""PSF subtraction for JWST coronagraphy (calwebb_coron3 on CPU or GPU).

>>> import gpucoron
>>> result = gpucoron.run("jw01386-c1020_coron3_asn.json")   # doctest: +SKIP
>>> result.product.i2d.data                                  # doctest: +SKIP

`run` processes an association. `gpucoron.steps` has the five steps and `gpucoron.ops` the array
functions that they are made of; neither touches a file. Names are looked up on first use, so that
importing the package costs next to nothing; ``__init__.pyi`` lists them.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted({*__all__, "__version__"} - {"io"})


def __dir__():
    return sorted({*__all__, "io"})
