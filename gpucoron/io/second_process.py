"""Evaluate WCSs and make ASDF extensions in a second process, beside the run.

asdf, gwcs and astropy.modeling take 0.7 s to import, and what they do is Python code, of which a
process runs one thread at a time. A second process imports and runs them while the first one reads
headers and computes.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["in_second_process", "second_process", "serve"]

T = TypeVar("T")

_ROOT = str(Path(__file__).parents[2])  # where this package is, however it was found
_CODE = "import sys; sys.path[:] = {path!r}; from " + __name__ + " import serve; serve()"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_NOTHING = (False, None)  # the answer where the first process is to do the work itself


def in_second_process(work: Callable[..., T], *arguments: Any) -> T:
    """Return ``work(*arguments)``, computed in the second process if there is one.

    It is computed here if there is none, or if `work` raises or logs something there: errors and
    warnings are always those of this process.

    Parameters
    ----------
    work : function of a module
        Its result depends on the arguments alone.
    *arguments
        What pickle can copy.
    """
    if _second is not None:
        done, result = _second.ask(work, arguments)
        if done:
            return result
    return work(*arguments)


@contextmanager
def second_process(wanted: bool = True) -> Iterator[None]:
    """Have a second process while a block runs, if it is `wanted` and can be started."""
    global _second
    if not wanted or _second is not None:
        yield
        return
    with suppress(OSError):
        _second = _SecondProcess()
    try:
        yield
    finally:
        if _second is not None:
            _second.stop()
            _second = None


class _SecondProcess:
    """A process that answers one request at a time; it ends when this one does."""

    def __init__(self):
        self._lock, self._stopped = threading.Lock(), False
        path = [*filter(None, sys.path), _ROOT]  # without "": not from the data's folder
        self._process: Any = subprocess.Popen(
            [sys.executable, "-P", "-c", _CODE.format(path=path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_ONE_THREAD},
        )

    def ask(self, work: Callable, arguments: tuple) -> tuple[bool, Any]:
        """Return whether `work` was done, and its result; from any thread."""
        request = pickle.dumps((work, arguments), pickle.HIGHEST_PROTOCOL)
        with self._lock:
            if self._stopped:
                return _NOTHING
            try:
                self._process.stdin.write(request)
                self._process.stdin.flush()
                return pickle.load(self._process.stdout)
            except (OSError, EOFError, ValueError, pickle.UnpicklingError):
                self.stop()  # it has ended
                return _NOTHING
            except BaseException:  # a signal: the answer would be taken for the next one's
                self.stop()
                raise

    def stop(self) -> None:
        """End the process, which has nothing to clean up."""
        self._stopped = True
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()
        self._process.wait()


_second: _SecondProcess | None = None


# ---- in the second process


def serve() -> None:
    """Answer the requests that come from standard input, until it ends."""
    from gpucoron.backend.process import tune_gc

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the first process ends this one
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    tune_gc()
    _import_all()
    while True:
        try:
            work, arguments = pickle.load(sys.stdin.buffer)
            answers.write(_answer(work, arguments))
            answers.flush()
        except (EOFError, OSError):  # the first process has ended
            os._exit(0)


def _import_all() -> None:
    import gwcs  # noqa: F401

    from gpucoron.io import exposure_wcs  # noqa: F401
    from gpucoron.io.asdf.guard import asdf_package

    asdf_package(all_packages=False)


def _answer(work: Callable, arguments: tuple) -> bytes:
    """Return a pickled answer; `_NOTHING` where `work` raises or logs something."""
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logger = logging.getLogger("gpucoron")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        answer = pickle.dumps((True, work(*arguments)), pickle.HIGHEST_PROTOCOL)
    except Exception:
        answer = b""
    finally:
        logger.removeHandler(handler)
    return answer if answer and not heard.getvalue() else pickle.dumps(_NOTHING)
