"""Progress and warnings of a run for people: bars on a terminal, one line in a notebook."""

from __future__ import annotations

import html
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from gpucoron.backend.logs import Progress, log
from gpucoron.errors import printable

__all__ = ["Bars", "show_run", "wrap"]


class _Display(Protocol):
    def write(self, text: str, warning: bool = False) -> None: ...
    def progress(self, step: str, done: int, total: int, text: str = "") -> None: ...
    def close(self) -> None: ...


@contextmanager
def show_run(progress: Progress | bool | None) -> Iterator[Progress]:
    """Show what a call of the library does; yield what is to be called with its progress.

    Parameters
    ----------
    progress : callable, bool or None
        A callable is used as it is. None shows bars if standard error is a terminal, and a line in
        a notebook; True shows bars anywhere; False shows nothing.

    Notes
    -----
    Warnings are written to standard error, each once, unless the caller has set up a handler for
    the logger "gpucoron" or the root logger: they then go there, and nowhere else.
    """
    display: _Display = _Plain()
    if progress is None or progress is True:
        if _in_notebook():
            display = _Line()
        elif progress or sys.stderr.isatty():
            display = Bars(sys.stderr)
    handler = None if log.hasHandlers() else _Warnings(display)
    if handler:
        log.addHandler(handler)
    try:
        yield progress if callable(progress) else display.progress
    finally:
        display.close()
        if handler:
            log.removeHandler(handler)


def _in_notebook() -> bool:
    """Return whether this is a kernel of Jupyter, whose front end shows what is displayed."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


class _Warnings(logging.Handler):
    """Writes each warning once."""

    def __init__(self, display: _Display):
        super().__init__(logging.WARNING)
        self.display, self.seen = display, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = printable(record.getMessage())
        if text not in self.seen:
            self.seen.add(text)
            self.display.write(f"gpucoron {record.levelname.lower()}: {text}", warning=True)


class _Plain:
    """No progress; warnings on standard error."""

    def progress(self, step: str, done: int, total: int, text: str = "") -> None:
        pass

    def write(self, text: str, warning: bool = False) -> None:
        sys.stderr.write(f"{text}\n")

    def close(self) -> None:
        pass


class _Line(_Plain):
    """Progress as one line of a notebook, which is replaced by the next and empty at the end."""

    def __init__(self) -> None:
        self.handle: Any = None

    def progress(self, step: str, done: int, total: int, text: str = "") -> None:
        """Show that `done` of `total` parts of a step are finished."""
        self._show(f"{step}: {done} of {total} {printable(text)}".rstrip())

    def _show(self, text: str) -> None:
        from IPython.display import display

        content = {"text/plain": text, "text/html": f"<small>{html.escape(text)}</small>"}
        if self.handle is None:
            self.handle = display(content, raw=True, display_id=True)
        else:
            self.handle.update(content, raw=True)

    def close(self) -> None:
        if self.handle is not None:
            self._show("")


class Bars:
    """Progress as bars of rich, one for each step, gone when the run is over.

    Where `expect` has been called, a line below them tells about how long the run still takes.
    """

    def __init__(self, stream: Any):
        self.stream: TextIO = stream
        self.bars: Any = None
        self.tasks: dict[str, Any] = {}
        self.expected = 0.0

    def write(self, text: str, warning: bool = False) -> None:
        """Write a line above the bars, wrapped between words; warnings in yellow."""
        terminal = self.bars.console if self.bars is not None else self._terminal()
        style = "yellow" if warning else None
        for line in wrap(text, terminal.width):
            terminal.print(line, markup=False, highlight=False, soft_wrap=True, style=style)

    def expect(self, seconds: float) -> None:
        """Take the expected time of the run, s, from which the time left is shown."""
        self.expected = seconds

    def progress(self, step: str, done: int, total: int, text: str = "") -> None:
        """Show that `done` of `total` parts of a step are finished."""
        if self.bars is None:
            self.bars = self._start()
        if self.expected:
            self.bars.add_task("whole run", total=None, text="", expected=self.expected)
            self.expected = 0.0
        if step not in self.tasks:
            self.tasks[step] = self.bars.add_task(step, total=total, text=text)
        self.bars.update(self.tasks[step], completed=done, total=total, text=text)
        if done >= total:
            self.bars.remove_task(self.tasks.pop(step))

    def _terminal(self) -> Any:
        from rich.console import Console

        return Console(file=self.stream)

    def _start(self) -> Any:
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining
        from rich.table import Column
        from rich.text import Text

        class Left(ProgressColumn):
            """Time left: of a step as rich extrapolates it, of the run as it was estimated."""

            step = Remaining(compact=True)

            def render(self, task: Any) -> Any:
                if "expected" not in task.fields:
                    return Text(f"{task.completed:.0f}/{task.total:.0f} ") + self.step.render(task)
                left = task.fields["expected"] - (task.elapsed or 0)
                return Text(f"about {left:.0f} s left" if left >= 1 else "longer than estimated")

        bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            Left(),
            TextColumn(
                "{task.fields[text]}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis"),
            ),
            console=self._terminal(),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        bars.start()
        return bars

    def close(self) -> None:
        """Remove the bars."""
        if self.bars is not None:
            self.bars.stop()
        self.bars = None
        self.tasks.clear()


def wrap(text: str, width: int) -> list[str]:
    """Break a line between words where it is wider than a terminal; names of files stay whole."""
    from textwrap import TextWrapper

    clock = text[:2].isdigit() and text[2:3] == ":"  # HH:MM:SS and two spaces begin a log line
    wrapper = TextWrapper(
        max(width, 20),
        subsequent_indent=" " * (10 if clock else 2),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [text] if len(text) <= width else wrapper.wrap(text)
