"""Device memory as CuPy's pool hands it out: kept, split, merged, bounded.

Only sizes: the values of an array lie in NumPy's memory. What a piece of memory was used for goes
with it to the next who gets it (`tests.helpers.cuda_on_host.order`).
"""

import bisect
import collections
import gc
import itertools
import threading

UNIT = 512  # bytes: what CuPy rounds sizes up to


class OutOfMemoryError(MemoryError):
    """As CuPy's."""

    def __init__(self, size, total, limit=0):
        super().__init__(
            f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} "
            f"bytes, limit set to: {limit:,} bytes)."
        )


class Chunk:
    """A piece of what one cudaMalloc gave, all of it at first.

    Attributes
    ----------
    arena : Arena
        Where it goes when it is given back.
    past : list of (size, dict)
        Accesses to its parts, by all that had them so far.
    before, behind : Chunk or None
        Neighbours that it was split from.
    """

    __slots__ = ("size", "arena", "past", "before", "behind", "number")
    _numbers = itertools.count()

    def __init__(self, size, arena, past):
        self.size, self.arena, self.past = size, arena, past
        self.before = self.behind = None
        self.number = next(self._numbers)

    def split(self, size):
        """Keep the first bytes; return the rest as a chunk, or None."""
        if self.size == size:
            return None
        here, there, left = [], [], size
        for length, past in self.past:
            taken = min(left, length)
            here += [(taken, past)] * (taken > 0)
            there += [(length - taken, past)] * (length > taken)
            left -= taken
        rest = Chunk(self.size - size, self.arena, there)
        rest.before, rest.behind, self.behind = self, self.behind, rest
        if rest.behind:
            rest.behind.before = rest
        self.size, self.past = size, here
        return rest

    def swallow(self):
        """Become one with the chunk behind."""
        other = self.behind
        self.size += other.size
        self.past += other.past
        self.behind = other.behind
        if self.behind:
            self.behind.before = self


class Arena:
    """What was given back by those who had taken it on one stream: for that stream again."""

    def __init__(self):
        self.chunks = []  # sorted: (size, number, chunk)

    def add(self, chunk, merge=True):
        while merge and chunk.behind and self._remove(chunk.behind):
            chunk.swallow()
        while merge and chunk.before and self._remove(chunk.before):
            chunk = chunk.before
            chunk.swallow()
        bisect.insort(self.chunks, (chunk.size, chunk.number, chunk))

    def get(self, size):
        """Return the smallest chunk that is large enough, cut to size; None if there is none."""
        found = bisect.bisect_left(self.chunks, (size,))
        if found == len(self.chunks):
            return None
        chunk = self.chunks.pop(found)[2]
        rest = chunk.split(size)
        if rest:
            self.add(rest, merge=False)
        return chunk

    def free(self):
        """Give back to CUDA what is whole; return its bytes."""
        parts = [entry for entry in self.chunks if entry[2].before or entry[2].behind]
        freed = sum(size for size, *_ in self.chunks) - sum(size for size, *_ in parts)
        self.chunks = parts
        return freed

    def _remove(self, chunk):
        where = bisect.bisect_left(self.chunks, (chunk.size, chunk.number))
        if where < len(self.chunks) and self.chunks[where][2] is chunk:
            del self.chunks[where]
            return True
        return False


class Pool:
    """The memory of one device, as CuPy's SingleDeviceMemoryPool.

    Attributes
    ----------
    capacity : int, bytes
        What the device has.
    limit : int, bytes
        What the pool may hold; 0 for all.
    total : int, bytes
        What it holds, in use or not.
    """

    def __init__(self, capacity):
        self.capacity, self.limit, self.total = capacity, 0, 0
        self._used, self._arenas = 0, {}
        self._lock = threading.Lock()
        self._coming_back = collections.deque()  # finalizers must not lock

    def take(self, size, stream):
        """Return a chunk for so many bytes, for work on a stream, named by whatever hashes."""
        size = -(-size // UNIT) * UNIT
        with self._lock:
            self._settle()
            arena = self._arenas.setdefault(stream, Arena())
            chunk = arena.get(size)
            if chunk:
                self._used += size
                return chunk
            if self.limit and size > self.limit:
                raise OutOfMemoryError(size, self.total, self.limit)
        for collect in (False, True, None):
            with self._lock:
                self._settle()
                if self.total + size <= min(self.limit or self.capacity, self.capacity):
                    self.total += size
                    self._used += size
                    return Chunk(size, arena, [(size, {})])
            if collect:
                gc.collect()
            if collect is not None:
                self.free_all_blocks()
        raise OutOfMemoryError(size, self.total, self.limit)

    def give_back(self, chunk, past):
        """Keep a chunk for the next on its stream, soon; `past` is what was done with it."""
        self._coming_back.append((chunk, past))

    def free_all_blocks(self, stream=None):
        """Give what is kept back to CUDA, unless other parts of it are in use."""
        with self._lock:
            self._settle()
            for key, arena in self._arenas.items():
                if stream is None or key == stream:
                    self.total -= arena.free()

    def n_free_blocks(self):
        with self._lock:
            self._settle()
            return sum(len(arena.chunks) for arena in self._arenas.values())

    @property
    def used(self):
        with self._lock:
            self._settle()
            return self._used

    def _settle(self):
        while self._coming_back:
            chunk, past = self._coming_back.popleft()
            self._used -= chunk.size
            chunk.past = [(chunk.size, past)]
            chunk.arena.add(chunk)


class MemoryPool:
    """What `cupy.get_default_memory_pool` returns: the pool of the current device."""

    def __init__(self, home):
        self._home = home

    def used_bytes(self):
        return self._home.pool.used

    def total_bytes(self):
        return self._home.pool.total

    def free_bytes(self):
        return self._home.pool.total - self._home.pool.used

    def free_all_blocks(self, stream=None):
        self._home.pool.free_all_blocks(stream and stream.key)

    def get_limit(self):
        return self._home.pool.limit

    def set_limit(self, size=None):
        if (size or 0) < 0:
            raise ValueError("memory limit out of range")
        self._home.pool.limit = int(size or 0)
