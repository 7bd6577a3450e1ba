"""How results, stacks and tables are shown and compared: a short `repr`, HTML, and ``==``."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ArrayFields", "describe", "html_table", "short_html", "short_repr"]

_LONGEST = 60  # characters of one field
_LISTED = 4  # entries of a dict or tuple


class ArrayFields:
    """Base of dataclasses that hold arrays; use ``@dataclass(eq=False, repr=False)``.

    ``repr`` and the table that a notebook shows give shapes instead of pixels, and leave out what
    is None or empty. ``==`` compares all values, NaN equal to NaN, and gives one bool.
    """

    __hash__ = None  # type: ignore[assignment]  # as of every class that compares by value

    def __repr__(self) -> str:
        return short_repr(self)

    def _repr_html_(self) -> str:
        return short_html(self)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(getattr(self, n), getattr(other, n)) for n in _names(self))


def short_repr(value: Any) -> str:
    """Return the `repr` of a dataclass or named tuple, with shapes instead of pixels."""
    shown = ", ".join(f"{name}={text}" for name, text in _shown(value, brief=True))
    return f"{type(value).__name__}({shown})"


def short_html(value: Any) -> str:
    """Return the same as a table in HTML."""
    return f"<b>{type(value).__name__}</b>" + html_table((), _shown(value))


def describe(value: Any, brief: bool = False) -> str:
    """Describe a value in some words: shape and type of an array, number of entries of a dict.

    `brief` gives no more than the number of entries and what the first of them is.
    """
    if brief and isinstance(value, Mapping | list | tuple) and not hasattr(value, "_fields"):
        kinds = {
            type(v).__name__ for v in (value.values() if isinstance(value, Mapping) else value)
        }
        return f"<{len(value)} {' or '.join(sorted(kinds))}>"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return _describe_array(value)
    if isinstance(value, ArrayFields):
        label = getattr(value, "shape", None) or getattr(value, "name", "")
        return f"{type(value).__name__} {label}".strip()
    if isinstance(value, Mapping):
        if len(value) > _LISTED or not all(isinstance(v, int | float) for v in value.values()):
            return f"{{{_listed([f'{k!r}: {describe(v)}' for k, v in value.items()])}}}"
        return "{" + ", ".join(f"{k!r}: {v:.4g}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return f"[{_listed([describe(v) for v in value])}]"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    text = repr(value) if isinstance(value, str) else str(value)
    if "\n" in text or " object at 0x" in text:
        return type(value).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def html_table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in HTML; all texts are escaped."""
    lines = [("th", header)] * bool(header) + [("td", row) for row in rows]
    body = "".join(
        f"<tr>{''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in row)}</tr>"
        for tag, row in lines
    )
    return f"<table>{body}</table>"


def _describe_array(array: Any) -> str:
    names = array.dtype.names
    if names is not None:
        return f"table of {len(array)} rows: {', '.join(names)}"
    if array.ndim == 0 or array.size == 0:
        return f"{array.dtype} {array.shape}"
    where = " on a GPU" if hasattr(array, "__cuda_array_interface__") else ""
    if not where and array.ndim == 1 and array.size <= _LISTED and array.dtype.kind in "iuf":
        return f"[{', '.join(f'{v:.6g}' for v in array.tolist())}]"
    return f"{array.shape} {array.dtype}{where}"


def _listed(texts: list[str]) -> str:
    """Join texts with commas; no more than some of them, and no long ones."""
    if len(texts) > _LISTED or len(", ".join(texts)) > 2 * _LONGEST:
        first = texts[0] if len(texts[0]) <= 2 * _LONGEST else f"{texts[0][: 2 * _LONGEST]}..."
        return f"{first}, ... {len(texts)} in all" if len(texts) > 1 else first
    return ", ".join(texts)


def _names(value: Any) -> list[str]:
    names = getattr(value, "_fields", None)
    return [item.name for item in dataclasses.fields(value)] if names is None else [*names]


def _shown(value: Any, brief: bool = False) -> list[tuple[str, str]]:
    fields = ((name, getattr(value, name)) for name in _names(value))
    return [(name, describe(field, brief)) for name, field in fields if not _is_empty(field)]


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | tuple | list | dict) and not value)


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are equal, arrays by their elements."""
    if hasattr(one, "dtype") or hasattr(other, "dtype"):
        from gpucoron.backend.arrays import to_host

        return _same_arrays(to_host(one), to_host(other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _same_arrays(one: np.ndarray, other: np.ndarray) -> bool:
    import numpy as np

    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.names is not None:
        return all(_same_arrays(one[name], other[name]) for name in one.dtype.names)
    return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
