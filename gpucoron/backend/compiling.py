"""Log numba's compilation after installation, and share it with a second process."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
from contextlib import suppress

log = logging.getLogger("gpucoron")

_CODE = "from gpucoron.ops.cpu.compile_late import compile_late; compile_late()"
_second_allowed: list[bool] = []  # whether this process may start another one


def allow_second_compiler() -> None:
    """Allow a second process to compile loops beside this one (the command, not the library)."""
    _second_allowed.append(True)


def watch_compiling(threads: int) -> None:
    """Log once that numba compiles, and start a second process that compiles what is needed last.

    With one thread, all is compiled here.

    numba compiles one function at a time in a process. Both put what they compile into the cache
    on disk, and look there before they compile.
    """
    _listener().threads = threads


@functools.cache
def _listener():
    from numba.core import event

    class Listener(event.Listener):
        threads, logged = 1, False

        def on_start(self, unused):
            if self.logged:
                return
            self.logged = True
            log.info(
                "compiling loops; they are kept on disk (the first run after installation "
                "takes some seconds longer)"
            )
            if _second_allowed and self.threads > 1:
                _start_second_compiler()

        def on_end(self, unused):
            """Do nothing."""

    listener = Listener()
    event.register("numba:compile", listener)
    return listener


def _start_second_compiler() -> None:
    """Start the second process; if it fails, the run compiles everything itself."""
    nowhere = subprocess.DEVNULL
    command = [sys.executable, "-P", "-c", _CODE]  # -P: nothing is imported from the data's folder
    with suppress(OSError):
        subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere)
