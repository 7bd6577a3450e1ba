"""What hostile input may cost: a few seconds, some memory, and one line of complaint."""

import os
import re
import resource
import signal
import warnings
from contextlib import contextmanager

import pytest
from astropy.io import fits
from hypothesis import HealthCheck, settings

from gpucoron.errors import GpucoronError
from gpucoron.io.exposures import read_exposure

EXAMPLES = int(os.environ.get("GPUCORON_FUZZ_EXAMPLES", "0"))
SECONDS, EXTRA_BYTES = 10, 1 << 30
MAX_LINE = 2000
TOKENS = re.compile(rb"[\w.+-]+|[^\w\s]")  # words of YAML and TOML, which are exchanged


class TooLong(BaseException):
    """Raised where something goes on and on; no `except Exception` swallows it."""


def fuzz(examples):
    """Settings of a property: the same few examples in every run, or many that are never the same.

    GPUCORON_FUZZ_EXAMPLES is how many, for a search that takes its time.
    """
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@contextmanager
def bounded(seconds=SECONDS, extra=EXTRA_BYTES):
    """Raise TooLong, or MemoryError, where the block takes more than this."""

    def stop(*unused):
        raise TooLong(f"more than {seconds} s")

    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (now + extra, before[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def refused_or(function, *arguments, **keywords):
    """Call within bounds; None where it was refused in one line, else what it returns."""
    with bounded():
        try:
            return function(*arguments, **keywords)
        except GpucoronError as error:
            one_line(str(error))
            return None


def refused(function, *arguments, error=GpucoronError, match=None, seconds=SECONDS):
    """Assert that a call fails within bounds, in one line."""
    with bounded(seconds), pytest.raises(error, match=match) as caught:
        function(*arguments)
    one_line(str(caught.value))


def one_line(text):
    """Assert that a message is one line that can be shown."""
    assert text.strip() and len(text) < MAX_LINE, f"{len(text)} characters"
    assert text.isprintable(), repr(text)


def whole(path):
    """Assert that a product can be read, whatever odd cards it has inherited."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(path) as hdus:
            for hdu in hdus:
                hdu.header.items()
                assert hdu.verify_checksum() == hdu.verify_datasum() == 1, hdu.name
                hdu.data
    read_exposure(path, "science")


def in_file(folder, content, name):
    """Put bytes into a file; return its path as text."""
    path = folder / name
    path.write_bytes(content)
    return str(path)
