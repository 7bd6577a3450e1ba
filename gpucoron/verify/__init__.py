"""Compare gpucoron with the jwst package, product by product.

`verify` runs both pipelines on one association, each in its own process, and compares their
products; `compare_products` compares two folders of products. Modules load on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
