"""The types of products, and the images of each exposure and number of KL modes."""

from __future__ import annotations

from typing import Any, TypeVar

__all__ = ["PRODUCTS", "ByExposureAndModes"]

#: Everything that can be written or kept, in the order in which it comes about.
PRODUCTS = ("crfints", "median", "psfstack", "psfalign", "psfsub", "i2d")

T = TypeVar("T")


class ByExposureAndModes(dict[tuple[str, int], T]):
    """A dict by exposure (root name) and number of KL modes.

    A root name alone is looked up as well: with several numbers of modes it is the first, as
    `ProductResult.i2d` is the first of `ProductResult.i2ds`. So is what files have in their names,
    ``root_kl010``.
    """

    def __missing__(self, key: Any) -> T:
        found = self._key(key)
        if found is None:
            raise KeyError(key)
        return self[found]

    def __contains__(self, key: object) -> bool:
        return self._key(key) is not None

    def get(self, key: Any, default: Any = None) -> Any:
        """Return an entry, or `default`."""
        found = self._key(key)
        return default if found is None else self[found]

    def _key(self, key: object) -> tuple[str, int] | None:
        """Return the whole key of an entry; None where there is none."""
        if isinstance(key, tuple) and dict.__contains__(self, key):
            return key
        return next((k for k in self if key in (k[0], f"{k[0]}_kl{k[1]:03d}")), None)
