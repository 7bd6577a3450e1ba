"""What the kernels that include kernels/kriging.cuh need from the host."""

import functools

from gpucoron import cuda
from gpucoron.ops.kriging import _finest

__all__ = ["finest_correlation"]


def finest_correlation():
    """Return the table of `gpucoron.ops.kriging` on the current device, copied once to each."""
    cp = cuda.cupy()
    return _table(cp, cp.cuda.runtime.getDevice())


@functools.cache
def _table(cp, device):
    table = cp.asarray(_finest())
    cp.cuda.get_current_stream().synchronize()  # other streams will use it, too
    return table
