"""What happens beside the caller, and what becomes of it when it fails."""

import threading

import pytest

from gpucoron.backend.prefetch import Background, read_ahead


@pytest.mark.parametrize("beside", [True, False])
def test_items_come_in_order(beside):
    threads = set()

    def read(item):
        threads.add(threading.current_thread() is threading.main_thread())
        return item * item

    assert list(read_ahead(read, range(7), beside)) == [k * k for k in range(7)]
    assert threads == {not beside}


def test_the_next_item_is_read_before_it_is_asked_for():
    second = threading.Event()
    items = read_ahead(lambda item: second.set() if item else item, range(3))
    next(items)
    assert second.wait(10)


@pytest.mark.parametrize("beside", [True, False])
def test_a_failed_read_is_raised_where_its_turn_comes(beside):
    items = read_ahead(lambda item: 1 // item, [2, 1, 0, 5], beside)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(items)


def test_one_thing_is_done_at_a_time_and_all_before_the_block_ends():
    running, done = threading.Lock(), []

    def work(k):
        assert running.acquire(blocking=False)
        done.append(k)
        running.release()

    with Background() as background:
        for k in range(20):
            background.submit(work, k)
    assert done == list(range(20))


def test_its_thread_is_there_before_there_is_work(monkeypatch):
    """A signal while a thread starts leaves one that writes on and that nobody waits for."""

    def start(thread):
        raise KeyboardInterrupt

    done = []
    with Background() as background:
        monkeypatch.setattr(threading.Thread, "start", start)
        background.submit(done.append, 1)
    assert done == [1]


@pytest.mark.parametrize("beside", [True, False])
def test_what_fails_beside_is_raised_by_the_block_if_that_does_not_fail(beside):
    with pytest.raises(ZeroDivisionError), Background(beside) as background:
        background.submit(lambda: 1 // 0)
    with pytest.raises(KeyError), Background() as background:
        background.submit(lambda: 1 // 0)
        raise KeyError
