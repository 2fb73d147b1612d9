"""Fetching a large file over a bad link: what has come stays on the disk, and a later try goes on behind it."""

import asyncio
import hashlib
import os
import re
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from targets.runtime.errors import HighwallError, plain
from twin_client.services import folder as disk
from twin_client.services.https import LinkError, Reply, address_of, exchange

_RANGE: Final = re.compile(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)")


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a download puts up with a bad link."""

    patience: Annotated[float, msgspec.Meta(gt=0, le=600)] = 30.0  # seconds of silence
    tries: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 8  # in a row that bring nothing new
    first: Annotated[float, msgspec.Meta(ge=0, le=60)] = 2.0  # seconds until the second of them; doubles
    most: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 300.0
    reserve: Annotated[int, msgspec.Meta(ge=0, le=2**40)] = (
        64 * 2**20
    )  # bytes of the disk that the outbox must find free


class Download:
    """The file at `url` on its way to `part`, to be exactly `size` bytes with this `sha256` (hex)."""

    def __init__(self, url: str, sha256: str, size: int, part: Path, link: Link):
        self._address, self._sha256, self._size, self._part, self._link = address_of(url), sha256, size, part, link
        self._mark = part.with_name(f"{part.name}.etag")

    @property
    def have(self) -> int:
        """Bytes that have come."""
        try:
            return self._part.stat().st_size
        except FileNotFoundError:
            return 0

    async def run(
        self,
        context: ssl.SSLContext,
        check: Callable[[Any], None],
        progress: Callable[[int, int], None] = lambda have, size: None,
    ) -> None:
        """Fetch what is missing, and see that it is the right file.

        `check` judges the far end as in `https.exchange`; `progress` is told bytes had and wanted. Raises
        HighwallError where it cannot be had; what has come stays for another run, unless it is wrong.
        """
        self._check_room()
        best, idle, spoilt = self.have, 0, False
        resumed = best > 0
        while True:
            if self.have == self._size:
                if await self._is_right():
                    return
                self.drop()
                # Pieces of two files may have met in one, or the power took a tail: once more, whole.
                if not resumed or spoilt:
                    raise HighwallError(f"the file at {self._address} has another SHA-256 than the command says")
                best, spoilt, resumed = 0, True, False
            try:
                await self._more(context, check, lambda have: progress(have, self._size))
            except LinkError as error:
                idle = idle + 1 if self.have <= best else 0
                best, resumed = max(best, self.have), resumed or self.have > 0
                if idle >= self._link.tries:
                    raise HighwallError(f"{error}; {self.have} of {self._size} bytes have come and are kept") from error
                await asyncio.sleep(min(self._link.first * 2 ** max(0, idle - 1), self._link.most))

    def drop(self) -> None:
        """Forget what has come."""
        for path in (self._part, self._mark):
            path.unlink(missing_ok=True)

    def _check_room(self) -> None:
        try:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            info = os.statvfs(self._part.parent)
        except OSError as error:
            raise HighwallError(f"cannot use {self._part.parent}: {error.strerror or error}") from error
        free, wanted = info.f_bavail * info.f_frsize, self._size - self.have + self._link.reserve
        if free < wanted:
            raise HighwallError(f"{self._part.parent} has {free} bytes free, and {wanted} are needed; free some space")

    async def _more(
        self, context: ssl.SSLContext, check: Callable[[Any], None], progress: Callable[[int], None]
    ) -> None:
        """Ask once for what is missing, and keep what comes."""
        if self.have > self._size:
            self.drop()
        begin, headers = self.have, {"Accept-Encoding": "identity"}
        if begin:
            headers["Range"] = f"bytes={begin}-"
            with suppress(OSError, UnicodeDecodeError):
                headers["If-Range"] = self._mark.read_text(encoding="ascii")
        asking = exchange("GET", self._address, context, check, headers=headers, patience=self._link.patience)
        async with asking as reply:
            at = self._judged(reply, begin)
            if at == 0:
                self._remember(reply.headers.get("etag", ""))
            await self._write(reply, at, progress)

    def _judged(self, reply: Reply, begin: int) -> int:
        """Where in the file the body of `reply` begins; raises where it does not belong in it."""
        if reply.status >= 500 or reply.status == 429:
            raise LinkError(f"{self._address} answers {reply.status}")
        if reply.status == 416:
            self.drop()
            raise LinkError(f"{self._address} has fewer bytes than have come; all of it again")
        if reply.status not in (200, 206):
            raise HighwallError(f"{self._address} answers {reply.status}; is the model there, for this gateway?")
        at, total = 0, reply.length
        if reply.status == 206:
            found = _RANGE.fullmatch(reply.headers.get("content-range", ""))
            if found is None or int(found[1]) != begin:
                self.drop()
                said = plain(reply.headers.get("content-range", "nothing"), 60)
                raise LinkError(f"{self._address} was asked for bytes from {begin} and sends {said}; all of it again")
            at, total = begin, None if found[2] == "*" else int(found[2])
        if total is not None and total != self._size:
            self.drop()
            raise HighwallError(f"the file at {self._address} has {total} bytes, the command says {self._size}")
        return at

    async def _write(self, reply: Reply, at: int, progress: Callable[[int], None]) -> None:
        try:
            with self._part.open("ab" if at else "wb", buffering=0) as file:
                try:
                    async for piece in reply.chunks():
                        if at + len(piece) > self._size:
                            raise HighwallError(f"the file at {self._address} has more than {self._size} bytes")
                        rest = memoryview(piece)
                        while rest:  # a disk that fills up takes a part first
                            written = file.write(rest) or 0
                            at, rest = at + written, rest[written:]
                        progress(at)
                finally:
                    os.fsync(file.fileno())
        except OSError as error:
            why = f"cannot write {self._part}: {error.strerror or error}"
            raise HighwallError(f"{why}; free some space, {self.have} bytes are kept") from error
        except LinkError:
            raise
        except HighwallError:
            self.drop()
            raise
        if at < self._size:
            raise LinkError(f"{self._address} sent {at} of {self._size} bytes")

    def _remember(self, etag: str) -> None:
        """Keep the mark of this very file, by which the next part is asked for; a weak one promises no bytes."""
        if etag.startswith('"') and etag.isascii() and etag.isprintable() and len(etag) < 200:
            disk.save(self._mark, etag.encode("ascii"))
        else:
            self._mark.unlink(missing_ok=True)

    async def _is_right(self) -> bool:
        digest = hashlib.sha256()
        with self._part.open("rb") as file:
            while piece := file.read(2**20):
                digest.update(piece)
                await asyncio.sleep(0)  # a Pi takes a second for a large one, and the readings go on meanwhile
        return digest.hexdigest() == self._sha256
