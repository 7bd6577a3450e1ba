"""ERR and VAR_* of an exposure, looked at before the work by the rules that the work uses."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from gpucoron.core.stack import LEAST_VARIANCE, VARIANCES
from gpucoron.io.fits.reading import FitsFile
from gpucoron.io.fits.walk import Hdu
from gpucoron.ops.dq import DO_NOT_USE

__all__ = ["ErrorPlanes"]

_VARIANCES = tuple(name.upper() for name in VARIANCES)
#: What a value must be for an extension to tell anything, in words and as a function.
_GOOD = {
    "ERR": ("above 0", lambda v: v > 0),
    "VAR_RNOISE": ("above 0", lambda v: v >= LEAST_VARIANCE),
    "VAR_POISSON": ("of 0 or more", lambda v: v >= 0),
    "VAR_FLAT": ("of 0 or more", lambda v: v >= 0),
}
_KINDS = (
    ("NaN", np.isnan),
    ("infinite", np.isinf),
    ("negative", lambda v: (v < 0) & np.isfinite(v)),
    ("0", lambda v: v == 0),
    (f"below {LEAST_VARIANCE:.2g}", lambda v: (v > 0) & (v < LEAST_VARIANCE)),
)


class ErrorPlanes:
    """The pixels of an exposure's file, read one integration at a time and no more than needed.

    Parameters
    ----------
    file : FitsFile
    sci : Hdu
        SCI; a companion of another shape is not looked at.
    """

    def __init__(self, file: FitsFile, sci: Hdu):
        self._file, self._n = file, sci.shape[0] if len(sci.shape) == 3 else 1
        self._hdus = {"SCI": sci}
        for name in ("ERR", "DQ", *_VARIANCES):
            hdu = file.find(name)
            if hdu is not None and hdu.is_image and hdu.shape == sci.shape and not hdu.empty:
                self._hdus[name] = hdu
        self.names = tuple(name for name in _GOOD if name in self._hdus)
        # the first integration mostly answers all questions
        self._floats = functools.lru_cache(len(self._hdus))(self._read)

    def _read(self, name: str, i: int) -> np.ndarray:
        return self._file.floats(self._hdus[name].plane(i))

    def problem(self, name: str) -> str:
        """Return what is wrong with ERR or a VAR_* none of whose values is good; "" otherwise."""
        expected, good = _GOOD[name]
        counts = dict.fromkeys([kind for kind, _ in _KINDS], 0)
        for i in range(self._n):
            values = self._floats(name, i)
            if (np.isfinite(values) & good(values)).any():
                return ""
            for kind, which in _KINDS:
                counts[kind] += int(which(values).sum())
        found = [f"{kind} in {count}" for kind, count in counts.items() if count]
        if len(found) == 1:
            return f"{name} is {found[0].split(' in ')[0]} in every pixel"
        return f"{name} has no value {expected} ({', '.join(found)} pixels)"

    def unused(self, science: bool) -> dict[str, str]:
        """Return which of ERR and VAR_* tell nothing, and what is wrong with them.

        Of the variances of a reference only NaN matters, which would make every pixel bad.
        """
        found = {}
        for name in self.names:
            if science or name == "ERR" or self.all_nan(name):
                found[name] = self.problem(name)
        return {name: problem for name, problem in found.items() if problem}

    def all_nan(self, name: str) -> bool:
        """Return whether ERR or a VAR_* is NaN in every pixel."""
        return all(bool(np.isnan(self._floats(name, i)).all()) for i in range(self._n))

    def why_unusable(self, names: Sequence[str]) -> str:
        """Return why no pixel can be used; "" where one can.

        One can where SCI is finite, DQ has no DO_NOT_USE, and none of `names` (ERR, VAR_*) is NaN.
        """
        found = False
        for i in range(self._n):
            good = np.isfinite(self._floats("SCI", i))
            if "DQ" in self._hdus:
                good &= (self._file.bits(self._hdus["DQ"].plane(i)) & DO_NOT_USE) == 0
            found |= bool(good.any())
            for name in names if good.any() else ():
                good &= ~np.isnan(self._floats(name, i))
            if good.any():
                return ""
        if not found:
            return "no integration has a usable pixel (finite and not flagged DO_NOT_USE)"
        all_nan = [name for name in names if self.all_nan(name)]
        if not all_nan:
            return f"no integration has a usable pixel that is not NaN in {', '.join(names)}"
        return (
            f"{' and '.join(all_nan)} {'are' if all_nan[1:] else 'is'} NaN in every pixel, and a "
            "pixel cannot be used where ERR or a VAR_* is NaN"
        )
