"""Standard streams that may be closed, full or ASCII, and logs on disks that may be full.

None of them changes how a run ends whose products are whole.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO

from gpucoron.errors import OutputError, printable, why
from gpucoron.io.files import open_regular

log = logging.getLogger("gpucoron")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_A_LOG = re.compile(rb'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d |\{"time": ')  # how the first line begins


problems: list[str] = []  # of the standard streams, for a warning


def prepare_streams() -> None:
    """Open the null device for what is closed, and escape what the encoding lacks.

    Otherwise the next file that is opened would be standard output or error.
    """
    problems.clear()
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None or stream.closed:
            problems.append(f"{name} is closed; what would be written there is lost")
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def write_lines(lines: Iterable[str], needed: bool = True) -> None:
    """Write lines to standard output, which raises OSError where they are `needed`."""
    try:
        for line in lines:
            sys.stdout.write(printable(line) + "\n")
        sys.stdout.flush()
    except OSError:
        if needed:
            raise
        discard(sys.stdout)


def discard(stream: TextIO) -> None:
    """Send what is still buffered in a stream to the null device: Python flushes it at exit."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class TolerantStream:
    """A text stream whose failures are ignored: nobody could be told."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text."""
        try:
            self._stream.write(text)
        except (OSError, ValueError) as problem:
            self._failed(problem)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as problem:
            self._failed(problem)

    def _failed(self, problem: Exception) -> None:
        if not isinstance(problem, BlockingIOError):  # a terminal that is slow
            discard(self._stream)

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        try:
            return self._stream.isatty()
        except (AttributeError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class SafeFormatter(logging.Formatter):
    """Formats log records so that nothing in them acts on a terminal, or looks like another line.

    Names of files, headers and records can hold escape sequences, newlines, and characters that
    change the direction of writing.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Format the first line."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        """Format a traceback."""
        return "\n".join(map(printable, super().formatException(ei).splitlines()))


class LogFile(logging.StreamHandler):
    """Writes log records to a file; where that fails, one warning, and no more records.

    Raises
    ------
    OutputError
        The file cannot be opened, or holds anything but an earlier log.
    """

    def __init__(self, path: str | os.PathLike):
        self.path, self.problem = path, ""
        super().__init__(self._open())

    def _open(self) -> Any:
        try:
            if stat.S_ISCHR(os.stat(self.path).st_mode):
                return self._give_up("is a device, expected a file")
        except (OSError, ValueError):
            pass  # told below
        try:
            file = os.fdopen(open_regular(self.path, os.O_RDWR | os.O_CREAT), "r+b")
        except (OSError, ValueError) as problem:
            if getattr(problem, "errno", None) in _FULL:
                return self._give_up(why(problem))
            raise OutputError(f"{self.path}: cannot write the log: {why(problem)}") from None
        with file:
            start = file.read(40)
            if start and not _A_LOG.match(start):
                raise OutputError(
                    f"{self.path}: cannot write the log: the file holds something else, expected "
                    "a new file or an earlier log"
                )
            file.truncate(0)
            return os.fdopen(os.dup(file.fileno()), "a", encoding="utf-8")

    def _give_up(self, problem: str) -> TextIO:
        self.problem = f"{self.path}: cannot write the log: {problem}; going on without it"
        return open(os.devnull, "w", encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        if not self.problem:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Give up, with a warning."""
        problem = sys.exc_info()[1]
        self._give_up(why(problem) if problem else "unknown problem").close()
        log.warning("%s", self.problem)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self.stream.close()
        super().close()
