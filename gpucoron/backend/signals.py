"""Handle Ctrl-C and SIGTERM: clean up, and exit within two seconds."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = [
    "ENDS",
    "GRACE_S",
    "NAMES",
    "STOPPED",
    "Terminated",
    "at_abrupt_end",
    "prompt_end",
    "stopped_by",
]

#: What a clean end may take before the process is ended from beside, s.
GRACE_S = 1.4

_LAST_S = 0.4
_last_acts: list[Callable[[str], str]] = []


class Terminated(BaseException):
    """Raised when SIGTERM arrives."""


#: How a run ends that was stopped, and the exit code: by the exception, and by the signal.
ENDS = {KeyboardInterrupt: ("interrupted", 130), Terminated: ("terminated", 143)}
NAMES = {signal.SIGINT: ENDS[KeyboardInterrupt], signal.SIGTERM: ENDS[Terminated]}
STOPPED = frozenset(code for _, code in ENDS.values())


def stopped_by(error: BaseException | None) -> BaseException | None:
    """Return the KeyboardInterrupt or Terminated that an error is, or hides.

    Where a signal arrives while Python takes the lock of an import, importlib raises a RuntimeError
    ("cannot release un-acquired lock") in place of the signal's exception.
    """
    while error is not None and not isinstance(error, (KeyboardInterrupt, Terminated)):
        error = error.__context__ if isinstance(error, RuntimeError) else None
    return error


@contextmanager
def at_abrupt_end(act: Callable[[str], str]) -> Iterator[None]:
    """Call `act` if the process is forced to exit while the block runs.

    Parameters
    ----------
    act : callable
        Gets "interrupted" or "terminated"; what it returns is told the user.
    """
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


@contextmanager
def prompt_end(grace: float = GRACE_S) -> Iterator[None]:
    """Turn the first SIGTERM or Ctrl-C into an exception, and force an exit if it is not enough.

    Parameters
    ----------
    grace : float
        Seconds that the block has to come to its end.

    Raises
    ------
    KeyboardInterrupt, Terminated
        In the block, as soon as Python code runs there; further signals are ignored.

    Notes
    -----
    Compiled code does not see signals. A thread does, and where the block has not ended in time,
    calls what `at_abrupt_end` was given, tells it in one line, and ends the process. Only the
    main thread can receive signals; in others this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    came: list[int] = []

    def handler(number, frame):
        if not came:
            came.append(number)
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    threading.Thread(
        target=_watch, args=(reading, over, grace), name="gpucoron-signals", daemon=True
    ).start()
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    # what ignores Ctrl-C, as the background jobs of a shell do, goes on doing so
    before: dict[int, Any] = {
        number: signal.signal(number, handler)
        for number in NAMES
        if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(wakeup)
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
        os.close(writing)


def _watch(reading: int, over: threading.Event, grace: float) -> None:
    """Wait for a signal, then for the process to end."""
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while number := pipe.read(1):
            if number[0] in NAMES and not over.wait(grace):
                _end(*NAMES[signal.Signals(number[0])])


def _end(what: str, code: int) -> None:
    told = [what]

    def act():
        for last in tuple(_last_acts):
            with suppress(Exception):
                told.append(last(what))

    acting = threading.Thread(target=act, daemon=True)
    acting.start()
    acting.join(_LAST_S)  # a file system that hangs holds nobody here
    cursor = "\x1b[?25h\r" if os.isatty(2) else ""  # progress bars have hidden it
    with suppress(OSError):
        os.write(2, f"{cursor}gpucoron: error: {'; '.join(filter(None, told))}\n".encode())
    os._exit(code)
