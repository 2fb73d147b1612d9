"""The tag's end of a serial line: a real pty, into which numbered readings are written at a steady rate."""

import contextlib
import math
import os
import threading
import time
import tty
from collections.abc import Callable
from types import TracebackType


class Line:
    """A pty whose `port` a client opens; `with` closes both ends."""

    def __init__(self) -> None:
        self._master, self._slave = os.openpty()  # our own handle on the slave keeps it open while a client restarts
        tty.setraw(self._slave)
        self.port = os.ttyname(self._slave)
        self.sent = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.finish()
        os.close(self._master)
        os.close(self._slave)

    def begin(self, encode: Callable[[int], bytes], rate: float, count: int) -> None:
        """Write readings 1 to `count` at `rate` a second, in a thread; behind its time it catches up."""
        self._thread = threading.Thread(target=self._write, args=(encode, rate, count), name="tags", daemon=True)
        self._thread.start()

    def put(self, data: bytes) -> None:
        """Write `data` now, as much of it as the line takes."""
        os.set_blocking(self._master, False)
        with contextlib.suppress(BlockingIOError):
            os.write(self._master, data)

    def send(self, data: bytes, within: float = math.inf) -> None:
        """Write all of `data`, however long nobody reads. Raises TimeoutError after `within` seconds."""
        os.set_blocking(self._master, False)
        end = time.monotonic() + within
        while data and not self._stop.is_set():
            try:
                data = data[os.write(self._master, data) :]
            except BlockingIOError:  # a UART would drop bytes, ours waits and says so by its lateness
                if time.monotonic() > end:
                    raise TimeoutError(f"nobody read the line for {within:g} s") from None
                self._stop.wait(0.01)

    def busy(self) -> bool:
        """Whether readings are still to be written."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, seconds: float) -> bool:
        """Wait for the last reading; whether it was written."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def finish(self) -> None:
        """Stop writing."""
        self._stop.set()
        self.wait(5)

    def _write(self, encode: Callable[[int], bytes], rate: float, count: int) -> None:
        began = time.monotonic()
        for number in range(1, count + 1):
            while (early := began + number / rate - time.monotonic()) > 0:
                if self._stop.wait(early):
                    return
            self.send(encode(number))
            self.sent = number
