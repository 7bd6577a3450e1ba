"""Data quality (DQ) bits: names, masks written as text, good pixels."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = [
    "FLAGS",
    "DO_NOT_USE",
    "FLUX_ESTIMATED",
    "NON_SCIENCE",
    "OUTLIER",
    "bad_mask",
    "good_pixels",
    "interpret_bit_flags",
]

_NAMES = (
    "DO_NOT_USE SATURATED JUMP_DET DROPOUT OUTLIER PERSISTENCE AD_FLOOR CHARGELOSS RESERVED "
    "NON_SCIENCE DEAD HOT WARM LOW_QE RC TELEGRAPH NONLINEAR BAD_REF_PIXEL NO_FLAT_FIELD "
    "NO_GAIN_VALUE NO_LIN_CORR NO_SAT_CHECK UNRELIABLE_BIAS UNRELIABLE_DARK UNRELIABLE_SLOPE "
    "UNRELIABLE_FLAT OPEN ADJ_OPEN FLUX_ESTIMATED MSA_FAILED_OPEN OTHER_BAD_PIXEL REFERENCE_PIXEL"
).split()

#: Value of each flag of a JWST DQ array, in the order of the bits.
FLAGS: dict[str, int] = {"GOOD": 0} | {name: 1 << bit for bit, name in enumerate(_NAMES)}

DO_NOT_USE = FLAGS["DO_NOT_USE"]
OUTLIER = FLAGS["OUTLIER"]
NON_SCIENCE = FLAGS["NON_SCIENCE"]
FLUX_ESTIMATED = FLAGS["FLUX_ESTIMATED"]


def interpret_bit_flags(flags: str | int | Iterable | None) -> int | None:
    """Turn a selection of DQ bits into an integer mask.

    Parameters
    ----------
    flags : str, int, iterable of int or str, or None
        An integer mask; or names and powers of two joined by one kind of ``+``, ``,`` or ``|``,
        with or without parentheses, and a leading ``~`` for the complement
        (``"DO_NOT_USE+SATURATED"``, ``"~(1,4)"``); or a list of them.

    Returns
    -------
    int or None
        The mask, negative for a complement; None for None, ``""``, ``"None"`` and ``"INDEF"``,
        which mean that no bit is looked at.

    Raises
    ------
    ValueError
        A name that no flag has, or a text that is no selection of bits.

    Notes
    -----
    The meaning is that of ``astropy.nddata.bitmask.interpret_bit_flags`` with the jwst package's
    flag names, but names may also be in lower case and may stand beside numbers.
    """
    if flags is None:
        return None
    if isinstance(flags, str):
        return _interpret_text(flags)
    if isinstance(flags, Iterable):
        items = list(flags)
        return _combine([_value(item) for item in items], many=True)
    return _value(flags)


def _interpret_text(text: str) -> int | None:
    body = text.strip()
    if body.upper() in ("", "NONE", "INDEF"):
        return None
    flip = body.startswith("~")
    body = body[1:].strip() if flip else body
    while body.startswith("(") and body.endswith(")"):
        body = body[1:-1].strip()
    if re.search(r"[()~]", body):
        raise ValueError(f"expected DQ flags such as 'A+B' or '~(A+B)', not {text!r}")
    separators = set(re.findall(r"[+,|]", body))
    if len(separators) > 1:
        raise ValueError("expected DQ flags joined by one kind of '+', ',' or '|'")
    items = [item.strip() for item in re.split(r"[+,|]", body)]
    mask = _combine([_value(item) for item in items], many=len(items) > 1)
    return ~mask if flip else mask


def _value(item) -> int:
    if isinstance(item, str):
        if re.fullmatch(r"[+-]?\d+", item):
            return int(item)
        if item.upper() in FLAGS:
            return FLAGS[item.upper()]
        close = difflib.get_close_matches(item.upper(), FLAGS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"expected names of JWST DQ flags or integers, not {item!r}{hint}")
    if isinstance(item, bool) or not hasattr(item, "__index__"):
        raise ValueError(f"expected names of JWST DQ flags or integers, not {item!r}")
    return item.__index__()


def _combine(values: list[int], many: bool) -> int:
    mask = 0
    for value in values:
        if many and (value < 1 or value.bit_count() != 1):
            raise ValueError(f"expected DQ flags that are powers of two, not {value}")
        mask |= value
    return mask


def bad_mask(good_bits: str | int | None, dtype) -> int:
    """Return the bits that make a pixel bad.

    Parameters
    ----------
    good_bits : str, int or None
        As for `good_pixels`.
    dtype : numpy.dtype
        Of the DQ array.

    Returns
    -------
    int
        From 0 up to the largest value of the dtype.
    """
    mask = interpret_bit_flags(good_bits)
    return 0 if mask is None else ~mask & ((1 << 8 * dtype.itemsize) - 1)


def good_pixels(dq, good_bits: str | int | None):
    """Return which pixels are good.

    Parameters
    ----------
    dq : (...) unsigned integer array
        DQ, NumPy or CuPy.
    good_bits : str, int or None
        Bits that a good pixel may carry, as `interpret_bit_flags` takes them; with None every
        pixel is good, with ``"~DO_NOT_USE"`` every pixel that does not carry DO_NOT_USE.

    Returns
    -------
    (...) bool array
        True where no other bit is set.
    """
    return (dq & dq.dtype.type(bad_mask(good_bits, dq.dtype))) == 0
