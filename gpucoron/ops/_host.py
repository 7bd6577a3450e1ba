"""What this version can run where."""

from gpucoron.device import on_gpu
from gpucoron.errors import DeviceError


def require_host(op, *arrays):
    """Raise DeviceError where an op that has only CPU code is given GPU arrays."""
    if on_gpu(*arrays):
        raise DeviceError(f"{op} runs on host arrays in this version; bring them over with .get()")
