"""Opening files that others name: regular ones only, for a pipe blocks and a device never ends."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from gpucoron.errors import InputError

__all__ = ["open_input", "read_input"]


def open_input(path: str | Path, error: type[InputError], expected: str) -> BinaryIO:
    """Open a regular file for reading.

    Parameters
    ----------
    path : path
    error : type
        The exception to raise, a kind of `InputError`.
    expected : str
        What the file should be, for messages: "a FITS file".

    Raises
    ------
    InputError
        (as `error`) No such file, a folder, a pipe, a device, or it cannot be opened.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise error(f"{path}: is a folder, expected {expected}")
        if not stat.S_ISREG(mode):
            raise error(f"{path}: is a pipe, a device or the like, expected {expected}")
        return open(path, "rb")
    except FileNotFoundError:
        raise error(f"{path}: no such file, expected {expected}") from None
    except InputError:
        raise
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"{path}: cannot be read: {reason}") from problem


def read_input(path: str | Path, error: type[InputError], expected: str, limit: int) -> bytes:
    """Return the contents of a regular file of at most `limit` bytes.

    Raises
    ------
    InputError
        (as `error`) As `open_input`, or it is larger.
    """
    with open_input(path, error, expected) as file:
        try:
            content = file.read(limit + 1)
        except OSError as problem:
            raise error(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    if len(content) > limit:
        raise error(f"{path}: is larger than {limit >> 20} MiB, expected {expected}")
    return content
