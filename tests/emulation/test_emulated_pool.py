"""The emulated device's memory is kept, split and refused as CuPy's pool does it."""

import contextlib
import gc
import random

import numpy as np
import pytest

from tests.helpers.cuda_on_host.pool import UNIT, OutOfMemoryError, Pool

emulated = pytest.mark.parametrize("device", ["host-forward"], indirect=True)
both = pytest.mark.parametrize("device", ["host-forward", "cuda"], indirect=True)


def state(pool):
    return pool.used // UNIT, pool.total // UNIT


def take(pool, units, stream=0):
    return pool.take(units * UNIT, stream)


@pytest.fixture
def pool():
    return Pool(1000 * UNIT)


def test_it_serves_only_the_stream_that_had_it(pool):
    pool.give_back(take(pool, 5, stream=1), {})
    take(pool, 5, stream=2)
    assert state(pool) == (5, 10)
    take(pool, 5, stream=1)
    assert state(pool) == (10, 10)


def test_the_smallest_that_will_do_is_cut_and_grows_together_again(pool):
    large, small = take(pool, 10), take(pool, 4)
    pool.give_back(large, {})
    pool.give_back(small, {})
    parts = [take(pool, 3), take(pool, 2), take(pool, 2)]
    assert parts[0] is small and parts[1] is large and state(pool) == (7, 14)
    assert pool.n_free_blocks() == 2  # 1 and 6
    for part in parts:
        pool.give_back(part, {})
    assert state(pool) == (0, 14) and pool.n_free_blocks() == 2
    assert take(pool, 10).size == 10 * UNIT and state(pool) == (10, 14)


def test_a_limit_refuses_no_more_than_cuda_would_be_asked_for(pool):
    pool.give_back(take(pool, 100), {})
    pool.limit = 10 * UNIT
    assert take(pool, 60).size == 60 * UNIT  # of what is kept
    with pytest.raises(OutOfMemoryError, match=r"^Out of memory allocating 25,600 bytes"):
        take(pool, 50)
    assert state(pool) == (60, 100)


def test_what_is_kept_is_freed_before_a_limit_refuses(pool):
    pool.limit = 10 * UNIT
    pool.give_back(take(pool, 6), {})
    pool.give_back(take(pool, 6, stream=1), {})
    assert state(pool) == (0, 6)
    held = take(pool, 7)
    assert state(pool) == (7, 7)
    with pytest.raises(OutOfMemoryError):
        take(pool, 4)
    pool.give_back(held, {})
    part = take(pool, 2)  # the other 5 of these 7 cannot be freed
    with pytest.raises(OutOfMemoryError):
        take(pool, 6)
    assert state(pool) == (2, 7)
    pool.give_back(part, {})
    take(pool, 10)
    with pytest.raises(OutOfMemoryError):
        take(pool, 1)


def test_a_device_has_so_much_memory(pool):
    take(pool, 900)
    pool.give_back(take(pool, 100), {})
    take(pool, 40, stream=1)  # cudaMalloc failed first
    assert state(pool) == (940, 940)
    with pytest.raises(OutOfMemoryError):
        take(pool, 61)


def test_cycles_are_collected_before_memory_is_refused(pool):
    class Owner:
        def __init__(self):
            self.me, self.chunk = self, take(pool, 8)

        def __del__(self):
            pool.give_back(self.chunk, {})

    pool.limit = 10 * UNIT
    Owner()
    take(pool, 9)
    assert state(pool) == (9, 9)


def test_the_past_stays_with_its_bytes(pool):
    a, b, c = take(pool, 1), take(pool, 2), take(pool, 4)
    whole = take(pool, 8)
    pool.give_back(whole, {})
    pool.give_back(take(pool, 8), {"whole": 1})
    first, second = take(pool, 3), take(pool, 5)
    for part, units in ((first, 3), (second, 5)):
        assert part.past == [(units * UNIT, {"whole": 1})]
    pool.give_back(first, {"first": 1})
    pool.give_back(second, {"second": 1})
    first, second = take(pool, 4), take(pool, 4, stream=0)
    assert first.past == [(3 * UNIT, {"first": 1}), (UNIT, {"second": 1})]
    assert second.past == [(4 * UNIT, {"second": 1})]
    assert not any(past for chunk in (a, b, c) for _, past in chunk.past)


