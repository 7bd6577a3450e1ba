import numpy as np
import pytest

from gpucoron.core.stack import IntegrationStack, PlaneSource
from gpucoron.errors import InputError
from tests.helpers.device_fixture import Foreign


def stack(n=3, put=lambda array: array):
    data = put(np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3))
    sources = tuple(PlaneSource("e", i + 1) for i in range(n))
    return IntegrationStack(data, data, put(np.zeros(data.shape, np.uint32)), sources=sources)


def test_planes_selects_arrays_and_sources(device):
    for index in (slice(1, 3), [1, 2], device.array(np.array([False, True, True]))):
        part = stack(put=device.array).planes(index)
        assert device.get(part.data[:, 0, 0]).tolist() == [6, 12]
        assert part.sources == (("e", 2), ("e", 3))
        assert part.var_flat is None


def test_it_is_frozen_and_checked():
    s = stack()
    with pytest.raises(AttributeError):
        s.data = None
    image = {"data": s.data[0], "err": s.err[0], "dq": s.dq[0]}
    for changes, match in (
        ({"err": s.err[:1]}, r"err has shape \(1, 2, 3\), but data has \(3, 2, 3\)"),
        ({"dq": s.dq.astype(np.int32)}, "dtype int32, expected uint32"),
        (image, r"expected \(n, ny, nx\)"),
        ({"sources": s.sources[:1]}, "1 sources given for 3"),
    ):
        with pytest.raises(InputError, match=match):
            s.replace(**changes)


def test_arrays_of_one_stack_live_together(device):
    s = stack(put=device.array)
    assert s.replace(err=s.data).err is s.data
    if device.is_gpu:
        with pytest.raises(TypeError, match="mixed"):
            s.replace(dq=device.get(s.dq))


def test_memory_of_other_packages_is_not_copied(device):
    if not device.is_gpu:
        pytest.skip("a host array is taken as it is")
    s = stack(put=device.array)
    taken = s.replace(data=Foreign(s.data))
    assert isinstance(taken.data, device.cupy.ndarray)
    assert taken.data.data.ptr == s.data.data.ptr
    assert (device.get(taken.data) == device.get(s.data)).all()
