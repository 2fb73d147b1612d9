"""What time it is on a machine without a clock of its own, and how far that may be believed.

A gateway wakes from a power cut with any time at all. Its wall time is therefore reckoned: a clock that nothing sets,
which counts from the boot, and a `base` that was learned from NTP (as the kernel tells) or else from the last time
kept on disk. Who sets the system's clock by hand moves the base forward while nothing better is known, and does not
move it at all once something is. A GNSS receiver is chrony's to read, which then tells the kernel as NTP does.
"""

import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import msgspec

from targets.runtime.errors import HighwallError
from targets.runtime.files import atomic_write
from twin_client.protocol.records import ClockQuality, Stamp

SECOND: Final = 1_000_000  # microseconds, in which this module counts

# Where truth turns out to lie behind the stamps already given, these must be passed again. Each time takes another
# lane, the wall time modulo so many microseconds, so that no two stamps of a process ever have the same.
LANES: Final = 8

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_KEPT: Final = "clock.json"
_LATEST: Final = 4_102_444_800 * SECOND  # the year 2100


class Pace(msgspec.Struct, frozen=True):
    """What the clock takes for usual, in seconds."""

    look: Annotated[float, msgspec.Meta(gt=0, le=60)] = 1.0  # between two looks at the system's clock
    keep: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 60.0  # between two savings of the time
    agree: Annotated[float, msgspec.Meta(gt=0, le=60)] = 2.0  # set back by less, it stands still instead


@dataclass(frozen=True)
class Sight:
    """What the machine shows at one moment."""

    wall: int  # microseconds, the system's clock
    mono: int  # microseconds since the boot
    synchronised: bool  # whether NTP holds the system's clock, as the kernel says


@dataclass(frozen=True)
class Belief:
    """What is believed at one moment of one boot; times in microseconds."""

    base: int  # wall minus mono
    quality: ClockQuality = ClockQuality.LOST


def begin(sight: Sight, floor: int) -> Belief:
    """At the start of a boot of which nothing is known: the system's clock, but never behind `floor`."""
    return reckon(Belief(max(sight.wall, floor) - sight.mono), sight)


def reckon(belief: Belief, sight: Sight) -> Belief:
    """Go on to what is seen now."""
    if sight.synchronised:
        return replace(belief, base=sight.wall - sight.mono, quality=ClockQuality.NETWORK)
    if belief.quality != ClockQuality.LOST:
        return replace(belief, quality=ClockQuality.HELD)
    return replace(belief, base=max(belief.base, sight.wall - sight.mono))


class Kept(msgspec.Struct, frozen=True):
    """What lies on disk between two starts."""

    wall: int  # the last time that was believed, UTC microseconds
    mono: int
    boot: str
    quality: int  # of ClockQuality
    utc: str = ""  # the same for a person who reads the file


class Clock:
    """The gateway's one source of stamps; may be used from any thread. `stamp` never touches the disk: call `keep`."""

    def __init__(
        self,
        folder: Path,
        pace: Pace | None = None,
        *,
        look: Callable[[], Sight] | None = None,
        mono: Callable[[], int] | None = None,
        boot: str | None = None,
    ):
        self._folder, self._pace = Path(folder), pace or Pace()
        self._look, self._mono = look or look_at_the_system, mono or since_boot
        self._boot = boot or _BOOT_ID.read_text(encoding="ascii").strip()
        self._lock = threading.Lock()
        sight = self._look()
        kept = self._read()
        if kept and kept.boot == self._boot and kept.mono <= sight.mono:  # the agent was restarted, not the machine
            held = min(kept.quality, ClockQuality.HELD)
            self._belief = reckon(Belief(kept.wall - kept.mono, ClockQuality(held)), sight)
        else:
            self._belief = begin(sight, kept.wall if kept else 0)
        self._looked = sight.mono
        self._saved: int | None = None
        self._last = self._lane = 0

    def stamp(self) -> Stamp:
        """Now. No two stamps have the same wall time; it goes back only where NTP says that it was ahead."""
        with self._lock:
            mono = self._mono()
            if not 0 <= mono - self._looked < self._pace.look * SECOND:
                self._see()
            believed = self._belief.base + mono
            if believed < self._last - self._pace.agree * SECOND:
                self._lane = (self._lane + 1) % LANES
                self._last = 0
            wall = believed - believed % LANES + self._lane
            if wall <= self._last:
                wall = self._last + LANES
            self._last = wall
            return Stamp(wall, mono, self._boot, self._belief.quality)

    def keep(self, now: bool = False) -> bool:
        """Save the time where a minute has passed, or `now`; whether it was: the disk may be full."""
        with self._lock:
            mono = self._mono()
            due = self._saved is None or not 0 <= mono - self._saved < self._pace.keep * SECOND
            if not (due or now):
                return False
            self._see()
            wall = self._belief.base + mono
            self._saved = mono
            utc = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(wall / SECOND))
            kept = Kept(wall, mono, self._boot, int(self._belief.quality), utc)
        try:
            with atomic_write(self._folder / _KEPT) as partial:
                partial.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n")
        except HighwallError:
            return False
        return True

    def _see(self) -> None:
        sight = self._look()
        self._looked = sight.mono
        self._belief = reckon(self._belief, sight)

    def _read(self) -> Kept | None:
        try:
            kept = msgspec.json.decode((self._folder / _KEPT).read_bytes(), type=Kept)
        except (OSError, msgspec.MsgspecError, ValueError):
            return None
        return kept if 0 < kept.wall <= _LATEST else None


def since_boot() -> int:
    """Microseconds since the boot, sleep included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def look_at_the_system() -> Sight:
    """The system's clock, and whether NTP holds it. Who sets it by hand makes the kernel forget that it was held."""
    wall, mono = time.time_ns() // 1000, since_boot()
    return Sight(wall, mono, kernel_is_synchronised())  # asked last: a clock set in between is not taken for held


def kernel_is_synchronised() -> bool:
    """Whether something keeps the system's clock right, as chrony, ntpd and systemd-timesyncd tell the kernel."""
    timex = ask_the_kernel()
    return timex is not None and not timex.status & _STA_UNSYNC


def ask_the_kernel() -> "Timex | None":
    """How the kernel keeps its clock, adjtimex(2), without changing anything; None: it does not say."""
    timex = Timex()
    return None if _adjtimex is None or _adjtimex(ctypes.byref(timex)) < 0 else timex


class Timex(ctypes.Structure):
    """The head of the C library's struct timex, and room for the rest of it."""

    _fields_ = [
        ("modes", ctypes.c_uint),  # 0: only ask
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("rest", ctypes.c_long * 40),
    ]


_STA_UNSYNC: Final = 0x40
_adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
