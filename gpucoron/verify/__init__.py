"""gpucoron beside the jwst package: run both on one association, compare every product.

`compare_products` compares two folders of products; `verify` runs both pipelines first, each in a
process of its own. Names are looked up on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
