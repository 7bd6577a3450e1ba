"""Where arrays live, and which device a run uses."""

from __future__ import annotations

__all__ = ["on_gpu"]


def on_gpu(*arrays) -> bool:
    """Tell whether the arrays live on a GPU.

    Parameters
    ----------
    *arrays : array or None
        ``None`` is passed over.

    Returns
    -------
    bool
        True where all carry ``__cuda_array_interface__``.

    Raises
    ------
    TypeError
        Host and device arrays are mixed.
    """
    where = {hasattr(a, "__cuda_array_interface__") for a in arrays if a is not None}
    if len(where) > 1:
        raise TypeError("arrays on the host and on a GPU are mixed; move them to one device first")
    return where == {True}
