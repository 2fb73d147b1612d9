"""One serial port that is opened again and again for years, whatever is at its other end; garbage in it is counted."""

import io
import math
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Final, Literal, Protocol

import msgspec
import serial  # type: ignore[import-untyped]

from targets.runtime.errors import plain
from twin_client.protocol.lines import Text
from twin_client.protocol.tags import Frame

BLOCK: Final = 65_536  # bytes read from a port before the others have their turn
STEADY: Final = 2.0  # seconds that a port must stay open, though silent, to count as back
GARBAGE: Final = 64  # bytes without a frame that are worth a hint
FAULTS: Final = (OSError, ValueError, TypeError, termios.error)  # that pyserial raises when a device goes

SCHEMES: Final = ("socket", "rfc2217", "hwgrep", "loop")
Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}\Z")]


class PortSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where tags or a logger are heard."""

    name: Name
    url: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]  # a device file, or socket:// rfc2217:// hwgrep://
    enabled: bool = True
    baud: Annotated[int, msgspec.Meta(ge=300, le=4_000_000)] = 115_200
    format: Literal["frames", "json", "csv"] = "frames"
    text: Text = Text()  # how its lines are read, where they are not frames

    def __post_init__(self) -> None:
        scheme, colon, _ = self.url.partition("://")
        if (scheme not in SCHEMES) if colon else ("/" not in self.url):
            forms = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise ValueError(f"url: {self.url!a} is neither a device file such as /dev/ttyUSB0 nor one of {forms}")
        if self.format == "csv" and not self.text.columns:
            raise ValueError("text.columns: CSV cannot be read without")


class Decoder(Protocol):
    """What finds frames or lines among the bytes."""

    counters: dict[str, int]

    def feed(self, data: bytes) -> list[Frame]: ...

    def reset(self) -> None: ...


class PortState(msgspec.Struct, frozen=True):
    """How a port fares, for people."""

    name: str
    url: str
    open: bool
    problem: str  # why it is not, in one line
    counters: dict[str, int]


class Port:
    """One port. All but `state` is called by the one thread that serves the ports; times are seconds, monotonic.

    `say` hears one line when the port is lost, one when it is back, and one when nothing but garbage comes.
    """

    def __init__(
        self,
        settings: PortSettings,
        decoder: Decoder,
        say: Callable[[str], None],
        retry_most: float = 30.0,
        hint_after: float = 30.0,
    ) -> None:
        self.settings = settings
        self.decoder = decoder
        self.device: serial.SerialBase | None = None
        self.descriptor: int | None = None  # to be waited on; None: has to be asked
        self.problem = ""
        self.dry = True  # the last read left nothing behind
        self.bytes = self.opened = self.lost = 0
        self._say = say
        self._retry_first = min(0.5, retry_most)
        self._retry_most = retry_most
        self._hint_after = hint_after
        self._delay = self._retry_first
        self._due = -math.inf  # when to try again
        self._since = 0.0  # when it was opened
        self._steady = False  # since then it has proved to work
        self._clean = (0.0, 0)  # when the last frame came or the port was opened, and `bytes` then
        self._hinted = False

    def tend(self, now: float) -> None:
        """Open the port if it is closed and due; notice that it stays open, and that it brings only garbage."""
        if self.device is None:
            if now >= self._due:
                self._open(now)
            return
        if not self._steady and now - self._since >= STEADY:
            self._works()
        since, before = self._clean
        if not self._hinted and now - since >= self._hint_after and self.bytes - before >= GARBAGE:
            self._hinted = True
            kind = {"frames": "a tag frame", "json": "a JSON line", "csv": "a CSV line"}[self.settings.format]
            self._say(
                f"{self._where}: nothing but garbage for {now - since:.0f} s at {self.settings.baud} baud, "
                f"{self.bytes - before} bytes and not {kind} among them: wrong rate or format, or a bad wire?"
            )

    def read(self, now: float) -> list[Frame]:
        """The frames that have come by now, up to `BLOCK` bytes. A port that fails is closed, and tried again later."""
        if self.device is None:
            return []
        data = bytearray()
        fault: Exception | None = None
        try:
            while len(data) < BLOCK:
                size = BLOCK if self.descriptor is not None else self.device.in_waiting or 1
                some = self.device.read(size)
                data += some
                if len(some) < size and (not some or self.descriptor is None):
                    break
        except Exception as error:  # whatever it is, the thread serves the other ports too
            fault = error
        self.dry = len(data) < BLOCK
        frames = []
        if data:
            self.bytes += len(data)
            self._works()
            frames = self.decoder.feed(bytes(data))
        if frames:
            self._clean = now, self.bytes
            self._hinted = False
        if fault is not None:
            self._fail(fault, now)
        return frames

    def close(self) -> None:
        """Give the device back."""
        device, self.device, self.descriptor, self.dry = self.device, None, None, True
        if device is not None:
            with suppress(Exception):  # it may be gone already
                device.close()
            self.decoder.reset()

    def counters(self) -> dict[str, int]:
        """What came, what of it was thrown away, and how often the port was opened and lost."""
        return {"bytes": self.bytes, "opened": self.opened, "lost": self.lost, **self.decoder.counters}

    def state(self) -> PortState:
        """As of now."""
        return PortState(self.settings.name, self.settings.url, self.device is not None, self.problem, self.counters())

    @property
    def _where(self) -> str:
        return f"serial port {self.settings.name} ({self.settings.url})"

    def _open(self, now: float) -> None:
        try:
            # exclusive: a second reader of the same device would get half of the bytes, and so break all frames
            self.device = serial.serial_for_url(
                self.settings.url, baudrate=self.settings.baud, timeout=0, exclusive=True, do_not_open=True
            )
            self.device.open()
            try:
                self.descriptor = self.device.fileno()
            except io.UnsupportedOperation:
                self.descriptor = None
                self.device.timeout = 0.005  # these give one byte a call when they may not wait at all
        except Exception as error:  # such as re.error and KeyError, by which pyserial says that it dislikes a url
            self._fail(error, now)
            return
        self.opened += 1
        self._steady = False
        self._since = now
        self._clean = now, self.bytes
        self._hinted = False

    def _works(self) -> None:
        self._steady = True
        self._delay = self._retry_first
        if self.problem:
            self.problem = ""
            self._say(f"{self._where}: back")

    def _fail(self, error: Exception, now: float) -> None:
        """Close, and try again: after half a second at first, then after twice as long each time."""
        was_open = self.descriptor is not None or (self.device is not None and self.device.is_open)
        self.close()
        self.lost += was_open
        self._due = now + self._delay
        self._delay = min(2 * self._delay, self._retry_most)
        if not self.problem:
            kind, words = type(error).__name__, str(error)
            self.problem = plain(words if words and isinstance(error, FAULTS) else f"{kind}: {words}".rstrip(": "), 200)
            verb = "lost" if was_open else "cannot be opened"
            self._say(f"{self._where}: {verb}: {self.problem}. It is tried again until it is there")
