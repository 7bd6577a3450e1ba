"""A lock so that only one run at a time writes a product into a folder."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from gpucoron.errors import OutputError, why

log = logging.getLogger("gpucoron")

_OURS = "process "  # how the text of a lock begins
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # not on Windows
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}


def lock_name(name: str) -> str:
    """Return the name of the file that locks a product's name."""
    return f".{name}.lock"


class FolderLock:
    """Holds a product's name in a folder for this process, until `release` or the process's end.

    Locks the hidden file ``.<name>.lock``. Raises OutputError if another run holds it (naming its
    process and host), if the file cannot be made, or if something else has that name: links are not
    followed, and no other file is written over. A lock ends with its process, however that ends. On
    NFS it holds among hosts where server and mount support locks (NFSv4 does); where a file system
    has none, a warning is all there is.
    """

    def __init__(self, folder: Path, name: str):
        self.path = folder / lock_name(name)
        self._check_ours()
        self._lock = FileLock(
            self.path, timeout=0, mode=0o666, thread_local=False, fallback_to_soft=False
        )
        try:
            self._lock.acquire()
        except Timeout:
            raise OutputError(
                f"another run ({self._text() or 'not yet named'}) writes {name} into {folder}; "
                "wait for its end or choose another output folder"
            ) from None
        except NotImplementedError:
            self._warn()
        except OSError as problem:
            if problem.errno not in _NO_LOCKS:
                raise OutputError(f"cannot write {self.path}: {why(problem)}") from problem
            self._warn()
        with suppress(OSError):  # a full disk; the lock holds all the same
            with os.fdopen(os.open(self.path, os.O_WRONLY | os.O_TRUNC | _NO_LINK), "w") as file:
                file.write(f"{_OURS}{os.getpid()} on {socket.gethostname()}")

    def _check_ours(self) -> None:
        """Raise OutputError if the name is that of anything but a lock of an earlier run."""
        try:
            found = os.lstat(self.path)
            ours = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
            if ours and (text := self._text()):  # "" while another run makes it
                ours = text.startswith(_OURS)
        except FileNotFoundError:
            return
        except OSError as problem:
            raise OutputError(f"cannot write {self.path}: {why(problem)}") from problem
        if not ours:
            raise OutputError(
                f"cannot write {self.path}: is no lock of an earlier run, but a link or another "
                "file; remove it or choose another output folder"
            )

    def _text(self) -> str:
        """Return what the lock says of its holder."""
        with suppress(OSError):
            with os.fdopen(os.open(self.path, os.O_RDONLY | _NO_LINK), "rb") as file:
                return file.read(200).decode("ascii", "replace").strip()
        return ""

    def _warn(self) -> None:
        log.warning(
            "%s: this file system has no locks; let no other run write there", self.path.parent
        )

    def release(self) -> None:
        """Release the lock and remove its file."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        self._lock.release()
