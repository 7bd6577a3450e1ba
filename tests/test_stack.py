import numpy as np
import pytest

from gpucoron.errors import InputError
from gpucoron.stack import IntegrationStack, PlaneSource


def stack(n=3):
    data = np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3)
    return IntegrationStack(data, data, np.zeros(data.shape, np.uint32),
                            sources=tuple(PlaneSource("e", i + 1) for i in range(n)))


def test_planes_selects_arrays_and_sources():
    for index in (slice(1, 3), [1, 2], np.array([False, True, True])):
        part = stack().planes(index)
        assert part.data[:, 0, 0].tolist() == [6, 12]
        assert part.sources == (("e", 2), ("e", 3))
        assert part.var_flat is None


def test_it_is_frozen_and_checked():
    s = stack()
    with pytest.raises(AttributeError):
        s.data = None
    with pytest.raises(InputError, match=r"err has shape \(1, 2, 3\), but data has \(3, 2, 3\)"):
        s.replace(err=s.err[:1])
    with pytest.raises(InputError, match="dtype int32, expected uint32"):
        s.replace(dq=s.dq.astype(np.int32))
    with pytest.raises(InputError, match=r"expected \(n, ny, nx\)"):
        IntegrationStack(s.data[0], s.err[0], s.dq[0])
    with pytest.raises(InputError, match="1 sources given for 3"):
        s.replace(sources=s.sources[:1])
