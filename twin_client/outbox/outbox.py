"""The outbox itself: appended to, acknowledged, and kept within its limits."""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from twin_client.outbox.commit import Transaction
from twin_client.outbox.keeper import Keeper, Limits, Reborn
from twin_client.outbox.retention import Evictor
from twin_client.outbox.tables import PAGE, epoch_of, id_of, lowest, used_pages
from twin_client.protocol.ranges import Range, size, union
from twin_client.protocol.records import Stamp

T = TypeVar("T")

_LEAST: Final = 256  # pages an outbox may have however short of room the disk is
_SHRINK: Final = 256  # pages given back to the disk at a time


class Outbox(Keeper):
    """See the module. `counters` grow from the start of the agent, for the health record."""

    _hand = 0  # where thinning goes on

    @classmethod
    def open(
        cls,
        folder: Path,
        gateway: str,
        limits: Limits | None = None,
        *,
        stamp: Callable[[], Stamp],
        say: Callable[[str], None] = print,
    ) -> "Outbox":
        """The outbox in `folder`, new where there is none, mended where it is damaged.

        Raises OutboxFull where the disk cannot be written (the records are then best held in memory until it can),
        HighwallError where another agent has it.
        """
        outbox = cls(Path(folder), gateway, limits or Limits(), stamp, say)
        try:
            outbox._ready()
        except BaseException:
            outbox.close()
            raise
        return outbox

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """What is appended and remembered in this block is on the disk when it ends, or nothing where it raises.

        Raises OutboxFull where the disk does not take it, and Reborn where the file was found damaged.
        """
        self._idle()
        with self._translated():
            self._make_room()
            t = self._begin()
        try:
            yield t
        except BaseException as error:
            self._undo(t)
            if error is not t.failure:
                raise
            with self._translated():
                raise
        with self._translated():
            self._commit(t)
        self._save_known_if_due()

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in a transaction; once more, with new numbers, where a damaged file makes that necessary."""
        try:
            with self.transaction() as t:
                return work(t)
        except Reborn:
            with self.transaction() as t:
                return work(t)

    def acknowledge(self, epoch: str, ranges: Iterable[Range]) -> int:
        """The twin has these entries for good: forget them. Returns how many rows went.

        An epoch that is not known here and numbers that it never gave are ignored, and counted.
        """
        self._idle()
        named = union((first, last) for first, last in ranges if first <= last)

        def work(base: sqlite3.Connection) -> int:
            number, last = epoch_of(base, epoch) or (0, 0)
            given = [(max(first, 1), min(end, last)) for first, end in named if end >= 1 and first <= last]
            self.counters["unknown_acknowledged"] += size(named) - size(given)
            if not given:
                return 0
            with self._change():
                gone = 0
                for first, end in given:
                    query = "DELETE FROM entry WHERE id BETWEEN ? AND ?"
                    gone += base.execute(query, (id_of(number, first), id_of(number, end))).rowcount
                base.execute("UPDATE epoch SET rows = rows - ? WHERE number = ?", (gone, number))
            oldest = lowest(base, number)
            self._known.epochs[number].first = oldest or last + 1
            if oldest is None and number != self._number:
                base.execute("DELETE FROM epoch WHERE number = ?", (number,))
            self._known.epochs = {
                each: born
                for each, born in self._known.epochs.items()
                if born.first <= born.last or each == self._number
            }
            self._shrink(base)
            self.counters["acknowledged"] += gone
            return gone

        return self._ask(work)

    def _make_room(self) -> None:
        """Give up what is of least worth where the file has reached its limit, or may grow no more."""
        base = self._ready()
        room = self._limits.cap // PAGE
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize < self._limits.spare:
            (pages,) = base.execute("PRAGMA page_count").fetchone()
            room = min(room, max(pages, _LEAST))
        slack = max(4, min(room // 32, 256))
        if used_pages(base) <= room - slack:
            return
        with self._change() as t:
            evictor = Evictor(base, self._hand)
            found = [(reason, losses, "merged") for reason, losses in evictor.merge_gaps().items()]
            found.append(("evicted", evictor.free(room - 2 * slack), ""))
            t.append(gap for reason, losses, text in found for gap in losses.gaps(self._stamp(), reason, text))
        self._hand = evictor.hand
        self.counters["thinned"] += evictor.thinned
        self.counters["evicted"] += evictor.evicted

    def _shrink(self, base: sqlite3.Connection) -> None:
        """After a long outage most of the file is empty: give that back, a little at a time."""
        (free,) = base.execute("PRAGMA freelist_count").fetchone()
        if free > 2 * _SHRINK and free > used_pages(base):
            base.executescript(f"PRAGMA incremental_vacuum({_SHRINK})")  # `execute` would stop after the first page
