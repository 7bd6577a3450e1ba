"""Exceptions that users can catch, each with its exit status."""

__all__ = [
    "GpucoronError",
    "UsageError",
    "ParameterError",
    "InputError",
    "AssociationError",
    "ExposureError",
    "MaskError",
    "DeviceError",
    "DeviceMemoryError",
    "ClusterError",
    "OutputError",
    "one_line",
    "plural",
    "printable",
    "why",
]

_LONGEST = 1500


class GpucoronError(Exception):
    """Base of all errors that gpucoron raises; the text is one line for the user.

    What cannot be printed (a name can hold anything) is shown as escapes, and a line of more than
    some thousand characters loses its middle.
    """

    exit_code = 1

    def __str__(self) -> str:
        text = printable(super().__str__())
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 400]} ... {text[-400:]}"


class UsageError(GpucoronError):
    """The command line or the call asks for something that does not exist."""

    exit_code = 2


class ParameterError(UsageError, ValueError):
    """A step parameter is unknown or has a value that its step cannot take."""


class InputError(GpucoronError, ValueError):
    """An input file or array cannot be used."""

    exit_code = 3


class AssociationError(InputError):
    """The association cannot be read or used."""


class ExposureError(InputError):
    """An exposure (``_calints`` or ``_cal``) cannot be used."""


class MaskError(InputError):
    """The psfmask cannot be used."""


class DeviceError(GpucoronError, RuntimeError):
    """The requested device is not available, or failed."""

    exit_code = 4


class DeviceMemoryError(DeviceError, MemoryError):
    """GPU memory is full; smaller batches may fit."""


class ClusterError(DeviceError):
    """The Dask scheduler does not answer, or the cluster lost the work."""


class OutputError(GpucoronError, OSError):
    """A product cannot be written."""

    exit_code = 5


def printable(text: str) -> str:
    """Return text with everything that acts on a terminal shown as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(problem: object) -> str:
    """Return the first line of an exception's text; the name of its class where it has none."""
    lines = str(problem).strip().splitlines()
    return lines[0] if lines else type(problem).__name__


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: "1 pixel", "2 pixels"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def why(problem: BaseException) -> str:
    """Return why a file could not be read or written, without number and file name."""
    return getattr(problem, "strerror", None) or one_line(problem)