@pytest.mark.parametrize("seed", range(5))
def test_no_byte_is_lost_or_given_twice(pool, seed):
    rng, held = random.Random(seed), []
    for _ in range(300):
        if held and rng.random() < 0.5:
            pool.give_back(held.pop(rng.randrange(len(held))), {})
        else:
            with contextlib.suppress(OutOfMemoryError):
                held.append(take(pool, rng.randint(1, 60), rng.randrange(3)))
        used, total = state(pool)
        kept = sum(size for arena in pool._arenas.values() for size, *_ in arena.chunks)
        assert used == sum(chunk.size for chunk in held) // UNIT
        assert total * UNIT == used * UNIT + kept <= pool.capacity
        assert all(chunk.size == sum(size for size, _ in chunk.past) for chunk in held)
    for chunk in held:
        pool.give_back(chunk, {})
    pool.free_all_blocks()
    assert state(pool) == (0, 0) and pool.n_free_blocks() == 0


# ---------------------------------------------------------------- through CuPy's functions
@both
def test_arrays_come_out_of_it_and_go_back(device):
    cp = device.cupy
    pool, mine, other = cp.get_default_memory_pool(), *(cp.cuda.Stream() for _ in range(2))
    before, total = pool.used_bytes(), pool.total_bytes()
    with mine:  # nothing is kept for it
        x = cp.empty(1000)
        assert pool.used_bytes() == before + 8192 and pool.total_bytes() == total + 8192
        view = x[5:].reshape(5, -1)
        del x
        assert pool.used_bytes() == before + 8192
        del view
        assert pool.used_bytes() == before and pool.free_bytes() >= 8192
        x = cp.empty(1000)
        assert pool.total_bytes() == total + 8192
        with other:
            y = cp.empty(1000)
        assert pool.total_bytes() == total + 16384
        del x, y
        pool.free_all_blocks(stream=other)
        assert pool.total_bytes() == total + 8192
        x = cp.empty(10)
        pool.free_all_blocks(stream=mine)  # but for what a part of is in use
        assert pool.total_bytes() == total + 8192 and pool.used_bytes() == before + 512
        del x
        pool.free_all_blocks(stream=mine)
        assert pool.total_bytes() == total


@both
def test_a_limit_without_freeing_what_is_kept_refuses_nothing(device):
    cp = device.cupy
    pool = cp.get_default_memory_pool()
    gc.collect()  # what a failed test left behind would be freed, and counted, at any time
    with cp.cuda.Stream():
        x = cp.empty(100000)
        del x
        pool.set_limit(size=pool.used_bytes() + 1000)
        try:
            assert pool.get_limit() == pool.used_bytes() + 1000
            x = cp.empty(100000)
            del x
            pool.free_all_blocks()
            with pytest.raises(Exception, match="^Out of memory allocating 800,256 byte") as caught:
                cp.empty(100000)
            assert type(caught.value).__name__ == "OutOfMemoryError"
            pool.set_limit()
            cp.empty(100000)
        finally:
            pool.set_limit(size=0)


@emulated
def test_each_device_has_a_pool_and_a_limit(device):
    device.have(2)
    cp = device.cupy
    pool = cp.get_default_memory_pool()
    kept = [cp.ones(1000)]
    pool.set_limit(size=cp.cuda.runtime.memGetInfo()[1] // 2)
    with cp.cuda.Device(1):
        assert (pool.used_bytes(), pool.get_limit()) == (0, 0)
        free, total = cp.cuda.runtime.memGetInfo()
        assert free == total
        kept.append(cp.ones(2000))
        assert cp.cuda.runtime.memGetInfo() == (total - 16384, total)
        del kept[0]
        assert pool.used_bytes() == 16384
    assert (pool.used_bytes(), pool.free_bytes(), pool.get_limit()) == (0, 8192, total // 2)
    with pytest.raises(ValueError):
        pool.set_limit(size=-1)
    assert np.array_equal(kept[0].get(), np.ones(2000))
