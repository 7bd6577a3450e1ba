"""The emulated device finds what nothing orders, and blames nothing that is in order."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gpucoron.backend import cuda
from tests.helpers import device_fixture
from tests.helpers.cuda_on_host.order import Race

pytestmark = pytest.mark.parametrize("device", ["host-forward"], indirect=True)
UNORDERED = "nothing orders it after"


def streams(device, n=2, **options):
    return [device.cupy.cuda.Stream(**{"non_blocking": True, **options}) for _ in range(n)]


def filled(device, stream, value=1.0, n=1000):
    with stream:
        return device.cupy.full(n, value)


@pytest.fixture
def a(device):
    return streams(device)[0]


@pytest.fixture
def b(device):
    return streams(device)[0]


@pytest.fixture
def x(device, a):
    return filled(device, a)


# ---------------------------------------------------------------- accesses
@pytest.mark.parametrize(
    "first, second, found",
    [
        (
            None,
            lambda x: x * 2,
            r"multiply on stream 0x\w+ of device 0 reads a device array of float64 \(1000,\), but "
            r"nothing orders it after cupy.full on stream 0x\w+ of",
        ),
        (
            lambda x: x.sum(),
            lambda x: x.__setitem__(3, 0),
            f"an assignment .* writes .* {UNORDERED} cupy.ndarray.sum",
        ),
        (None, lambda x: x.fill(0), f"fill on .* writes .* {UNORDERED} cupy.full"),
    ],
)
def test_a_race_of_two_accesses(device, a, b, x, first, second, found):
    if first:
        a.synchronize()
        with b:
            first(x)
        a, b = b, a
    with device.race(found), b:
        second(x)


def test_two_reads_are_no_race(device, a, b, x):
    a.synchronize()
    for stream in (a, b, a):
        with stream:
            x.sum()


@pytest.mark.parametrize(
    "change",
    [
        lambda cp, x: x.sort(),
        lambda cp, x: cp.copyto(x, 2.0),
        lambda cp, x: cp.add(x, 1, out=x),
        lambda cp, x: x.__iadd__(1),
        lambda cp, x: x.set(np.zeros(1000)),
        lambda cp, x: cp.cumsum(cp.ones(1000), out=x),
        lambda cp, x: x[:5].fill(0),
        lambda cp, x: x.reshape(10, 100).T.__setitem__(0, 1.0),
    ],
)
def test_all_that_writes_is_a_write(device, a, b, x, change):
    a.synchronize()
    with b:
        x.sum()
    with device.race("writes a device array"), a:
        change(device.cupy, x)


def test_views_and_shapes_are_no_access(device, b, x):
    cp, z = device.cupy, device.array(np.zeros(3))
    z[1][...] = 5  # an element is a view
    assert z.get().tolist() == [0, 5, 0]
    with b:
        y = x.reshape(10, 100)[2:, 3].T
        assert (y.shape, x[5].ndim, len(x)) == ((8,), 0, 1000)
        assert cp.broadcast_to(x, (2, 1000)).size == 2000
        assert cp.asarray(x).data.ptr == x.ravel().data.ptr == x.data.ptr
    with device.race(UNORDERED), b:
        y.sum()


def test_foreign_views_are_of_the_same_memory(device, b, x):
    y = device.cupy.asarray(device_fixture.Foreign(x[10:]))
    with device.race(UNORDERED), b:
        y.sum()


@pytest.mark.parametrize("written", [False, True])
def test_what_a_kernel_takes_as_constant_it_only_reads(device, a, b, written):
    images, mask = (device.array(np.ones((3, 1, 256), dtype)) for dtype in ("f4", "?"))
    outs = [device.array(np.zeros((1, 256), "f4")) for _ in range(2)]
    device.cupy.cuda.Device().synchronize()
    launch = cuda.kernel("median", "column_median<float, 8>")

    def launched(out):
        launch((2,), (128,), (images, mask, np.int32(True), np.int32(3), np.int64(256), out))

    with a:
        launched(outs[0])
    text = f"kernel column_median<float, 8> .* {UNORDERED} kernel column_med"
    with device.race(text) if written else contextlib.nullcontext(), b:
        launched(outs[not written])


# ---------------------------------------------------------------- what orders
def by_event_on_the_current_stream(cp, a, b):
    event = cp.cuda.Event()
    with a:
        event.record()
    event.synchronize()


def by_others(cp, a, b):
    middle = cp.cuda.Stream(non_blocking=True)
    middle.wait_event(a.record())
    b.wait_event(middle.record())


WAYS = [
    lambda cp, a, b: b.wait_event(a.record()),
    lambda cp, a, b: b.wait_event(a.record(cp.cuda.Event())),
    by_event_on_the_current_stream,
    by_others,
    lambda cp, a, b: a.synchronize(),
    lambda cp, a, b: cp.cuda.Device().synchronize(),
    lambda cp, a, b: cp.cuda.runtime.deviceSynchronize(),
    lambda cp, a, b: cp.asnumpy(cp.empty(1), stream=a),
]


@pytest.mark.parametrize("way", WAYS)
def test_what_orders_two_streams(device, a, b, x, way):
    device.cupy.cuda.Stream.null.wait_event(a.record())
    way(device.cupy, a, b)
    with b:
        x += 1
        assert float(x[0]) == 2


@pytest.mark.parametrize(
    "way",
    [
        lambda cp, a, b: b.synchronize(),
        lambda cp, a, b: a.wait_event(b.record()),
        lambda cp, a, b: b.wait_event(cp.cuda.Event()),
        lambda cp, a, b: a.record(),
        lambda cp, a, b: cp.cuda.Stream.null.synchronize(),
        lambda cp, a, b: b.wait_event(cp.cuda.Stream.null.record()),
    ],
)
def test_what_orders_nothing(device, a, b, x, way):
    way(device.cupy, a, b)
    with device.race(UNORDERED), b:
        x += 1


def test_an_event_stands_for_what_was_there_when_it_was_recorded(device, a, b, x):
    event = a.record()
    with a:
        y = x + 1
    b.wait_event(event)
    with b:
        x.sum()
    with device.race(f"{UNORDERED} add"), b:
        y.sum()


@pytest.mark.parametrize(
    "kinds, ordered",
    [
        *((k, True) for k in ("null blocking", "blocking null", "null own", "own null")),
        *((k, False) for k in ("null other", "other null", "own other")),
        *((k, False) for k in ("blocking blocking", "blocking other")),
    ],
)
def test_the_null_stream_and_blocking_ones_wait_for_each_other(device, kinds, ordered):
    cuda = device.cupy.cuda
    make = {
        "null": lambda: cuda.Stream.null,
        "blocking": cuda.Stream,
        "own": lambda: cuda.Stream.ptds,
        "other": lambda: cuda.Stream(non_blocking=True),
    }
    a, b = (make[kind]() for kind in kinds.split())
    x = filled(device, a)
    with contextlib.nullcontext() if ordered else device.race(UNORDERED), b:
        x += 1


def test_a_wait_for_the_null_stream_is_for_blocking_ones_too(device):
    cp, a, other = device.cupy, device.cupy.cuda.Stream(), *streams(device, 1)
    x = filled(device, a)
    cp.cuda.Stream.null.synchronize()
    with other:
        x.sum()
    x = filled(device, cp.cuda.Stream.null)
    a.synchronize()  # which has nothing to wait for
    with device.race(UNORDERED), other:
        x.sum()


def test_a_value_that_the_host_looks_at_was_waited_for(device, a, b):
    looks = [lambda x, kind=kind: kind(x[0]) for kind in (float, bool)]
    looks += [lambda x: x.item(), lambda x: x.tolist(), lambda x: x[x > 0]]
    for look in (*looks, device.get, device.cupy.nonzero):
        x = filled(device, a, n=1)
        with a:
            look(x)
        with b:
            x += 1
        b.synchronize()  # before its memory is a's again


def test_devices_have_streams_of_their_own(device):
    device.have(2)
    cp, (mine,) = device.cupy, streams(device, 1)
    a = filled(device, cp.cuda.Stream.null)
    with cp.cuda.Device(1):
        b = cp.ones(5)
        cp.cuda.Stream.null.synchronize()  # not device 0's
        with pytest.raises(RuntimeError, match="created on .0. does not .* device .1."), mine:
            pass
    assert b.device.id == 1
    with device.race(UNORDERED):
        a.get(stream=mine)


def test_an_event_is_of_one_device(device):
    device.have(2)
    cp = device.cupy
    event = cp.cuda.Event()
    with cp.cuda.Device(1):
        with pytest.raises(Exception, match="cudaErrorInvalidResourceHandle"):
            event.record()
        there = cp.ones(3)
        event = cp.cuda.Stream.null.record()
    cp.cuda.Stream.null.wait_event(event)  # of another device, which may be waited for
    with cp.cuda.Device(1):
        there.get()


# ---------------------------------------------------------------- memory that is used again
@pytest.fixture
def given_back(device, a, b):
    """Memory of the first stream is given back, with a sum of it on the second."""
    x = filled(device, a)
    b.wait_event(a.record())
    with b:
        x.sum()


def test_memory_that_another_stream_still_reads(device, a, b, given_back):
    with device.race(rf"full on .* {UNORDERED} cupy.ndarray.sum on .*, whose memory it has got"):
        filled(device, a, 2.0)


@pytest.mark.parametrize(
    "finish",
    [
        lambda cp, a, b: a.wait_event(b.record()),
        lambda cp, a, b: cp.get_default_memory_pool().free_all_blocks(),  # cudaFree waits
    ],
)
def test_memory_that_another_stream_has_read(device, a, b, given_back, finish):
    finish(device.cupy, a, b)
    filled(device, a, 2.0)


def test_memory_that_was_not_written_passes_on_what_is_done_with_it(device, a, b, given_back):
    with a:
        device.cupy.empty(1000)
    with device.race("whose memory it has got"):
        filled(device, a)


def test_only_the_part_that_is_in_use_is_in_use(device, a, b):
    x, y = filled(device, a, n=64), filled(device, a, n=64)
    a.synchronize()
    with b:
        y.sum()
    del x
    filled(device, a, n=64)  # x's
    del y
    with device.race("whose memory it has got"):
        filled(device, a, n=64), filled(device, a, n=64)


# ---------------------------------------------------------------- threads
def test_threads_that_hand_on_what_they_waited_for(device):
    """Correct by its waits, whatever the threads do: nobody is blamed."""
    gpus, results = streams(device, 3), []

    def chain(k):
        stream = gpus[k % 3]
        kept = [filled(device, stream, k)]  # else the stream that it is of would use it again
        for step in range(20):
            event, stream = stream.record(), gpus[(k + step) % 3]
            stream.wait_event(event)
            with stream:
                kept.append(kept[-1] + 1)
        results.append(kept[-1].get(stream=stream)[0] - k)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(chain, range(24)))
    assert results == [20] * 24


def test_what_one_thread_waited_for_is_done_for_all(device, a, b, x):
    thread = threading.Thread(target=a.synchronize)
    thread.start()
    thread.join()
    with b:
        x += 1


def test_each_thread_has_a_stream_of_its_own(device):
    device.emulation.streams.per_thread = True
    cp = device.cupy
    assert cp.cuda.get_current_stream() == cp.cuda.Stream.ptds
    x = cp.ones(1000)

    def double():
        return x * 2

    with ThreadPoolExecutor(1) as pool:
        with device.race("the own stream of thread ThreadPool.* the own stream of thread Main"):
            pool.submit(double).result()
        cp.cuda.get_current_stream().synchronize()
        x = pool.submit(double).result()
        pool.submit(lambda: cp.cuda.Stream.ptds.synchronize()).result()
    assert float(x.sum()) == 2000


def test_streams_are_current_by_thread_and_by_device(device, a, b):
    device.have(2)
    cp = device.cupy
    current = cp.cuda.get_current_stream
    with a:
        with b, cp.cuda.Device(1):
            assert current() == cp.cuda.Stream.null and current(0) is b
        assert current() is a
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(current).result() == cp.cuda.Stream.null
    assert current() == cp.cuda.Stream.null


# ---------------------------------------------------------------- the emulation itself
def test_a_race_that_was_swallowed_is_raised_in_the_end(device):
    with pytest.raises(Race, match="a race that the program went on after"):
        with device_fixture.emulated() as again:
            a, b = streams(again)
            x = filled(again, a)
            with pytest.raises(Race), b:
                x += 1
    device.emulation.checker.races.clear()


def test_what_is_kept_from_before_is_done(device, a, b, x):
    device.emulation.reset()
    with b:
        x += 1
    with device.race(UNORDERED), a:
        x.sum()
