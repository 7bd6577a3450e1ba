"""What must happen before what: a checker for work in streams and for the host.

Emulated work is done at once, so a missing wait changes no result; this says what it would have
done. Every stream and the host have a vector clock. Work in a stream comes after all that is in
the stream, after what the stream was made to wait for, and after what the host had seen finish when
it put the work there. An access to memory that does not come after the last write to it, or a write
that does not come after the reads, is a `Race`.

The threads of the host share one clock: once one of them has waited for a stream, that work *is*
done, and whatever any thread starts later comes after it. So a program that is right is never
blamed, and one that is wrong is judged by the order in which its threads happened to run.
"""

import threading
from typing import NamedTuple


class Race(AssertionError):
    """Two accesses to the same memory that nothing orders."""


class Access(NamedTuple):
    """One piece of work that touched some memory."""

    queue: "Queue"
    number: int  # the queue's
    tick: int
    what: str


class Queue:
    """One stream: what is in it is done one after another.

    Attributes
    ----------
    is_null, is_blocking : bool
        The null stream waits for all blocking ones of its device, and they for it.
    after : dict of int to int
        Ticks, by a queue's number, that its next work comes after; its own last among them.
    partners : list of Queue
        The blocking ones of the null stream, or the null stream of a blocking one.
    """

    def __init__(self, checker, device, name, is_null=False):
        self.device, self.name, self.is_null = device, f"{name} of device {device}", is_null
        self.number, self.ticks, self.after, self.partners = 0, 0, {}, []
        self.is_blocking = True
        self._met, self._host = {}, None
        checker.enrol(self)

    def begin(self, checker):
        """Come after what the host has seen, and after the partners' work so far."""
        if self._host is not checker.host:
            merge(self.after, checker.host)
            self._host = checker.host
        for partner in self.partners:
            if self._met.get(partner.number) != partner.ticks:
                self._met[partner.number] = partner.ticks
                merge(self.after, partner.after)

    def so_far(self):
        """Return clocks of what a wait for this queue waits for."""
        others = self.partners if self.is_null else ()
        return [self.after, *(partner.after for partner in others)]

    def step(self):
        """Add a piece of work; returns its tick."""
        self.ticks += 1
        self.after[self.number] = self.ticks
        return self.ticks


class Record:
    """What was done to one piece of memory: the last write and the reads since.

    `earlier` holds, by a queue's number, what was done by those that had the memory before.
    """

    __slots__ = ("shape", "dtype", "write", "reads", "earlier")
    kind = "an array"

    def __init__(self, array, earlier=()):
        self.shape, self.dtype = array.shape, array.dtype
        self.write, self.reads = None, {}
        self.earlier = dict(earlier)

    def __str__(self):
        return f"{self.kind} of {self.dtype} {self.shape}"

    def accesses(self):
        """Return all that somebody who gets the memory next must come after."""
        found = dict(self.earlier) if self.write is None else {self.write.number: self.write}
        for number, access in self.reads.items():
            if number not in found or found[number].tick < access.tick:
                found[number] = access
        return found


class Checker:
    """Keeps the clocks, and judges every access.

    Attributes
    ----------
    host : dict of int to int
        Ticks, by a queue's number, that the host has seen finish. Replaced, never changed.
    races : list of Race
        All that were found; who expects one takes it out.
    """

    def __init__(self):
        self._lock = threading.RLock()
        self.host, self.races, self._unraised = {}, [], []
        self._next, self._first = 1, 1

    def begin_anew(self):
        """Take all work so far for finished."""
        with self._lock:
            self._first, self.host = self._next, {}
            self.races, self._unraised = [], []

    def enrol(self, queue):
        """Give a queue a number of its own."""
        with self._lock:
            queue.number, self._next = self._next, self._next + 1

    # ------------------------------------------------------------ what orders
    def work(self, queue, what, reads=(), writes=()):
        """Put work that reads and writes some Records into a queue; return its Access."""
        with self._lock:
            self._complain()
            after = self._come_after(queue)
            access = Access(queue, queue.number, queue.step(), what)
            for record in reads:
                self._check(after, access, "reads", record, reading=True)
                record.reads[queue.number] = access
            for record in writes:
                self._check(after, access, "writes", record, reading=False)
                record.write, record.reads, record.earlier = access, {}, {}
        return access

    def mark(self, queue):
        """Return what an event recorded now stands for: all in the queue so far."""
        with self._lock:
            self._come_after(queue)
            queue.step()
            return dict(queue.after)

    def wait(self, queue, mark):
        """Let all further work of a queue come after a mark."""
        with self._lock:
            merge(self._come_after(queue), mark)
            queue.step()

    def see(self, *marks):
        """Let the host come after some marks."""
        with self._lock:
            self._complain()
            host = dict(self.host)
            for mark in marks:
                merge(host, mark)
            if host != self.host:
                self.host = host

    def finish(self, *queues):
        """Let the host wait for all that is in some queues."""
        with self._lock:
            self.see(*(clock for queue in queues for clock in queue.so_far()))

    def _come_after(self, queue):
        queue.begin(self)
        return queue.after

    # ------------------------------------------------------------ what the host does
    def touch(self, record, what, write):
        """Let the host access memory that streams copy from and to."""
        with self._lock:
            self._complain()
            access = Access(None, 0, 0, what)
            self._check(self.host, access, "writes" if write else "reads", record, not write)
            if write:
                record.write, record.reads = None, {}

    def release(self, record):
        """Note a race if memory goes back to others while it is used; raised a little later.

        For finalizers, which cannot raise.
        """
        for access in record.accesses().values():
            if not self.is_finished(access):
                self._unraised.append(
                    f"{record} is given back while {access.what} on {access.queue.name} may still "
                    "use it"
                )

    def is_finished(self, access):
        """Tell whether the host has seen some work finish."""
        return self._is_after(self.host, access)

    # ------------------------------------------------------------ what is wrong
    def _check(self, after, access, verb, record, reading):
        rivals = [] if record.write is None else [record.write]
        if record.write is None:
            rivals += record.earlier.values()
        if not reading:
            rivals += record.reads.values()
        for rival in rivals:
            if not self._is_after(after, rival):
                self._found(access, verb, record, rival)

    def _is_after(self, after, access):
        return access.number < self._first or after.get(access.number, 0) >= access.tick

    def _found(self, access, verb, record, rival):
        where = f" on {access.queue.name}" if access.queue else ""
        again = ", whose memory it has got" if record.earlier and record.write is None else ""
        self._raise(
            f"{access.what}{where} {verb} {record}, but nothing orders it after "
            f"{rival.what} on {rival.queue.name}{again}"
        )

    def _complain(self):
        if self._unraised:
            self._raise(self._unraised.pop())

    def _raise(self, text):
        race = Race(text)
        self.races.append(race)
        raise race

    def raise_left(self):
        """Raise what was found and got lost on the way, if anything."""
        self._complain()
        if self.races:
            raise Race(f"a race that the program went on after: {self.races[0]}")


def merge(clock, other):
    """Make a clock come after another one."""
    for number, tick in other.items():
        if clock.get(number, 0) < tick:
            clock[number] = tick
