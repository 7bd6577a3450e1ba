"""``--log-json``: what happens, one JSON object a line, for machines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from gpucoron.errors import OutputError

__all__ = ["JsonLog"]


class JsonLog(logging.Handler):
    """Writes log records and events as JSON lines.

    Parameters
    ----------
    path : str
        A file, or ``"-"`` for standard error.

    Raises
    ------
    OutputError
        The file cannot be written.

    Notes
    -----
    Every line has ``time`` (UTC, ISO 8601), ``level``, ``event``, ``step`` (or null), ``text`` and
    ``numbers``. Events: "log"; "progress", with the numbers done and total; "step", with the
    seconds it took in all; and at last "end", with exit_status.
    """

    def __init__(self, path: str):
        super().__init__(logging.DEBUG)
        self.is_stderr = path == "-"
        self._stream: TextIO = sys.stderr
        if not self.is_stderr:
            try:
                self._stream = open(path, "w", encoding="utf-8")
            except OSError as problem:
                raise OutputError(f"{path}: cannot write the log: {problem.strerror}") from None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a log record."""
        try:
            self.write("log", record.getMessage(), level=record.levelname, at=record.created)
        except Exception:  # as logging's own handlers do
            self.handleError(record)

    def write(
        self,
        event: str,
        text: str = "",
        step: str | None = None,
        level: str = "INFO",
        at: float | None = None,
        **numbers: Any,
    ) -> None:
        """Write one line; `at` is seconds since 1970, now by default."""
        when = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": level.lower(),
            "event": event,
            "step": step,
            "text": text,
            "numbers": numbers,
        }
        with self.lock:  # type: ignore[union-attr]
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()

    def end(self, error: BaseException | None) -> None:
        """Write what ended everything."""
        if error is None:
            self.write("end", "complete", exit_status=0)
            return
        code = {"KeyboardInterrupt": 130, "Terminated": 143}.get(
            type(error).__name__, getattr(error, "exit_code", 1)
        )
        text = "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
        self.write("end", text, level="ERROR", exit_status=code)

    def close(self) -> None:
        """Close the file."""
        if not self.is_stderr:
            self._stream.close()
        super().close()
