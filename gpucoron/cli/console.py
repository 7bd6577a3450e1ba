"""Log lines, progress, the table of steps and the warnings of a run, on the terminal."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, TextIO

from gpucoron.backend.progress import Bars
from gpucoron.cli import streams
from gpucoron.cli.json_log import JsonFormatter, end_event, json_event
from gpucoron.cli.streams import LogFile, SafeFormatter, TolerantStream
from gpucoron.core.text import format_table
from gpucoron.errors import GpucoronError, plural, printable

log = logging.getLogger("gpucoron")

_SHORT = SafeFormatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S")
_LONG = SafeFormatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")


class _ConsoleFormatter(logging.Formatter):
    """``HH:MM:SS  message``, with the level where it is a warning or worse."""

    def format(self, record: logging.LogRecord) -> str:
        text = _SHORT.format(record)
        if record.levelno < logging.WARNING:
            return text
        clock, _, message = text.partition("  ")
        return f"{clock}  {record.levelname.lower()}: {message}"


class _StreamHandler(logging.Handler):
    """Write log records above a progress bar if there is one; each warning once."""

    def __init__(self, owner: Console):
        super().__init__()
        self.owner = owner

    def emit(self, record: logging.LogRecord) -> None:
        warning = record.levelno >= logging.WARNING
        text = record.getMessage()
        if warning and text in self.owner.seen_warnings:
            return
        if warning:
            self.owner.seen_warnings.append(text)
        if hasattr(record, "expected_s"):
            self.owner.expect(record.expected_s)
        if record.levelno >= self.owner.level:
            self.owner.write(self.format(record), warning)


class Console:
    """Receives log records and progress events while used as a context.

    A `verbosity` below 0 shows warnings and errors only, 0 one line per event, more everything, on
    standard error or another stream; progress bars appear if that is a terminal. `log_file` gets
    every record whatever the verbosity; `log_json` everything as JSON lines, and ``"-"`` is
    standard error, which then shows nothing else. Raises OutputError if a log cannot be opened;
    where it cannot be written, or standard error is closed or full, the run goes on without.
    """

    def __init__(
        self,
        verbosity: int = 0,
        log_file=None,
        stream: TextIO | None = None,
        log_json: str | None = None,
    ):
        self.quiet = verbosity < 0
        self.level = {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}[
            max(-1, min(1, verbosity))
        ]
        self.stream: Any = TolerantStream(sys.stderr if stream is None else stream)
        self.seen_warnings: list[str] = []
        self._handlers: list[logging.Handler] = [_StreamHandler(self)]
        self._handlers[0].setFormatter(_ConsoleFormatter())
        if log_file is not None:
            self._handlers.append(LogFile(log_file))
            self._handlers[-1].setFormatter(_LONG)
        self.json: logging.Handler | None = None
        if log_json is not None:
            to_stderr = log_json == "-"
            self.json = logging.StreamHandler(self.stream) if to_stderr else LogFile(log_json)
            self.json.setFormatter(JsonFormatter())
            self._handlers.append(self.json)
            if to_stderr:
                self.quiet, self.level = True, logging.CRITICAL + 1
        self.terminal = not self.quiet and self.stream.isatty()
        self._reporter: Bars | _Lines = Bars(self.stream) if self.terminal else _Lines(self.quiet)

    def __enter__(self) -> Console:
        self._before = (log.level, log.propagate)
        log.setLevel(logging.DEBUG)
        log.propagate = False
        logging.captureWarnings(True)
        for handler in self._handlers:
            log.addHandler(handler)
        for handler in self._handlers[1:]:  # warnings of other packages go to the file only
            logging.getLogger("py.warnings").addHandler(handler)
        logging.getLogger("py.warnings").addHandler(_NULL_HANDLER)
        logs = [handler.problem for handler in self._handlers if isinstance(handler, LogFile)]
        for problem in filter(None, [*streams.problems, *logs]):
            log.warning("%s", problem)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._reporter.close()
        self._log_end(error)
        if self.json is not None:
            end_event(self.json, error)
        for handler in self._handlers:
            log.removeHandler(handler)
            logging.getLogger("py.warnings").removeHandler(handler)
            handler.close()
        logging.getLogger("py.warnings").removeHandler(_NULL_HANDLER)
        logging.captureWarnings(False)
        log.setLevel(self._before[0])
        log.propagate = self._before[1]

    def _log_end(self, error: BaseException | None) -> None:
        """Log to the log file only how the run ended; with the traceback of a defect."""
        if error is None:
            return
        expected = isinstance(error, GpucoronError) or not isinstance(error, Exception)
        record = log.makeRecord(
            log.name,
            logging.ERROR,
            __file__,
            0,
            "%s",
            (f"{type(error).__name__}: {error}",),
            None if expected else (type(error), error, error.__traceback__),
        )
        for handler in self._handlers[1:]:
            if handler is not self.json:
                handler.handle(record)

    def write(self, text: str, warning: bool = False) -> None:
        """Write one line for people to read."""
        if isinstance(self._reporter, Bars):
            self._reporter.write(text, warning)
        else:
            _write_line(self.stream, text)

    def expect(self, seconds: float) -> None:
        """Take the expected time of the run, s, from which the time left is shown."""
        if isinstance(self._reporter, Bars):
            self._reporter.expect(seconds)

    def progress(self, step: str, done: int, total: int, text: str = "") -> None:
        """Show that `done` of `total` parts of a step are finished."""
        if self.json is not None:
            json_event(self.json, "progress", text, step, done=done, total=total)
        self._reporter.progress(step, done, total, printable(text))

    def summary(self, result: Any, wall: float | None = None) -> None:
        """Log wall time per step, then how many warnings were shown before it.

        `wall` is that of the whole run, seconds; the sum of the steps by default.
        """
        self._reporter.close()
        if self.json is not None:
            for step, seconds in result.timings.items():
                json_event(self.json, "step", "", step, seconds=round(seconds, 4))
        for line in _timing_lines(result.timings, wall):
            log.info("%s", line)
        warned = list(dict.fromkeys([*result.warnings, *self.seen_warnings]))
        for text in warned:
            if text not in self.seen_warnings:
                log.warning("%s", text)
        if warned:
            log.info("%s, above", plural(len(warned), "warning"))


class _Lines:
    """Progress as log lines: a step's start and end, and at most one per 10 % between."""

    def __init__(self, quiet: bool):
        self.quiet = quiet
        self.shown: dict[str, tuple[int, float]] = {}

    def progress(self, step: str, done: int, total: int, text: str = "") -> None:
        if self.quiet or total <= 0:
            return
        tenth = 10 * done // total
        before, since = self.shown.get(step, (-1, time.monotonic()))
        if tenth > before:
            # Short steps speak once, at their end; long ones whenever a tenth is done.
            if tenth == 10 or (before >= 0 and time.monotonic() - since > 2):
                log.info("%s: %d of %d%s", step, done, total, f", {text}" if text else "")
            self.shown[step] = (tenth, since)
        if tenth == 10:
            del self.shown[step]  # it may run again, on another exposure

    def close(self) -> None:
        self.shown.clear()


def _timing_lines(timings: dict[str, float], wall: float | None) -> list[str]:
    steps = sum(timings.values())
    total = max(steps, wall or 0.0)
    rows = [*timings.items(), ("everything else", total - steps)] if wall else [*timings.items()]
    share = 100 / total if total else 0
    cells = [(step, f"{seconds:.2f}", f"{seconds * share:.0f} %") for step, seconds in rows]
    return format_table([*cells, ("total", f"{total:.2f}", "")], ("step", "seconds", ""), (1, 2))


def _write_line(stream: TolerantStream, text: str) -> None:
    stream.write(text + "\n")
    stream.flush()


_NULL_HANDLER = logging.NullHandler()
