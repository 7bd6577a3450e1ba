"""Bringing stacks to a device and back."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gpucoron.backend.device import Device, on_gpu
from gpucoron.backend.transfer import CpuBackend, CudaBackend, backends
from gpucoron.core.stack import IntegrationStack, PlaneSource
from gpucoron.errors import DeviceMemoryError

EMULATED = pytest.mark.parametrize("device", ["host-forward", "cuda"], indirect=True)


def stack():
    rng = np.random.default_rng(1)
    shape = (3, 4, 5)
    data, ones = rng.normal(size=shape).astype("f4"), np.ones(shape, "f4")
    sources = tuple(PlaneSource("a", k) for k in (1, 2, 3))
    return IntegrationStack(data, ones, np.zeros(shape, "u4"), var_rnoise=ones, sources=sources)


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_has_a_place_for_each_device(device, count):
    assert [type(p) for p in backends(Device("cpu", None, "", ""))] == [CpuBackend]
    if not device.is_gpu:
        return
    device.have(count)
    found = backends(Device("gpu", 0, "", "", others=tuple(range(1, count))))
    assert [p.index for p in found] == list(range(count)) and all(p.is_gpu for p in found)
    there = [p.upload(np.arange(3)) for p in found]
    assert [array.device.id for array in there] == list(range(count))
    beyond = device.cupy.cuda.runtime.getDeviceCount()
    with pytest.raises(Exception, match="cudaErrorInvalidDevice"):
        CudaBackend(beyond)


def test_what_is_on_the_host_stays_what_it_is():
    host, value = CpuBackend(), stack()
    assert host.upload(value) is value and host.download_later(value)() is value


@EMULATED
def test_a_stack_goes_up_and_comes_back(device):
    gpu, value = CudaBackend(0), stack()
    there = gpu.upload(value)
    assert on_gpu(there.data, there.err, there.dq, there.var_rnoise)
    assert there.var_flat is None and there.sources == value.sources
    back = gpu.download_later(there)()
    for name in ("data", "err", "dq", "var_rnoise"):
        assert isinstance(getattr(back, name), np.ndarray)
        assert np.array_equal(getattr(back, name), getattr(value, name))


@EMULATED
def test_tuples_and_what_is_no_array_pass(device):
    gpu = CudaBackend(0)
    for pinned in (False, True):
        array, number, nothing = gpu.download_later((gpu.upload(np.arange(3)), 5, None), pinned)()
        assert (array.tolist(), number, nothing) == ([0, 1, 2], 5, None)


@EMULATED
def test_full_memory_is_one_line(device):
    gpu, pool = CudaBackend(0), device.cupy.get_default_memory_pool()
    value = np.zeros(10000)
    gpu.upload(value)  # memory for it is kept: a limit alone would refuse nothing
    taken = device.leave_memory(1000)
    try:
        assert gpu.free_memory() <= 1000 and taken is not None
        with pytest.raises(DeviceMemoryError, match=r"^device 0, upload: the GPU's memory is full"):
            gpu.upload(value)
    finally:
        pool.set_limit(size=0)


@EMULATED
def test_full_memory_frees_what_that_device_keeps(device):
    device.have(2)
    gpu, cp = CudaBackend(1), device.cupy
    gpu.upload(np.zeros(10000))
    with cp.cuda.Device(1):
        assert cp.get_default_memory_pool().free_bytes() > 0
    with pytest.raises(DeviceMemoryError), gpu.errors("a step"):
        raise cp.cuda.memory.OutOfMemoryError(8, 16, 24)
    with cp.cuda.Device(1):
        assert cp.get_default_memory_pool().free_bytes() == 0


@EMULATED
def test_what_was_copied_before_memory_ran_out_is_waited_for(device):
    gpu, pool = CudaBackend(0), device.cupy.get_default_memory_pool()
    taken = device.leave_memory(5000)
    try:
        assert taken is not None
        with pytest.raises(DeviceMemoryError):
            gpu.upload((np.zeros(100), np.zeros(10000)))
        with gpu.activate():  # the memory of the first
            assert device.get(device.cupy.full(100, 2.0)).tolist() == [2.0] * 100
    finally:
        pool.set_limit(size=0)


@EMULATED
def test_all_threads_compute_on_one_stream(device):
    """Where each has a default stream of its own, too."""
    if device.emulation:
        device.emulation.streams.per_thread = True
    gpu = CudaBackend(0)

    def double(array):
        with gpu.activate():
            return array * 2

    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(gpu.upload, np.arange(3)).result()
        for _ in range(3):
            there = pool.submit(double, double(there)).result()
        assert pool.submit(gpu.download_later(there)).result().tolist() == [0, 64, 128]
