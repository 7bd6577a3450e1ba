"""The kinds of products."""

__all__ = ["PRODUCTS"]

#: Everything that can be written or kept; "median" is written only if asked for.
PRODUCTS = ("crfints", "psfstack", "psfalign", "psfsub", "i2d", "median")
