"""The one thread for what is heavy: images wait in it one deep, so that it never holds up the readings."""

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

T = TypeVar("T")

_ARENA_MAX: Final = -8  # M_ARENA_MAX of <malloc.h>


@dataclass
class _Waiting:
    """A job, where its answer goes, and what answers in its place where it is not run at all."""

    job: Callable[[], Any]
    future: Future[Any]
    patience: float = 0.0
    instead: Callable[[], Any] | None = None


class Worker:
    """Runs jobs one after the other in a thread of its own, which starts with the first of them.

    All methods may be called from any thread and return at once, but `close`. `duty`: the most of the time that
    offered jobs may take, 0 to 1; after each the thread rests, and the jobs of `call` are run in that time. The first
    one that is made has all threads that begin later share the process's one heap, so that `give_back` reaches it.
    """

    def __init__(self, duty: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        _share_heap()
        self.clock = clock
        self._duty = duty
        self._changed = threading.Condition()
        self._calls: deque[_Waiting] = deque()
        self._offers: dict[tuple[str, bool], _Waiting] = {}  # by lane and urgency, as they began to wait
        self._due = clock()  # when the next offer may be taken up
        self._beat: float | None = None  # of the job that runs; None: idle
        self._closed = False
        self._thread: threading.Thread | None = None

    def call(self, job: Callable[[], T], patience: float = 600.0) -> Future[T]:
        """Run `job` after those called before it, and before any that is offered.

        It may take `patience` seconds before it counts as one that does not get on.
        """
        waiting = _Waiting(job, Future(), patience)
        with self._changed:
            self._begin()
            self._calls.append(waiting)
            self._changed.notify()
        return waiting.future

    def offer(self, lane: str, job: Callable[[], T], instead: Callable[[], T], urgent: bool = False) -> Future[T]:
        """Run `job` unless another one is offered in the same lane before its turn comes: then `instead` answers.

        Lanes have their turns in order of waiting. An urgent job goes first, rest or no rest, and gives way to urgent
        ones of its lane only.
        """
        waiting = _Waiting(job, Future(), instead=instead)
        with self._changed:
            self._begin()
            before = self._offers.get((lane, urgent))
            self._offers[lane, urgent] = waiting  # in the place of the one before, so that no lane overtakes another
            self._changed.notify()
        if before is not None:
            _pass_over(before)
        return waiting.future

    def alive(self) -> None:
        """Said by a running job: it gets on."""
        if (beat := self._beat) is not None:
            self._beat = max(beat, self.clock())

    def progress(self) -> float:
        """When, by the clock, it last got on: now if it is idle. What is long ago says that a job hangs."""
        now, beat = self.clock(), self._beat
        return now if beat is None else min(now, beat)

    def close(self, patience: float = 2.0) -> None:
        """Take no more jobs, pass over those that wait, and give the one that runs `patience` seconds to end.

        A job that hangs is left behind: the thread does not keep the process from ending.
        """
        with self._changed:
            self._closed = True
            left = [*self._calls, *self._offers.values()]
            self._calls.clear()
            self._offers.clear()
            self._changed.notify()
        for waiting in left:
            _pass_over(waiting)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(patience)

    def _begin(self) -> None:
        if self._closed:
            raise RuntimeError("the worker is closed")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="model", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (waiting := self._take()) is not None:
            if not waiting.future.set_running_or_notify_cancel():
                continue
            begun = self.clock()
            self._beat = begun + waiting.patience
            try:
                waiting.future.set_result(waiting.job())
            except BaseException as error:  # whoever waits for the answer hears of it; the thread lives on
                waiting.future.set_exception(error)
            self._beat = None
            if waiting.instead is not None:
                ended = self.clock()
                # On top of what is still owed: an urgent one does not pay for those before it.
                self._due = max(self._due, ended) + (ended - begun) * (1 / self._duty - 1)
            del waiting  # what it holds, an image perhaps, is not kept until the next

    def _take(self) -> _Waiting | None:
        """The next job, once there is one that may run; None when closed."""
        with self._changed:
            while not self._closed:
                if self._calls:
                    return self._calls.popleft()
                rest = self._due - self.clock()
                ready = [lane for lane in self._offers if lane[1]] or (list(self._offers) if rest <= 0 else [])
                if ready:
                    return self._offers.pop(ready[0])
                self._changed.wait(rest if self._offers else None)
            return None


def give_back() -> None:
    """Return the memory of what was just done to the system: the C library would keep most of it for the next time."""
    with suppress(OSError, AttributeError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)


def _share_heap() -> None:
    """Give the worker no heap of its own, whose end the C library keeps for ever: tens of MB after a large image."""
    with suppress(OSError, AttributeError):  # as above
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def _pass_over(waiting: _Waiting) -> None:
    if waiting.instead is None:
        waiting.future.cancel()
    elif waiting.future.set_running_or_notify_cancel():
        waiting.future.set_result(waiting.instead())
