"""Reading and writing files: the only FITS, ASDF and WCS code, together with its modules below.

Names are looked up on first use, so that importing this package costs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
