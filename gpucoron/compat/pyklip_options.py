"""The arguments of pyKLIP's ``klip_dataset``, checked."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucoron.errors import ParameterError

__all__ = ["KlipOptions"]

_MODES = ("ADI", "RDI", "ADI+RDI")
_COLLAPSES = ("mean", "median", "weighted-mean", "weighted-median", "trimmed-mean")
_SPACINGS = ("constant", "log", "linear")
_DTYPES = {
    np.dtype(np.float32): (None, ctypes.c_float, np.float32),
    np.dtype(np.float64): (ctypes.c_double, float, np.float64),
}


@dataclass(frozen=True)
class KlipOptions:
    """How to subtract and combine; the names are those of pyKLIP's arguments."""

    mode: str
    annuli: int
    subsections: int
    movement: float
    numbasis: np.ndarray  # (b,) int
    maxnumbasis: int
    minrot: float
    annuli_spacing: str
    smooth: bool
    highpass: bool | float
    subtract: bool
    skip_derot: bool
    calibrate_flux: bool
    save_aligned: bool
    save_ints: bool
    time_collapse: str
    wv_collapse: str
    dtype: np.dtype

    @property
    def adi(self) -> bool:
        """Whether images of the sequence are references."""
        return "ADI" in self.mode.upper()

    @property
    def rdi(self) -> bool:
        """Whether images of a library are references."""
        return "RDI" in self.mode.upper()

    @property
    def weighted(self) -> bool:
        """Whether images are combined with weights from their noise."""
        return self.time_collapse.startswith("weighted")

    def klipparams(self, highpass: Any, numbasis: str) -> str:
        """Return what pyKLIP writes into PSFPARAM, with ``{numbasis}`` for that of a file."""
        return (
            f"mode={self.mode},annuli={self.annuli},subsect={self.subsections},"
            f"minmove={self.movement},numbasis={numbasis}/{self.maxnumbasis},"
            f"minrot={self.minrot},calibflux={self.calibrate_flux},spectrum=None,"
            f"highpass={highpass}, time_collapse={self.time_collapse}, "
            f"skip_derot={self.skip_derot}"
        )

    @classmethod
    def checked(cls, n_images: int, **given: Any) -> KlipOptions:
        """Check the arguments of ``klip_dataset``; ParameterError names the one that is wrong."""
        _refuse_unsupported(given)
        subtract = given["algo"].lower() == "klip"
        numbasis = _numbasis(given["numbasis"], n_images) if subtract else np.array([1])
        maxnumbasis = given["maxnumbasis"]
        return cls(
            mode=given["mode"],
            annuli=_whole("annuli", given["annuli"]),
            subsections=_whole("subsections", given["subsections"]),
            movement=_number("movement", given["movement"]) if subtract else 0,
            numbasis=numbasis,
            maxnumbasis=int(numbasis.max())
            if maxnumbasis is None
            else _whole("maxnumbasis", maxnumbasis),
            minrot=_number("minrot", given["minrot"]),
            annuli_spacing=_choice(
                "annuli_spacing", str(given["annuli_spacing"]).lower(), _SPACINGS
            ),
            smooth=_number("corr_smooth", given["corr_smooth"]) > 0,
            highpass=_highpass(given["highpass"]),
            subtract=subtract,
            skip_derot=bool(given["skip_derot"]),
            calibrate_flux=bool(given["calibrate_flux"]),
            save_aligned=given["save_aligned"] is True,
            save_ints=bool(given["save_ints"]),
            time_collapse=_choice("time_collapse", str(given["time_collapse"]).lower(), _COLLAPSES),
            wv_collapse=_choice("wv_collapse", str(given["wv_collapse"]).lower(), _COLLAPSES),
            dtype=_dtype(given["dtype"]),
        )


def _refuse_unsupported(given):
    mode = str(given["mode"])
    if "+".join(sorted(mode.upper().split("+"))) not in _MODES:
        why = ": SDI is not available" if "SDI" in mode.upper() else ""
        raise ParameterError(f"mode={mode!r}{why}; expected one of {', '.join(_MODES)}")
    if given["spectrum"] is not None:
        raise ParameterError("spectrum: weights for SDI, which is not available; expected None")
    algo = given["algo"]
    if str(algo).lower() not in ("klip", "none"):
        raise ParameterError(f"algo={algo!r} is not available; expected 'klip' or 'none'")
    if given["lite"] and "RDI" in mode.upper():
        raise ParameterError("lite=True with RDI is not available, in pyKLIP neither")
    if given["lite"] and (given["save_aligned"] is True or given["restored_aligned"] is not None):
        raise ParameterError(
            "lite=True does not go with save_aligned or restored_aligned, in pyKLIP neither"
        )


def _numbasis(value, n_images):
    if value is None:  # pyKLIP's default
        return np.arange(1, min(n_images, 100) + 5, 10)
    numbasis = np.atleast_1d(np.asarray(value))
    if numbasis.ndim != 1 or numbasis.dtype.kind not in "iu" or not numbasis.size:
        raise ParameterError(f"numbasis is {value!r}, expected an integer or a list of integers")
    if numbasis.min() < 1:
        raise ParameterError(f"numbasis has {numbasis.min()}, expected 1 or more")
    return numbasis


def _choice(name, value, choices: Sequence[str]):
    if value not in choices:
        raise ParameterError(f"{name}={value!r}, expected one of {', '.join(choices)}")
    return value


def _whole(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ParameterError(f"{name} is {value!r}, expected an integer of 1 or more")
    return int(value)


def _number(name, value):
    if isinstance(value, (int, float, np.number)) and np.isfinite(value) and value >= 0:
        return value
    raise ParameterError(f"{name} is {value!r}, expected a number of 0 or more")


def _highpass(value):
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, float, np.number)) and np.isfinite(value) and value > 0:
        return float(value)
    raise ParameterError(
        f"highpass is {value!r}, expected True, False or the width of the filter in pixels"
    )


def _dtype(value):
    for dtype, names in _DTYPES.items():
        if any(value is name for name in names) or (isinstance(value, np.dtype) and value == dtype):
            return dtype
    raise ParameterError(f"dtype is {value!r}, expected ctypes.c_float or ctypes.c_double")
