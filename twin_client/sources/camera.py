"""Cameras: when an image is wanted, the command that takes one, and the count that numbers them across restarts."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

import msgspec

from targets.runtime.errors import HighwallError, plain
from twin_client.protocol.orders import Name
from twin_client.protocol.records import ClockQuality, Stamp
from twin_client.protocol.site import TimeWindow

LOOK: Final = 0.05  # seconds between two looks at a command that runs
MOURN: Final = 5.0  # seconds that a killed command has to go; one that a driver holds may never
SAID: Final = 2000  # bytes kept of what a command says last

_DAYS: Final = ("thu", "fri", "sat", "sun", "mon", "tue", "wed")  # 1970 began on a Thursday
_DAY: Final = 86_400

Minutes = Annotated[int, msgspec.Meta(ge=-840, le=840)]


class Hours(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When images are wanted, by the site's clock; past midnight where a window's end is not later than its begin."""

    windows: tuple[TimeWindow, ...] = ()  # none: always
    utc_offset: Minutes = 0  # minutes east

    def open(self, at: Stamp) -> bool:
        """Whether images are wanted at `at`; always, while nothing has set the clock: better one too many than none."""
        if not self.windows or at.clock is ClockQuality.LOST:
            return True
        day, second = divmod(at.wall // 1_000_000 + self.utc_offset * 60, _DAY)
        return any(_within(window, day, second) for window in self.windows)


class Capture(msgspec.Struct, frozen=True):
    """An image that was taken, in a file. `number` is the camera's own count and never used twice."""

    camera: str
    number: int
    at: Stamp  # when the gateway had it
    path: Path
    key: bytes = b""  # of the file, for who took it


class CommandSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A camera that a command takes images with, such as `["rpicam-still", "-n", "-o", "{out}"]`."""

    name: Name
    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=100)]  # no shell reads it
    enabled: bool = True
    period: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 60.0  # seconds from image to image
    limit: Annotated[float, msgspec.Meta(ge=0.1, le=600)] = 20.0  # seconds that the command may take
    suffix: Annotated[str, msgspec.Meta(pattern=r"\A\.[a-z0-9]{1,5}\Z")] = ".jpg"  # of the file it writes
    folder: str = ""  # for its images until they are judged; empty: the system's own, which spares the card
    hours: Hours = Hours()

    def __post_init__(self) -> None:
        if not any("{out}" in word for word in self.command):
            raise ValueError("command: {out} is not in it, so it cannot be told where to put the image")
        if not self.command[0] or any("\0" in word for word in self.command):
            raise ValueError("command: the first word is empty, or one has a null byte")


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """How far a camera has come, to be kept where its records are, in one transaction with them."""

    next: int = 0  # number
    open: tuple[int, ...] = ()  # numbers given out and not done with
    floor: tuple[int, bytes] = (0, b"")  # files of this time and name, and those before, are done with
    seen: bytes = b""  # keys of others that are


class Count:
    """Numbers captures. `lost` are those that were given out before a restart and will not come."""

    def __init__(self, mark: Mark) -> None:
        self.next, self.lost = mark.next, mark.open
        self._open: dict[int, None] = {}

    def take(self) -> int:
        """The next number."""
        number, self.next = self.next, self.next + 1
        self._open[number] = None
        return number

    def done(self, number: int) -> None:
        """It has its record."""
        self._open.pop(number, None)

    def mark(self) -> Mark:
        """As of now."""
        return Mark(self.next, tuple(self._open))


class CommandSource:
    """A camera behind a command. Not for several threads; a command that runs keeps nothing else waiting.

    `now` gives the time, `say` hears one line when the camera fails and one when it is back, `mark` is what `done`
    returned last before a restart.
    """

    def __init__(
        self, settings: CommandSettings, now: Callable[[], Stamp], say: Callable[[str], None], mark: bytes = b""
    ) -> None:
        self.settings, self._now, self._say = settings, now, say
        self._count = Count(unpacked(mark))
        self.lost = self._count.lost
        self.problem = ""
        self.counters = dict.fromkeys(("captured", "failed", "killed"), 0)
        self._one = asyncio.Lock()
        self._stuck: subprocess.Popen[bytes] | None = None
        self._folder = Path(settings.folder or tempfile.gettempdir())
        self._prefix = f"highwall-{settings.name}-"
        self._sweep()

    async def captures(self) -> AsyncIterator[Capture]:
        """An image each period, while the hours say so. Without end; close it to stop."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            due = max(due + self.settings.period, loop.time())  # those that were due meanwhile are not made up for
            if self.settings.hours.open(self._now()):
                with suppress(HighwallError):  # counted and said
                    yield await self.capture()

    async def capture(self) -> Capture:
        """Take an image now, whatever the hours. Raises HighwallError where the camera gives none."""
        async with self._one:
            try:
                path = await self._take()
            except HighwallError as error:
                self.counters["failed"] += 1
                if not self.problem:
                    self._say(f"camera {self.settings.name}: {error}. It is tried again until it works")
                self.problem = str(error)
                raise
            if self.problem:
                self._say(f"camera {self.settings.name}: works again")
                self.problem = ""
            self.counters["captured"] += 1
            return Capture(self.settings.name, self._count.take(), self._now(), path)

    def done(self, capture: Capture, bad: bool = False) -> bytes:
        """The capture is judged or given up: the mark to be kept together with its record."""
        self._count.done(capture.number)
        return self.mark()

    def mark(self) -> bytes:
        """As `done` gives it, for who goes on from here; what is given out and not done with is lost to it."""
        return packed(self._count.mark())

    def drop(self, capture: Capture) -> None:
        """It will have no record from here: the image goes."""
        self.tidy(capture)

    def tidy(self, capture: Capture) -> None:
        """Its record is on disk: the image goes."""
        shutil.rmtree(capture.path.parent, ignore_errors=True)

    async def _take(self) -> Path:
        if self._stuck is not None:
            if self._stuck.poll() is None:
                raise HighwallError(f"{self.settings.command[0]} was killed and does not go; is its driver stuck?")
            self._stuck = None
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{self._prefix}{os.getpid()}-", dir=self._folder))
        except OSError as error:
            raise HighwallError(f"there is no place for its image: {error.strerror or error}") from error
        path = folder / f"image{self.settings.suffix}"  # not there yet: some commands do not overwrite
        try:
            await self._run([word.replace("{out}", str(path)) for word in self.settings.command])
            if not path.is_file() or path.stat().st_size == 0:
                raise HighwallError(f"{self.settings.command[0]} ended well but wrote no image to {{out}}")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return path

    def _sweep(self) -> None:
        """Remove what an agent that was killed left behind; that of one which lives may be of another gateway."""
        for folder in self._folder.glob(f"{self._prefix}*"):
            pid = folder.name.removeprefix(self._prefix).partition("-")[0]
            if pid.isdigit() and not Path("/proc", pid).exists():
                shutil.rmtree(folder, ignore_errors=True)

    async def _run(self, command: Sequence[str]) -> None:
        """Run it to its end, and look after it without a thread; its whole process group is killed at the limit."""
        loop = asyncio.get_running_loop()
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        said = b""
        process: subprocess.Popen[bytes] | None = None
        try:
            os.set_blocking(write, True)  # the command's own end
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=write,
                    start_new_session=True,
                )
            except OSError as error:
                raise HighwallError(f"cannot run {command[0]}: {error.strerror or error}") from error
            until = loop.time() + self.settings.limit
            while process.poll() is None:
                said = (said + _drained(read))[-SAID:]
                if loop.time() >= until:
                    self.counters["killed"] += 1
                    raise HighwallError(f"{command[0]} did not end within {self.settings.limit:g} s")
                await asyncio.sleep(LOOK)
            if process.returncode:
                said = (said + _drained(read))[-SAID:]
                last = (said.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]
                raise HighwallError(f"{command[0]} ended with {process.returncode}: {plain(last, 200)}")
        finally:
            os.close(read)
            os.close(write)
            if process is not None:
                await self._end(process)

    async def _end(self, process: "subprocess.Popen[bytes]") -> None:
        """Leave nothing of it behind: what the command itself started ends with it."""
        with suppress(OSError):  # the whole group may be gone
            os.killpg(process.pid, signal.SIGKILL)
        loop = asyncio.get_running_loop()
        until = loop.time() + MOURN
        try:
            while process.poll() is None and loop.time() < until:
                await asyncio.sleep(LOOK)
        finally:
            if process.poll() is None:
                self._stuck = process


def packed(mark: Mark) -> bytes:
    """A mark as bytes."""
    return msgspec.msgpack.encode(mark)


def unpacked(data: bytes) -> Mark:
    """The mark in `data`; a camera without one begins anew. Raises HighwallError where it is none."""
    if not data:
        return Mark()
    try:
        return msgspec.msgpack.decode(data, type=Mark)
    except (msgspec.MsgspecError, ValueError) as error:
        raise HighwallError(f"a camera's mark is damaged: {error}") from error


def _within(window: TimeWindow, day: int, second: int) -> bool:
    """Whether `second` of `day` (since 1970) lies in a window that began on that day or the one before."""
    begin, end = (60 * (60 * int(clock[:2]) + int(clock[3:])) for clock in (window.begin, window.end))
    length = (end - begin) % _DAY or _DAY
    for days_ago in (0, 1):
        since = second + days_ago * _DAY - begin
        if 0 <= since < length and (not window.days or _DAYS[(day - days_ago) % 7] in window.days):
            return True
    return False


def _drained(descriptor: int) -> bytes:
    with suppress(BlockingIOError):
        return os.read(descriptor, 65_536)
    return b""
