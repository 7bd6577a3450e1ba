"""A lock so that only one run at a time writes a product into a folder."""

from __future__ import annotations

import errno
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from gpucoron.errors import OutputError, why

log = logging.getLogger("gpucoron")

_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}


class FolderLock:
    """Holds a product's name in a folder for this process, until `release` or the process's end.

    Locks the hidden file ``.<name>.lock``. Raises OutputError if another run holds it (naming its
    process and host), or if the file cannot be made. A lock ends with its process, however that
    ends. On NFS it holds among hosts where server and mount support locks (NFSv4 does); where a
    file system has none, a warning is all there is.
    """

    def __init__(self, folder: Path, name: str):
        self.path = folder / f".{name}.lock"
        self._lock = FileLock(
            self.path, timeout=0, mode=0o666, thread_local=False, fallback_to_soft=False
        )
        try:
            self._lock.acquire()
        except Timeout:
            raise OutputError(
                f"another run ({self._holder() or 'not yet named'}) writes {name} into {folder}; "
                "wait for its end or choose another output folder"
            ) from None
        except NotImplementedError:
            self._warn()
        except OSError as problem:
            if problem.errno not in _NO_LOCKS:
                raise OutputError(f"cannot write {self.path}: {why(problem)}") from problem
            self._warn()
        with suppress(OSError):  # a full disk; the lock holds all the same
            self.path.write_text(f"process {os.getpid()} on {socket.gethostname()}")

    def _holder(self) -> str:
        try:
            return self.path.read_text(encoding="ascii", errors="replace")[:200].strip()
        except OSError:
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
