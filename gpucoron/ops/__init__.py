"""Array functions: median, outliers, Fourier shift, registration, KLIP, drizzle.

Modules are imported on first use; ``__init__.pyi`` lists them.
"""

import lazy_loader

from gpucoron.backend.caches import numba_cache

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

numba_cache()
