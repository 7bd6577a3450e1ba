"""The types of products."""

__all__ = ["PRODUCTS"]

#: Everything that can be written or kept, in the order in which it comes about.
PRODUCTS = ("crfints", "median", "psfstack", "psfalign", "psfsub", "i2d")
