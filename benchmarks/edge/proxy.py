"""A radio between two TUN devices: IP packets come out later than they went in, and some never do.

Loss and delay are of packets, so that it is the kernel's own TCP that finds out and sends again.
"""

import contextlib
import fcntl
import os
import random
import select
import struct
import threading
import time
from collections import deque
from types import TracebackType
from typing import Final

from targets.runtime.errors import HighwallError

TUN: Final = "/dev/net/tun"
_SET_INTERFACE: Final = 0x400454CA  # TUNSETIFF of linux/if_tun.h
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_LARGEST: Final = 65535


def open_tun(name: str) -> int:
    """A descriptor whose reads and writes are the packets of a new interface `name`, gone when it is closed.

    Raises HighwallError where the kernel gives none.
    """
    try:
        descriptor = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, _SET_INTERFACE, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        raise HighwallError(f"{TUN} makes no interface: {error.strerror}; load the kernel's module tun") from error
    return descriptor


class Way:
    """One direction: a packet is lost with probability `loss`, or due `delay_s` seconds after it was put in."""

    def __init__(self, delay_s: float, loss: float, seed: int) -> None:
        self.delay_s, self.loss = delay_s, loss
        self.offered = self.lost = 0
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._dice = random.Random(seed)

    def put(self, packet: bytes, now: float) -> None:
        """Take one packet at `now`, a time.monotonic()."""
        self.offered += 1
        if self._dice.random() < self.loss:
            self.lost += 1
        else:
            self._waiting.append((now + self.delay_s, packet))

    def due(self, now: float) -> list[bytes]:
        """Every packet whose time has come, in the order in which they were put in."""
        found = []
        while self._waiting and self._waiting[0][0] <= now:
            found.append(self._waiting.popleft()[1])
        return found

    def next_s(self, now: float) -> float:
        """Seconds until the next packet is due; a second where none waits."""
        return max(0.0, self._waiting[0][0] - now) if self._waiting else 1.0


class Proxy:
    """Carries packets between two descriptors in a thread of its own until `with` ends.

    delay_s: one way; loss: share of the packets each way. Seeded, though what TCP sends when is not.
    """

    def __init__(self, ends: tuple[int, int], delay_s: float, loss: float, seed: int) -> None:
        self._ends = ends
        self.ways = (Way(delay_s, loss, 2 * seed), Way(delay_s, loss, 2 * seed + 1))
        self._wake = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="proxy", daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._wake[1])
        self._thread.join(10)
        os.close(self._wake[0])

    def _carry(self) -> None:
        one, other = self._ends
        routes = {one: (self.ways[0], other), other: (self.ways[1], one)}
        while True:
            now = time.monotonic()
            wait = min(way.next_s(now) for way in self.ways)
            ready, _, _ = select.select([*routes, self._wake[0]], [], [], wait)
            if self._wake[0] in ready:
                return
            for source, (way, target) in routes.items():
                if source in ready:
                    # read all there is at once: on a busy machine a turn may come late
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            way.put(os.read(source, _LARGEST), time.monotonic())
                for packet in way.due(time.monotonic()):
                    # the far queue is full or its interface is down, where a radio's packet is lost too
                    with contextlib.suppress(OSError):
                        os.write(target, packet)
