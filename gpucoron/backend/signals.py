"""Handle Ctrl-C and SIGTERM: clean up, and exit within two seconds."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gpucoron.errors import printable

#: What a clean end may take before the process is ended from beside, s.
GRACE_S = 1.4

_LAST_S = 0.4
_exit_hooks: list[Callable[[str], str]] = []


class Terminated(BaseException):
    """Raised when SIGTERM arrives."""


#: How a run ends that was stopped, and the exit code: by the exception, and by the signal.
EXITS = {KeyboardInterrupt: ("interrupted", 130), Terminated: ("terminated", 143)}
EXITS_BY_SIGNAL = {signal.SIGINT: EXITS[KeyboardInterrupt], signal.SIGTERM: EXITS[Terminated]}
STOP_CODES = frozenset(code for _, code in EXITS.values())


def stopped_by(error: BaseException | None) -> BaseException | None:
    """Return the KeyboardInterrupt or Terminated that an error is, or hides.

    Where a signal arrives while Python takes the lock of an import, importlib raises a RuntimeError
    ("cannot release un-acquired lock") in place of the signal's exception.
    """
    while error is not None and not isinstance(error, (KeyboardInterrupt, Terminated)):
        error = error.__context__ if isinstance(error, RuntimeError) else None
    return error


@contextmanager
def on_forced_exit(hook: Callable[[str], str]) -> Iterator[None]:
    """Call `hook` if the process is forced to exit while the block runs.

    It gets "interrupted" or "terminated"; the text that it returns is shown to the user.
    """
    _exit_hooks.append(hook)
    try:
        yield
    finally:
        _exit_hooks.remove(hook)


@contextmanager
def graceful_shutdown(grace: float = GRACE_S) -> Iterator[None]:
    """Turn the first SIGTERM or Ctrl-C into an exception, and force an exit if it is not enough.

    KeyboardInterrupt or Terminated is raised in the block as soon as Python code runs there, which
    then has `grace` seconds to end; further signals are ignored.

    Compiled code does not see signals. A thread does, and where the block has not ended in time,
    calls what `on_forced_exit` was given, tells it in one line, and ends the process. Only the
    main thread can receive signals; in others this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    finished = threading.Event()
    reading, writing = socket.socketpair()  # Windows has no pipes that do not block
    writing.setblocking(False)
    received: list[int] = []

    def handler(number, frame):
        if not received:
            received.append(number)
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    threading.Thread(
        target=_watch, args=(reading, finished, grace), name="gpucoron-signals", daemon=True
    ).start()
    wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    # what ignores Ctrl-C, as the background jobs of a shell do, goes on doing so
    previous: dict[int, Any] = {
        number: signal.signal(number, handler)
        for number in EXITS_BY_SIGNAL
        if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        finished.set()
        signal.set_wakeup_fd(wakeup)
        for number, old in previous.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
        writing.close()


def _watch(reading: socket.socket, finished: threading.Event, grace: float) -> None:
    """Wait for a signal, then for the process to end."""
    with reading:
        while number := reading.recv(1):
            if number[0] in EXITS_BY_SIGNAL and not finished.wait(grace):
                _force_exit(*EXITS_BY_SIGNAL[signal.Signals(number[0])])


def _force_exit(what: str, code: int) -> None:
    lines = [what]

    def act():
        for last in tuple(_exit_hooks):
            with suppress(Exception):
                lines.append(last(what))

    acting = threading.Thread(target=act, daemon=True)
    acting.start()
    acting.join(_LAST_S)  # a file system that hangs holds nobody here
    cursor = "\x1b[?25h\r" if os.isatty(2) else ""  # progress bars have hidden it
    with suppress(OSError):
        text = printable("; ".join(filter(None, lines)))
        os.write(2, f"{cursor}gpucoron: error: {text}\n".encode())
    os._exit(code)
