"""Open files for reading, and write files that appear under their name when they are complete.

Only regular files are opened: a pipe blocks, a device never ends, and neither can be replaced.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from gpucoron.errors import InputError, OutputError, why

__all__ = [
    "SameFiles",
    "check_folder",
    "check_replaceable",
    "create_partial",
    "end_all_partials",
    "fsync",
    "open_input",
    "open_regular",
    "output_error",
    "output_file",
    "pwrite",
    "read_input",
    "start_writeback",
]

_SERIAL = itertools.count()
_sync = getattr(os, "fdatasync", os.fsync)  # macOS has only the latter
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)
_SEEKING = threading.Lock()
_CREATING = threading.Lock()
_LONGEST_NAME = 255  # bytes, where the file system does not say
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # file systems that cannot


class _NoRegularFile(OSError):
    """What has the name is a folder, pipe, socket or device; `strerror` says which."""


def _check_regular(status: os.stat_result) -> None:
    mode = status.st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or the like"
        raise _NoRegularFile(errno.EINVAL, f"is {kind}")


def open_regular(path: str | os.PathLike, flags: int) -> int:
    """Open a regular file as `os.open` does, and return the descriptor.

    A folder, pipe, socket or device is neither opened nor waited for, also if it takes the place of
    a file meanwhile: it raises OSError, as does a file that cannot be opened.
    """
    with suppress(FileNotFoundError):  # `flags` may say that it is to be made
        _check_regular(os.stat(path))
    descriptor = os.open(path, flags | _NO_WAITING, 0o666)
    try:
        _check_regular(os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_input(path: str | os.PathLike, error: type[InputError], expected: str) -> BinaryIO:
    """Open a regular file for reading; `expected` says in messages what it should be.

    Raises
    ------
    InputError
        (as `error`) No such file, a folder, a pipe, a device, or it cannot be opened.
    """
    try:
        return os.fdopen(open_regular(path, os.O_RDONLY), "rb")
    except FileNotFoundError:
        raise error(f"{path}: no such file, expected {expected}") from None
    except _NoRegularFile as problem:
        raise error(f"{path}: {problem.strerror}, expected {expected}") from None
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        raise error(f"{path}: cannot be read: {why(problem)}") from problem


def read_input(
    path: str | os.PathLike, error: type[InputError], expected: str, limit: int
) -> bytes:
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


def _temporary_path(path: Path) -> Path:
    """Return the name that a file has until it is complete: hidden, not ending in .fits."""
    # two nodes that share the folder may have the same process number
    own = f"{os.getpid()}-{next(_SERIAL)}-{os.urandom(4).hex()}"
    return path.with_name(f".{path.name}.{own}.part")


def create_partial(path: Path, mode: str) -> BinaryIO:
    """Create a file that will be `path` when it is complete; `.name` is its name until then."""
    with _CREATING:
        return cast("BinaryIO", open(_temporary_path(path), mode))


def end_all_partials(folder: Path) -> None:
    """Remove this process's files in a folder that are not complete, and let it create no more.

    For a process that is about to end without its threads.
    """
    _CREATING.acquire(timeout=0.1)
    for path in folder.glob(f".*.{os.getpid()}-*.part"):
        with suppress(OSError):
            path.unlink()


def check_replaceable(path: Path, overwrite: bool = True) -> None:
    """Raise OutputError where `path` exists and must not be replaced, or is no file."""
    if not overwrite and os.path.lexists(path):
        raise OutputError(f"{path} exists; allow overwriting or choose another output folder")
    try:
        _check_regular(os.stat(path))
    except FileNotFoundError:
        pass
    except _NoRegularFile as problem:
        raise OutputError(
            f"cannot write {path}: {problem.strerror}, expected no such name, or a file to replace"
        ) from None
    except (OSError, ValueError) as problem:
        raise OutputError(f"cannot write {path}: {why(problem)}") from problem


def check_folder(folder: Path, names: Iterable[str]) -> None:
    """Make a folder, and check that files called `names` can be written there.

    Raises
    ------
    OutputError
        The folder cannot be made or written, or a name is too long, also while it is written, when
        it is longer.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"output folder {folder} is a file, expected a folder") from None
    except (OSError, ValueError) as problem:
        raise OutputError(f"cannot make output folder {folder}: {why(problem)}") from problem
    probe = _temporary_path(folder / "probe")
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as problem:
        raise output_error(folder, problem) from problem
    longest = _longest_name(folder)
    for name in names:
        length = len(os.fsencode(_temporary_path(folder / name).name))
        if length > longest:
            raise OutputError(
                f"cannot write {folder / name}: its name has {len(os.fsencode(name))} bytes, "
                f"expected at most {longest - length + len(os.fsencode(name))}"
            )


def _longest_name(folder: Path) -> int:
    if sys.platform != "win32" and hasattr(os, "pathconf"):
        with suppress(OSError, ValueError):
            return os.pathconf(folder, "PC_NAME_MAX")
    return _LONGEST_NAME


class SameFiles:
    """Files that must not be replaced: ``path in files`` whatever name or link leads to them."""

    def __init__(self, paths: Iterable[str | os.PathLike]):
        self._names: set[str] = set()
        self._numbers: set[tuple[int, int]] = set()
        for path in paths:
            with suppress(OSError, ValueError):  # whoever reads it complains
                self._names.add(os.path.realpath(path))
                status = os.stat(path)
                self._numbers.add((status.st_dev, status.st_ino))

    def __contains__(self, path: str | os.PathLike) -> bool:
        if os.path.realpath(path) in self._names:
            return True
        try:
            status = os.stat(path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) in self._numbers


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
    check_replaceable(path, overwrite)
    partial = None
    try:
        with create_partial(path, "xb") as file:
            partial = Path(file.name)
            yield file
            fsync(file)
        check_replaceable(path, overwrite)
        os.replace(partial, path)
    except BaseException as problem:
        if partial is not None:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        if isinstance(problem, OSError) and not isinstance(problem, OutputError):
            raise output_error(path, problem) from problem
        raise


def start_writeback(file: BinaryIO, offset: int, size: int) -> None:
    """Have the disk begin with a part of a file, so that little is left to `fsync`."""
    if sys.platform == "linux" and hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # a hint, no more
            os.posix_fadvise(file.fileno(), offset, size, os.POSIX_FADV_DONTNEED)


def pwrite(descriptor: int, data: bytes | memoryview, offset: int) -> int:
    """Write bytes at an offset of an open file, from any thread; return how many were written.

    Without os.pwrite (Windows) the file's position is elsewhere afterwards.
    """
    if sys.platform != "win32" and hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, offset)
    with _SEEKING:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)


def fsync(file: BinaryIO) -> None:
    """Wait until a file is on the disk: if the machine fails later, it is there and whole."""
    file.flush()
    try:
        _sync(file.fileno())
    except OSError as problem:
        if problem.errno not in _NO_SYNC:
            raise
