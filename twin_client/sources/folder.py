"""A folder in which others put images, such as a network camera's or one of tiles: each becomes one capture.

A file is taken up when two looks found it of the same size and time. It is known by name, time and size, so
that a camera which writes over the same file again and again is understood, and so that a restart neither repeats an
image nor skips one.
"""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from targets.runtime.errors import HighwallError, plain
from twin_client.protocol.orders import Name
from twin_client.protocol.records import Stamp
from twin_client.sources.camera import Capture, Count, Hours, packed, unpacked

SLICE: Final = 64  # names read before others have their turn
KEY: Final = 8  # bytes
COUNTERS: Final = ("captured", "bad", "outside", "kept")

After = Literal["leave", "remove", "move"]
Suffix = Annotated[str, msgspec.Meta(pattern=r"\A\.[a-z0-9]{1,5}\Z")]


class FolderSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A folder of images. Names that begin with a dot are not looked at, nor are folders in it."""

    name: Name
    folder: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    enabled: bool = True
    suffixes: Annotated[tuple[Suffix, ...], msgspec.Meta(min_length=1)] = (
        ".jpg",
        ".jpeg",
        ".png",
        ".tif",
        ".tiff",
        ".npy",
    )
    poll: Annotated[float, msgspec.Meta(ge=0.05, le=3600)] = 2.0  # seconds between two looks
    period: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 0.0  # seconds from image to image, at least
    patience: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 60.0  # seconds in which an empty file may be filled
    every: bool = True  # images wait for one another and all are judged; False: later ones take the place of earlier
    done: After = "leave"  # what becomes of an image that is judged; it moves to `done` in the folder
    bad: After = "leave"  # ... and of one that cannot be read, which moves to `bad`
    remember: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 2000  # files, of 8 bytes a mark; see `FolderSource`
    hours: Hours = Hours()


class _File(msgspec.Struct, frozen=True):
    """A file as a look found it."""

    name: str
    time: int  # of its last change, nanoseconds since 1970
    size: int
    key: bytes

    @property
    def order(self) -> tuple[int, bytes]:
        """The oldest first; an archive may have given all of its files one time."""
        return self.time, os.fsencode(self.name)


class FolderSource:
    """The images of a folder. Not for several threads. The folder may come and go; one that hangs, as a network's can,
    hangs the agent.

    `now` gives the time, `say` hears one line when the folder cannot be read and one when it can again, `mark` is what
    `done` returned last before a restart. Of more files than `remember` that are left where they are, only the latest
    are known one by one: then a file that is put there with an older time than theirs is taken for one that was seen.
    """

    def __init__(
        self, settings: FolderSettings, now: Callable[[], Stamp], say: Callable[[str], None], mark: bytes = b""
    ) -> None:
        before = unpacked(mark)
        self.settings, self._now, self._say = settings, now, say
        self._folder = Path(settings.folder)
        self._count = Count(before)
        self.lost = self._count.lost
        self.problem = ""
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._floor = before.floor
        self._seen = {before.seen[at : at + KEY]: None for at in range(0, len(before.seen), KEY)}  # in that order
        self._out: dict[int, bytes] = {}  # by number: given out and not done with
        self._bad: set[int] = set()  # done with, and not tidied yet
        self._there: dict[_File, float] = {}  # as of the last look, and since when
        self._settled = asyncio.Event()
        self._put = True  # the last file that was done with could be put away

    async def captures(self) -> AsyncIterator[Capture]:
        """Every new image, the oldest first, while the hours say so. Without end; close it to stop."""
        loop = asyncio.get_running_loop()
        while True:
            for file in await self._look():
                if self._now_at(file.name) != file or self._is_known(file):
                    continue  # changed, gone or captured by request since
                if not self.settings.hours.open(self._now()):
                    self.counters["outside"] += 1
                    self._remember(file.key)
                    continue
                begun = loop.time()
                capture = self._give(file)
                yield capture
                while self.settings.every and capture.number in self._out:  # what settles may be one by request
                    self._settled.clear()
                    await self._settled.wait()
                await asyncio.sleep(max(0.0, begun + self.settings.period - loop.time()))
            await asyncio.sleep(self.settings.poll)

    async def capture(self) -> Capture:
        """The newest image there is, judged before or not, whatever the hours. Raises HighwallError where none is."""
        await self._look()
        filled = [file for file in self._there if file.size]
        if self.problem or not filled:
            raise HighwallError(f"there is no image in {self._folder}")
        whole = [file for file in filled if file.key in self._seen or self._age(file) >= self.settings.poll / 2]
        return self._give(max(whole or filled, key=lambda file: file.order))

    def done(self, capture: Capture, bad: bool = False) -> bytes:
        """The capture is judged or given up, `bad` if it could not be read: the mark to be kept with its record.

        A bad one that is not there any more was not bad but out of reach, and is taken up when it is there again.
        """
        self._count.done(capture.number)
        self._out.pop(capture.number, None)
        if not bad or self._now_at(capture.path.name) is not None:
            self._remember(capture.key)
            if bad:
                self.counters["bad"] += 1
                self._bad.add(capture.number)
        self._settled.set()
        return self.mark()

    def mark(self) -> bytes:
        """As `done` gives it, for who goes on from here; what is given out and not done with is lost to it."""
        return packed(msgspec.structs.replace(self._count.mark(), floor=self._floor, seen=b"".join(self._seen)))

    def drop(self, capture: Capture) -> None:
        """It will have no record from here: the image stays, and is taken up by who goes on."""

    def tidy(self, capture: Capture) -> None:
        """Its record is on disk: leave, remove or move the image, as the settings say, unless it is another by now."""
        bad = capture.number in self._bad
        self._bad.discard(capture.number)
        after, place = (self.settings.bad, "bad") if bad else (self.settings.done, "done")
        file = self._now_at(capture.path.name)
        if after == "leave" or file is None or file.key != capture.key:
            return
        try:
            if after == "remove":
                capture.path.unlink()
            else:
                target = self._folder / place / capture.path.name
                target.parent.mkdir(exist_ok=True)
                if target.exists():
                    target = target.with_name(f"{target.stem}.{capture.number}{target.suffix}")
                capture.path.rename(target)
        except OSError as error:
            self.counters["kept"] += 1
            if self._put:
                self._say(f"{self._where}: cannot {after} images that are {place}: {error.strerror or error}")
            self._put = False
        else:
            self._put = True

    @property
    def _where(self) -> str:
        return plain(f"camera {self.settings.name} ({self._folder})")

    def _give(self, file: _File) -> Capture:
        number = self._count.take()
        self._out[number] = file.key
        self.counters["captured"] += 1
        return Capture(self.settings.name, number, self._now(), self._folder / file.name, file.key)

    async def _look(self) -> list[_File]:
        """The files that are new and whole, the oldest first."""
        there: dict[_File, float] = {}
        before = {file.name: file for file in self._there}
        now = asyncio.get_running_loop().time()
        try:
            with os.scandir(self._folder) as entries:
                for count, entry in enumerate(entries, 1):
                    if count % SLICE == 0:
                        await asyncio.sleep(0)
                    if not self._is_image(entry.name):
                        continue
                    with suppress(OSError):  # gone while we look, or a link to nowhere
                        file = _file(entry.name, entry.stat(), before.get(entry.name))
                        if file is not None:
                            there[file] = self._there.get(file, now)
        except OSError as error:
            if not self.problem:
                why = plain(error.strerror or str(error))
                self._say(f"{self._where}: cannot be read: {why}. It is tried again until it can")
            self.problem = str(error)
            return []
        if self.problem:
            self._say(f"{self._where}: can be read again")
            self.problem = ""
        self._there = there
        new = [file for file in there if file.order > self._floor and not self._is_known(file)]
        whole, filled = self.settings.poll / 2, self.settings.patience
        ready = [file for file in new if self._age(file) >= (whole if file.size else max(whole, filled))]
        return sorted(ready, key=lambda file: file.order)

    def _is_known(self, file: _File) -> bool:
        """Whether it was done with, or is given out."""
        return file.key in self._seen or file.key in self._out.values()

    def _age(self, file: _File) -> float:
        """Seconds since a look first found it as it is."""
        return asyncio.get_running_loop().time() - self._there[file]

    def _is_image(self, name: str) -> bool:
        return not name.startswith(".") and name.lower().endswith(self.settings.suffixes)

    def _now_at(self, name: str) -> _File | None:
        """The file of this name; None where there is none."""
        try:
            return _file(name, (self._folder / name).stat())
        except OSError:
            return None

    def _remember(self, key: bytes) -> None:
        self._seen[key] = None
        spare = len(self._seen) - self.settings.remember
        if spare <= 0:
            return
        orders = {file.key: file.order for file in self._there}
        # Those that are gone first, then the oldest: the newest may have been captured by request, long before others.
        for old in sorted(self._seen, key=lambda key: orders.get(key, (-1, b"")))[:spare]:
            self._floor = max(self._floor, orders.get(old, self._floor))
            del self._seen[old]


def _file(name: str, found: os.stat_result, before: _File | None = None) -> _File | None:
    """What was found under a name, None where it is no file; `before`, if it is still the same, spares its key."""
    if not stat.S_ISREG(found.st_mode):
        return None
    if before is not None and (before.time, before.size) == (found.st_mtime_ns, found.st_size):
        return before
    what = f"{found.st_mtime_ns} {found.st_size} ".encode() + os.fsencode(name)
    return _File(name, found.st_mtime_ns, found.st_size, blake2b(what, digest_size=KEY).digest())
