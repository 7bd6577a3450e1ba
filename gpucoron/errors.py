"""The exceptions that users can catch, each with the exit status that the command line gives it."""

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
    "why",
]

_LONGEST = 1500


class GpucoronError(Exception):
    """Root of every error that gpucoron raises on purpose; its text is one line for the user.

    What cannot be printed (a name can hold anything) is shown as escapes, and a line of more than
    some thousand characters loses its middle.
    """

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        if not text.isprintable():
            text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 400]} ... {text[-400:]}"


class UsageError(GpucoronError):
    """The command line or the call asks for something that does not exist."""

    exit_code = 2


class ParameterError(UsageError, ValueError):
    """A step parameter is unknown or has a value that its step cannot take."""


class InputError(GpucoronError, ValueError):
    """An input file or array is not what the work needs."""

    exit_code = 3


class AssociationError(InputError):
    """The association is not readable, not an association, or asks for the impossible."""


class ExposureError(InputError):
    """An exposure (``_calints`` or ``_cal``) cannot be used."""


class MaskError(InputError):
    """The psfmask cannot be used."""


class DeviceError(GpucoronError, RuntimeError):
    """The device asked for is not there, or failed."""

    exit_code = 4


class DeviceMemoryError(DeviceError, MemoryError):
    """The memory of the GPU did not suffice; smaller batches may."""


class ClusterError(DeviceError):
    """The scheduler is not there, or the cluster lost what it was to do."""


class OutputError(GpucoronError, OSError):
    """A product cannot be written where it was asked for."""

    exit_code = 5


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
