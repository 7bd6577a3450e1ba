"""Streams and events as CUDA and CuPy have them; what they order is in order.py."""

import itertools
import threading

from tests.helpers.cuda_on_host.order import Queue

NULL, PER_THREAD = 0, 2  # CUDA's handles


class Streams:
    """All streams of the emulated devices, and which one is current in each thread.

    `device` is a function that gives the number of the current device, `error` CUDA's exception.

    Attributes
    ----------
    per_thread : bool
        Whether each thread's own stream is its default, as with
        CUPY_CUDA_PER_THREAD_DEFAULT_STREAM=1.
    Stream, Event, current
        What stands for `cupy.cuda.Stream`, `Event` and `get_current_stream`.
    """

    def __init__(self, checker, device, error):
        self.checker, self.device, self.error, self.per_thread = checker, device, error, False
        self._lock, self.handles = threading.RLock(), itertools.count(0x1000, 16)
        self.begin_anew()
        self.Stream, self.Event = stream_classes(self)

    def begin_anew(self):
        """Forget what is in any stream, and which ones are current."""
        self._default, self._all, self._local = {}, {}, threading.local()
        self.generation = object()

    def key(self, handle):
        """Return what names a stream to the pool: its handle, or the thread for a thread's own."""
        if handle != PER_THREAD:
            return handle
        if not hasattr(self._local, "thread"):
            self._local.thread = object()  # CPython uses the numbers of threads again
        return self._local.thread

    def default(self, handle):
        """Return the queue of the null stream, or of the thread's own, of the current device."""
        place = self.device(), self.key(handle)
        with self._lock:
            if place not in self._default:
                own = f"the own stream of thread {threading.current_thread().name}"
                name = "the null stream" if handle == NULL else own
                self._default[place] = self.make(place[0], name, handle != NULL, handle == NULL)
            return self._default[place]

    def finish_device(self):
        """Let the host wait for all that is in the streams of the current device."""
        with self._lock:
            self.checker.finish(*self._all.get(self.device(), ()))

    def make(self, device, name, blocking, is_null=False):
        queue = Queue(self.checker, device, name, is_null)
        with self._lock:
            others = self._all.setdefault(device, [])
            for other in others:
                if is_null and other.is_blocking or blocking and other.is_null:
                    queue.partners.append(other)
                    other.partners.append(queue)
            queue.is_blocking = blocking
            others.append(queue)
        return queue

    # ------------------------------------------------------------ what is current
    def current(self, device_id=-1):
        """Return the current stream of this thread on the current device, or on a given one."""
        stack = self._stacks().get(self.device() if device_id == -1 else device_id)
        return stack[-1] if stack else self.Stream.ptds if self.per_thread else self.Stream.null

    def push(self, stream):
        self._stacks().setdefault(self._device_of(stream), []).append(stream)
        self._local.entered.append(self._device_of(stream))

    def pop(self):
        self._stacks()[self._local.entered.pop()].pop()

    def _stacks(self):
        if not hasattr(self._local, "stacks"):
            self._local.stacks, self._local.entered = {}, []
        return self._local.stacks

    def _device_of(self, stream):
        current = self.device()
        if stream.device_id not in (-1, current):
            raise RuntimeError(
                f"The device that the stream is created on ({stream.device_id}) "
                f"does not match with the current device ({current})"
            )
        return current


def stream_classes(streams):
    """Return what stands for `cupy.cuda.Stream` and `cupy.cuda.Event`."""

    class Stream:
        def __init__(self, null=False, non_blocking=False, ptds=False):
            self._blocking, self._generation = not non_blocking, None
            if null or ptds:
                self.ptr, self.device_id = NULL if null else PER_THREAD, -1
            else:
                self.ptr, self.device_id = next(streams.handles), streams.device()

        key = property(lambda self: streams.key(self.ptr))

        @property
        def queue(self):
            if self.device_id == -1:
                return streams.default(self.ptr)
            if self._generation is not streams.generation:
                self._generation = streams.generation
                kind = "blocking stream" if self._blocking else "stream"
                self._queue = streams.make(self.device_id, f"{kind} {self.ptr:#x}", self._blocking)
            return self._queue

        def __eq__(self, other):
            return isinstance(other, Stream) and self.ptr == other.ptr

        def __hash__(self):
            return self.ptr

        def __enter__(self):
            streams.push(self)
            return self

        def __exit__(self, *problem):
            streams.pop()

        def synchronize(self):
            streams.checker.finish(self.queue)

        def wait_event(self, event):
            if event.mark is not None:  # CUDA waits for no event that never was recorded
                streams.checker.wait(self.queue, event.mark)

        def record(self, event=None):
            event = event or Event()
            event.record(self)
            return event

    class Event:
        def __init__(self):
            self.mark, self._device = None, streams.device()

        def record(self, stream=None):
            queue = (streams.current() if stream is None else stream).queue
            if queue.device != self._device:
                raise streams.error("cudaErrorInvalidResourceHandle: invalid resource handle")
            self.mark = streams.checker.mark(queue)

        def synchronize(self):
            if self.mark is not None:
                streams.checker.see(self.mark)

    Stream.null, Stream.ptds = Stream(null=True), Stream(ptds=True)
    return Stream, Event
