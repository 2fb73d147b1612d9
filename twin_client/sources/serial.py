"""Tags and loggers at serial ports: one thread reads them all, keeps strangers out, and owns up to what is missing.

Nothing is dropped in silence. A frame is delivered, or it is a repetition (counted), or its tag is not paired (counted
and offered for pairing), or it never came whole: then the next frame of its tag brings a gap that names it. When the
one who takes the records is full the ports are not read; what the system's own buffers cannot hold is then a gap too.
"""

import asyncio
import os
import queue
import secrets
import select
import threading
import time
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Final

import msgspec

from twin_client.protocol.lines import LineDecoder
from twin_client.protocol.records import Gap, Reading, Record, Stamp
from twin_client.protocol.tags import Decoder, Frame, reading_of
from twin_client.sources.heard import Heard
from twin_client.sources.port import Port, PortSettings, PortState

OFFERS: Final = 100  # strangers that are remembered; the one silent for longest makes room
ROUND: Final = 0.02  # seconds between two looks at the ports, in which bytes gather into frames
IDLE: Final = 1.0  # longest wait for a byte
RETRY: Final = 0.1  # ... while a port is closed
ASK: Final = 0.05  # seconds between two looks at ports that cannot be waited on
STALLED: Final = 0.05  # seconds before records that were refused are delivered again

COUNTERS: Final = (
    "readings",  # delivered
    "gaps",  # delivered
    "late",  # readings among them whose number a gap had named, or whose boot is not the latest
    "duplicates",  # frames that were sent again, and dropped
    "conflicts",  # frames with the number of another frame but not its content, delivered: a tag that miscounts
    "unpaired",  # frames of tags that are not paired, dropped
    "overruns",  # times that records were refused, and reading stopped
)

_pack = msgspec.msgpack.Encoder()


class SerialSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The serial ports of a gateway."""

    ports: tuple[PortSettings, ...] = ()
    retry_most: Annotated[float, msgspec.Meta(ge=0.01, le=3600)] = 30.0  # seconds between attempts to open a port
    hint_after: Annotated[float, msgspec.Meta(ge=0.01, le=86_400)] = 30.0  # seconds of nothing but garbage

    def __post_init__(self) -> None:
        for what, values in (
            ("name", [port.name for port in self.ports]),
            ("url", [port.url for port in self.ports if port.url != "loop://"]),
        ):
            if twice := {value for value in values if values.count(value) > 1}:
                raise ValueError(f"ports: two have the {what} {min(twice)}; each needs its own")


class Offer(msgspec.Struct, frozen=True):
    """A tag that is heard but not paired."""

    tag: str
    port: str
    frames: int
    first: Stamp
    last: Stamp
    quantities: tuple[str, ...]  # of its last frame


class SerialSource:
    """Reads `settings.ports` in a thread of its own from `start` to `stop`.

    pairing: the tags whose records are wanted, by barcode; a dict with notes of each will do.
    deliver: called in the thread with records in order; all of them are taken, or none: then it returns False or
        raises queue.Full or asyncio.QueueFull, and is called with the same again.
    stamp: the time of now.
    marks: {tag: (boot, highest number)} of what was delivered before a restart, as `marks()` said.
    say: hears lines for people.
    """

    def __init__(
        self,
        settings: SerialSettings,
        pairing: Collection[str],
        deliver: Callable[[list[Record]], object],
        stamp: Callable[[], Stamp],
        *,
        marks: Mapping[str, tuple[int, int]] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.beat = time.monotonic()  # of the last round; a watchdog may ask whether it goes on
        self._pairing = self._served = frozenset(pairing)
        self._deliver = deliver
        self._stamp = stamp
        self._say = say
        self._heard = Heard(marks)
        self._marks = dict(marks or {})
        self._offers: dict[str, Offer] = {}
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._pending: list[Record] = []
        self._stalled = False
        self._miscounting: set[str] = set()
        boot = secrets.randbits(31)  # for loggers that count nothing, should their marks be lost: never used before
        self._ports = [
            Port(
                port,
                Decoder() if port.format == "frames" else LineDecoder(port.format, port.text, boot, marks),
                say,
                settings.retry_most,
                settings.hint_after,
            )
            for port in settings.ports
            if port.enabled
        ]
        self._stopping = threading.Event()
        self._wake_read, self._wake_write = -1, -1
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to read. Once only."""
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name="serial", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 3.0) -> None:
        """Read no more, deliver what has been read if it is taken, and close the ports; returns when that is done."""
        if self._thread is None:
            return
        self._stopping.set()
        if self._wake_write >= 0:
            os.write(self._wake_write, b"x")
        self._thread.join(timeout)
        if not self._thread.is_alive() and self._wake_write >= 0:
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_read = self._wake_write = -1

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def pair(self, tags: Collection[str]) -> None:
        """From now on records of these tags are wanted, and of no others."""
        self._pairing = frozenset(tags)

    def marks(self) -> dict[str, tuple[int, int]]:
        """Of each tag that was heard (boot, highest number), as far as delivered: for the next start."""
        return dict(self._marks)

    def offers(self) -> tuple[Offer, ...]:
        """Tags that are heard but not paired, the last heard first."""
        latest_last = self._offers.copy().values()
        return tuple(offer for offer in reversed(latest_last) if offer.tag not in self._pairing)

    def counters(self) -> dict[str, int]:
        """`COUNTERS`, and those of all ports and their decoders together."""
        total = dict(self._counters)
        for port in self._ports:
            for name, count in port.counters().items():
                total[name] = total.get(name, 0) + count
        return total

    def ports(self) -> tuple[PortState, ...]:
        """How each port fares."""
        return tuple(port.state() for port in self._ports)

    # --- in the thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                now = self.beat = time.monotonic()
                if not self._delivered():
                    self._stopping.wait(STALLED)
                    continue
                self._mind_pairing()
                for port in self._ports:
                    port.tend(now)
                    for frame in port.read(now):
                        self._take(frame, port)
                if self._delivered():
                    if all(port.dry for port in self._ports):
                        self._heard.end_overrun()
                    self._wait()
            self._delivered()
        finally:
            for port in self._ports:
                port.close()

    def _wait(self) -> None:
        """Until a port has a byte, or there is something else to do."""
        opened = [port for port in self._ports if port.device is not None]
        waited = [port.descriptor for port in opened if port.descriptor is not None]
        longest = IDLE if len(opened) == len(self._ports) else RETRY
        ready, _, _ = select.select([self._wake_read, *waited], [], [], longest if len(waited) == len(opened) else ASK)
        if ready:
            self._stopping.wait(ROUND)  # the rest of a frame comes just behind its first byte

    def _take(self, frame: Frame, port: Port) -> None:
        if frame.tag not in self._served:
            self._offer(frame, port)
            return
        # Not of the signal: two receivers that hear the same frame differ in it.
        digest = zlib.crc32(_pack.encode((frame.values, frame.window, frame.position, frame.battery)))
        verdict = self._heard.hear(frame.tag, frame.tag_boot, frame.tag_seq, digest)
        self._counters["duplicates"] += verdict.kind == "repeated"
        self._counters["late"] += verdict.kind == "late"
        self._counters["conflicts"] += verdict.kind == "conflict"
        if verdict.kind == "repeated":
            return
        if verdict.kind == "conflict" and frame.tag not in self._miscounting:
            self._miscounting.add(frame.tag)
            self._say(
                f"tag {frame.tag} gives the number {frame.tag_seq} of its boot {frame.tag_boot} to two different "
                "frames: does it count its starts? The twin may take one of them for a repetition"
            )
        at = self._stamp()
        if verdict.lost:
            self._pending.append(Gap(at, verdict.reason, lost=verdict.lost))
        self._pending.append(reading_of(frame, at))

    def _delivered(self) -> bool:
        """Whether nothing is left to deliver."""
        if not self._pending:
            return True
        try:
            taken = self._deliver(self._pending) is not False
        except (queue.Full, asyncio.QueueFull):
            taken = False
        if taken:
            for record in self._pending:
                if isinstance(record, Reading):
                    self._marks[record.tag] = self._heard.mark(record.tag)
                    self._counters["readings"] += 1
                else:
                    self._counters["gaps"] += 1
            self._pending = []
        elif not self._stalled:
            self._counters["overruns"] += 1
            self._heard.begin_overrun()
        self._stalled = not taken
        return taken

    def _mind_pairing(self) -> None:
        wanted = self._pairing
        if wanted is self._served:
            return
        for tag in self._served - wanted:  # what it sends from now on is nobody's loss
            self._heard.forget(tag)
            self._marks.pop(tag, None)
        for tag in wanted:
            self._offers.pop(tag, None)
        self._served = wanted

    def _offer(self, frame: Frame, port: Port) -> None:
        self._counters["unpaired"] += 1
        at = self._stamp()
        known = self._offers.pop(frame.tag, None)
        if len(self._offers) >= OFFERS:
            del self._offers[next(iter(self._offers))]
        first, frames = (at, 1) if known is None else (known.first, known.frames + 1)
        self._offers[frame.tag] = Offer(frame.tag, port.settings.name, frames, first, at, tuple(frame.values)[:20])
