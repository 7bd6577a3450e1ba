"""Pinned memory of the emulated device: copies that are still going on are in order or found."""

import gc
import operator

import numpy as np
import pytest

from tests.emulation.test_emulated_order import UNORDERED, filled, streams

pytestmark = pytest.mark.parametrize("device", ["host-forward"], indirect=True)


@pytest.fixture
def pinned(device):
    import cupyx

    array = cupyx.empty_pinned(1000, "f8")
    array[...] = 1
    return array


WRITES = [
    lambda p: p.__setitem__(3, 0),
    lambda p: p[2:].__setitem__(..., 0),
    lambda p: p.fill(0),
    lambda p: np.copyto(p, 0),
    lambda p: np.add(p, 1, out=p),
    lambda p: p.__iadd__(1),
    lambda p: p.sort(),
    lambda p: np.cumsum(np.ones(1000), out=p),
    lambda p: np.add.at(p, 3, 1),
]
READS = [np.mean, *map(operator.methodcaller, "sum tolist tobytes".split())]
READS += [lambda p: p[3], lambda p: p + 1, lambda p: p[5:].copy(), lambda p: p.astype("f4")]
READS += [lambda p: np.stack([p, p]), lambda p: p[p > 0], lambda p: np.array_equal(p, p)]


def test_pinned_memory_that_is_copied_from_may_be_read_and_not_written(device, pinned):
    (a,) = streams(device, 1)
    x = device.cupy.empty(1000)
    x.set(pinned, stream=a)
    for read in READS:
        read(pinned)
    for write in WRITES:
        with device.race(rf"the host, .*, writes a pinned array .* {UNORDERED} a copy from the"):
            write(pinned)
    a.synchronize()
    for write in WRITES:
        write(pinned)


def test_pinned_memory_that_is_copied_to_may_not_be_read(device, pinned):
    (a,) = streams(device, 1)
    x = filled(device, a, 3.0)
    x.get(stream=a, out=pinned, blocking=False)
    for access in READS + WRITES:
        with device.race(rf"the host, .* a pinned array .* {UNORDERED} a copy to the host"):
            access(pinned)
    a.record().synchronize()
    assert pinned.tolist() == [3.0] * 1000
    for access in READS + WRITES:
        access(pinned)


def test_a_copy_that_blocks_is_done(device, pinned):
    (a,) = streams(device, 1)
    x = filled(device, a, 3.0)
    assert x.get(stream=a, out=pinned) is pinned and (pinned == 3).all()
    assert (x.get(stream=a, blocking=False) == 3).all()  # CUDA waits: the memory is not pinned
    x *= 2


@pytest.mark.parametrize("waits", [True, False])
def test_pinned_memory_may_not_be_given_back_while_it_is_copied_from(device, waits):
    import cupyx

    (a,) = streams(device, 1)
    array, x = cupyx.zeros_pinned(1000), device.cupy.empty(1000)
    x[:500].set(array[:500], stream=a)
    if waits:
        a.synchronize()
        del array
        device.emulation.checker.raise_left()
    else:
        with device.race("a pinned array .* is given back while a copy from the host .* still use"):
            del array


def test_ordinary_memory_is_read_at_once(device):
    (a,) = streams(device, 1)
    x, array = device.cupy.empty(1000), np.ones(1000)
    x.set(array, stream=a)
    array[...] = 2
    del array
    assert (x.get(stream=a) == 1).all()


@pytest.mark.parametrize("held", [True, False])
def test_cupy_keeps_pinned_memory_that_it_was_given_but_does_not_copy_it(device, pinned, held):
    x = device.cupy.asarray(pinned)
    if held:
        del pinned
        gc.collect()
        device.emulation.checker.raise_left()
        assert (x.get() == 1).all()
    else:
        with device.race("writes a pinned array"):
            pinned[...] = 2


def test_what_is_made_of_pinned_memory_is_ordinary(device, pinned):
    (a,) = streams(device, 1)
    others = [pinned + 1, pinned.copy(), np.stack([pinned]), pinned[pinned > 0]]
    assert all(type(other) is np.ndarray or other.record is None for other in others)
    device.cupy.empty(1000).set(pinned, stream=a)
    for other in others:
        other[...] = 0
