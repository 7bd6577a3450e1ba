"""Open files for reading, and write files that appear under their name when they are complete.

Only regular files are read, for a pipe blocks and a device never ends.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gpucoron.errors import InputError, OutputError, why

__all__ = [
    "check_overwrite",
    "fsync",
    "open_input",
    "output_error",
    "output_file",
    "read_input",
    "start_writeback",
    "temporary_path",
]

_SERIAL = itertools.count()
_sync = getattr(os, "fdatasync", os.fsync)  # macOS has only the latter
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # file systems that cannot


def open_input(path: str | Path, error: type[InputError], expected: str) -> BinaryIO:
    """Open a regular file for reading; `expected` says in messages what it should be.

    Raises
    ------
    InputError
        (as `error`) No such file, a folder, a pipe, a device, or it cannot be opened.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except FileNotFoundError:
        raise error(f"{path}: no such file, expected {expected}") from None
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        raise error(f"{path}: cannot be read: {why(problem)}") from problem
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or the like"
    raise error(f"{path}: is {kind}, expected {expected}")


def read_input(path: str | Path, error: type[InputError], expected: str, limit: int) -> bytes:
    """Return a regular file; raise `error` as `open_input`, or for more than `limit` bytes."""
    with open_input(path, error, expected) as file:
        try:
            content = file.read(limit + 1)
        except OSError as problem:
            raise error(f"{path}: cannot be read: {why(problem)}") from problem
    if len(content) > limit:
        raise error(f"{path}: is larger than {limit >> 20} MiB, expected {expected}")
    return content


def output_error(path: Path, problem: OSError) -> OutputError:
    """Return the error that says why `path` cannot be written."""
    return OutputError(f"cannot write {path}: {why(problem)}")


def temporary_path(path: Path) -> Path:
    """Return the name that a file has until it is complete: hidden, not ending in .fits."""
    # two nodes that share the folder may have the same process number
    own = f"{os.getpid()}-{next(_SERIAL)}-{os.urandom(4).hex()}"
    return path.with_name(f".{path.name}.{own}.part")


def check_overwrite(path: Path, overwrite: bool) -> None:
    """Raise OutputError where `path` exists and must not be replaced."""
    if not overwrite and path.exists():
        raise OutputError(f"{path} exists; allow overwriting or choose another output folder")


@contextmanager
def output_file(path: str | os.PathLike, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing that gets the name `path` only when it is complete.

    Until then it has a temporary name in the same folder; when anything goes wrong it is removed.

    Raises
    ------
    OutputError
        The file exists and `overwrite` is False, or writing failed; names the path and the reason.
    """
    path = Path(path)
    check_overwrite(path, overwrite)
    partial = temporary_path(path)
    try:
        with open(partial, "xb") as file:
            yield file
            fsync(file)
        check_overwrite(path, overwrite)
        os.replace(partial, path)
    except BaseException as problem:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(problem, OSError) and not isinstance(problem, OutputError):
            raise output_error(path, problem) from problem
        raise


def start_writeback(file: BinaryIO, offset: int, size: int) -> None:
    """Have the disk begin with a part of a file, so that little is left to `fsync`."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # a hint, no more
            os.posix_fadvise(file.fileno(), offset, size, os.POSIX_FADV_DONTNEED)


def fsync(file: BinaryIO) -> None:
    """Wait until a file is on the disk: if the machine fails later, it is there and whole."""
    file.flush()
    try:
        _sync(file.fileno())
    except OSError as problem:
        if problem.errno not in _NO_SYNC:
            raise
