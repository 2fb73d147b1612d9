"""The simulated mine on real things: frames into a pty, images into a folder, the truth beside them.

An agent cannot tell it from tags and a camera: it opens a port, and finds images.
"""

import fcntl
import json
import os
import random
import struct
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import msgspec

from targets.runtime.errors import HighwallError

if TYPE_CHECKING:
    from twin_client.simulation.pit import Event

NAP_S: Final = 0.2
STEADY_S: Final = 1.0  # that a port is away when it is unplugged
QUIET_S: Final = 0.2  # that a line must be empty to be read out: the kernel hands bytes on when it finds the time


class Weather(msgspec.Struct, frozen=True):
    """What goes wrong on the way."""

    lost: float = 0.0  # share of the frames that never come
    noise: float = 0.0  # share of the frames before which there is noise
    unplug: float = 0.0  # seconds between two times that the port goes away; 0: never


class Port:
    """A pty under a name of our own, which can be taken away and given back."""

    def __init__(self, link: Path):
        self._link = link
        self._master = self._slave = -1
        self.plug()

    def plug(self) -> None:
        """Make it, and the name that points to it. Raises HighwallError where that is taken."""
        if self._link.exists() and not self._link.is_symlink():
            raise HighwallError(f"{self._link} is there, and is no link; name another with --port")
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        fresh = self._link.with_name(f".{self._link.name}.new")
        try:
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(os.ttyname(self._slave))
            fresh.replace(self._link)
        except OSError as error:
            raise HighwallError(f"cannot make {self._link}: {error.strerror or error}") from error

    def unplug(self) -> None:
        """Take it away, as a cable that is pulled."""
        with suppress(OSError):
            self._link.unlink()
        os.close(self._master)
        os.close(self._slave)
        self._master = self._slave = -1

    def settle(self, patience: float = 2.0) -> None:
        """Wait until what was written is read, so long at most: it is gone with the port."""
        now = time.monotonic()
        until, empty_since = now + patience, now
        while (now := time.monotonic()) < until:
            (waiting,) = struct.unpack("i", fcntl.ioctl(self._slave, termios.FIONREAD, bytes(4)))
            if waiting:
                empty_since = now
            elif now - empty_since > QUIET_S:
                return
            time.sleep(0.01)

    def write(self, data: bytes) -> bool:
        """As much as it takes; whether that was all: a line that nobody reads is full after 4 kB."""
        with suppress(BlockingIOError):
            return os.write(self._master, data) == len(data)
        return False


@contextmanager
def port(link: Path) -> Iterator[Port]:
    """A port, gone again at the end."""
    made = Port(link)
    try:
        yield made
        made.settle()
    finally:
        made.unplug()


def play(
    events: "Iterator[Event]",
    line: Port,
    *,
    seconds: float | None,
    speed: float,
    weather: Weather,
    seed: int,
    images: Path | None = None,
    truth: IO[str] | None = None,
    capture: IO[str] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, int]:
    """Let it happen, `speed` times as fast as it would, for so many of the mine's seconds (None: until interrupted).

    `truth` has a line for each event, also for a frame that was lost; `capture` the bytes that went over the line,
    which `highwall gateway replay` plays again. Returns how many of each kind there were.
    """
    dice = random.Random(seed)
    counts = {"frames": 0, "lost": 0, "unread": 0, "noise": 0, "images": 0, "unplugged": 0}
    begun, next_minute, unplugged = time.monotonic(), 60.0, 0.0
    for event in events:
        if seconds is not None and event.time > seconds:
            break
        _sleep_until(begun + event.time / speed)
        if weather.unplug and event.time - unplugged >= weather.unplug:
            unplugged = event.time
            line.settle()
            line.unplug()
            time.sleep(STEADY_S)
            line.plug()
            counts["unplugged"] += 1
        fate = ""
        if event.frame is not None:
            counts["frames"] += 1
            data = event.frame.to_bytes()
            if dice.random() < weather.noise:
                data = dice.randbytes(dice.randrange(1, 64)) + data
                counts["noise"] += 1
            if dice.random() < weather.lost:
                fate = "lost"
            elif not line.write(data):
                fate = "unread"
            if fate:
                counts[fate] += 1
            elif capture is not None:
                _record(capture, event.time, data)
        elif event.kind == "image" and images is not None:
            _image(images, event, seed, counts["images"])
            counts["images"] += 1
        if truth is not None:
            seq = None if event.frame is None else event.frame.tag_seq
            said = {"time": event.time, "kind": event.kind, "subject": event.subject, "seq": seq, "fate": fate}
            truth.write(json.dumps(said | event.truth) + "\n")
        if event.time >= next_minute * speed:
            next_minute += 60.0
            say(f"{event.time / 60:.0f} min: {counts['frames']} frames, {counts['images']} images")
    return counts


def _image(folder: Path, event: "Event", seed: int, number: int) -> None:
    """An image, whole under its name or not there."""
    from PIL import Image

    from twin_client.simulation.pictures import wall

    pixels, _ = wall(seed, event.truth["crack"], event.truth["daylight"])
    path = folder / f"{event.subject}-{number:06d}.png"
    partial = folder / f".{path.name}.partial"
    Image.fromarray(pixels).save(partial, "PNG")
    partial.replace(path)


def _record(capture: IO[str], at: float, data: bytes) -> None:
    capture.write(json.dumps({"time": round(at, 3), "data": data.hex()}) + "\n")


def _sleep_until(moment: float) -> None:
    while (left := moment - time.monotonic()) > 0:
        time.sleep(min(left, NAP_S))
