"""Cache folders for compiled code where the default ones are not writable."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import stat
import sys
import tempfile
import zlib
from pathlib import Path

log = logging.getLogger("gpucoron")


def numba_cache() -> None:
    """Set numba's cache to a temporary folder if its own folders are not writable.

    numba's own places are NUMBA_CACHE_DIR, the folder of the source and the user's cache
    (XDG_CACHE_HOME, or .cache in the home); with none of them it refuses to import our loops.
    Compiled code is loaded from there: a folder that is not this user's alone is not used.

    numba ignores a NUMBA_CACHE_DIR that is not writable, whatever is in it. What is there, as in
    the image of a container, is copied to a temporary folder, once.
    """
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given and os.path.isdir(given) and not _writable(Path(given)):
        _set_numba_cache(_copy_of(Path(given)))
        return
    home = os.path.join(os.path.expanduser("~"), ".cache")
    folders = (
        given,
        Path(__file__).parents[1] / "ops" / "cpu" / "__pycache__",
        os.environ.get("XDG_CACHE_HOME") or home,
    )
    if any(_writable(Path(place)) for place in folders if place):
        return
    folder = _own_folder()
    log.info("compiled loops are kept in %s; set NUMBA_CACHE_DIR to choose another place", folder)
    _set_numba_cache(folder)


def _set_numba_cache(folder: str) -> None:
    os.environ["NUMBA_CACHE_DIR"] = folder
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = folder


def _copy_of(cache: Path) -> str:
    """Return this user's copy of a folder of compiled loops; it is made if there is none."""
    made = os.stat(cache).st_mtime_ns
    name = f"loops-{zlib.crc32(os.fsencode(cache)):08x}-{made}"
    copy = os.path.join(_own_folder(), name)
    if not os.path.isdir(copy):
        part = tempfile.mkdtemp(dir=_own_folder())
        for folder, _, files in os.walk(cache):
            into = os.path.join(part, os.path.relpath(folder, cache))
            os.makedirs(into, exist_ok=True)  # unlike shutil.copytree, writable
            for file in files:
                shutil.copyfile(os.path.join(folder, file), os.path.join(into, file))
        try:
            os.rename(part, copy)
        except OSError:  # another process was faster
            shutil.rmtree(part, ignore_errors=True)
    return copy


def cupy_cache() -> None:
    """Set CuPy's cache to a temporary folder if CUPY_CACHE_DIR and ~/.cupy are not writable."""
    place = os.environ.get("CUPY_CACHE_DIR") or os.path.join(os.path.expanduser("~"), ".cupy")
    if _writable(Path(place)):
        return
    os.environ["CUPY_CACHE_DIR"] = folder = os.path.join(_own_folder(), "cupy")
    log.info("compiled kernels are kept in %s; set CUPY_CACHE_DIR to choose another place", folder)


def _writable(folder: Path) -> bool:
    """Return whether a folder is writable, or can be made."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _own_folder() -> str:
    """Return a temporary folder of this user; the same one in the next run if that is safe."""
    user = getattr(os, "getuid", lambda: 0)()
    folder = os.path.join(tempfile.gettempdir(), f"gpucoron-{user}")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        status = os.lstat(folder)
        if stat.S_ISDIR(status.st_mode) and status.st_uid == user and not status.st_mode & 0o077:
            return folder
    except OSError:
        pass
    folder = tempfile.mkdtemp(prefix="gpucoron-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
