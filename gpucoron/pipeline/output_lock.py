"""One run at a time writes a product into a folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

from gpucoron.errors import OutputError

__all__ = ["FolderLock"]

log = logging.getLogger("gpucoron")

_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}


class FolderLock:
    """Holds a product's name in a folder for this process, until `release` or the process's end.

    Parameters
    ----------
    folder : path
    name : str
        Of the product; the hidden file ``.<name>.lock`` is locked (flock).

    Raises
    ------
    OutputError
        Another run holds it; names its process and host. Or the file cannot be made.

    Notes
    -----
    A lock ends with its process, however that ends. On NFS it holds among hosts where server and
    mount support locks (NFSv4 does); where a file system has none, a warning is all there is.
    """

    def __init__(self, folder: Path, name: str):
        self.path = folder / f".{name}.lock"
        try:
            while not self._take():
                pass
        except OSError as problem:
            if isinstance(problem, OutputError):
                raise
            raise OutputError(f"cannot write {self.path}: {problem.strerror}") from problem

    def _take(self) -> bool:
        """Open and lock; False where the file was removed by its holder meanwhile."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            holder = os.pread(self._fd, 200, 0).decode("ascii", "replace").strip()
            if problem.errno not in _NO_LOCKS:
                os.close(self._fd)
                if isinstance(problem, BlockingIOError):
                    raise OutputError(
                        f"another run ({holder or 'not yet named'}) writes "
                        f"{self.path.name[1:-5]} into {self.path.parent}; wait for its end or "
                        "choose another output folder"
                    ) from None
                raise
            log.warning(
                "%s: this file system has no locks; let no other run write there", self.path.parent
            )
        try:
            found = os.stat(self.path).st_ino == os.fstat(self._fd).st_ino
        except FileNotFoundError:
            found = False
        if not found:
            os.close(self._fd)
            return False
        with suppress(OSError):  # a full disk; the lock holds all the same
            os.ftruncate(self._fd, 0)
            os.write(self._fd, f"process {os.getpid()} on {socket.gethostname()}".encode())
        return True

    def release(self) -> None:
        """Let go; the file goes, too."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            os.close(self._fd)
