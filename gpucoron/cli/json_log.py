"""``--log-json``: what happens, one JSON object a line, for machines."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from gpucoron.backend.signals import EXITS
from gpucoron.errors import printable


class JsonFormatter(logging.Formatter):
    """Formats log records and events as JSON lines.

    Notes
    -----
    Every line has ``time`` (UTC, ISO 8601), ``level``, ``event``, ``step`` (or null), ``text`` and
    ``numbers``. Events: "log"; "progress", with the numbers done and total; "step", with the
    seconds it took in all; and at last "end", with exit_status.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        when = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            "step": getattr(record, "step", None),
            "text": printable(record.getMessage()),
            "numbers": getattr(record, "numbers", {}),
        }
        return json.dumps(line)


def json_event(
    handler: logging.Handler,
    event: str,
    text: str = "",
    step: str | None = None,
    level: int = logging.INFO,
    **numbers: Any,
) -> None:
    """Write what is no log record."""
    values: dict[str, Any] = {"event": event, "step": step, "numbers": numbers}
    name = logging.getLevelName(level)
    values |= {"msg": "%s", "args": (text,), "levelno": level, "levelname": name}
    handler.handle(logging.makeLogRecord(values))


def end_event(handler: logging.Handler, error: BaseException | None) -> None:
    """Write how the run ended."""
    if error is None:
        json_event(handler, "end", "complete", exit_status=0)
        return
    code = EXITS.get(type(error), ("", getattr(error, "exit_code", 1)))[1]
    text = "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
    json_event(handler, "end", text, level=logging.ERROR, exit_status=code)
