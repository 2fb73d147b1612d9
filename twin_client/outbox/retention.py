"""Making room in a full outbox by value: raw windows first, then every second old reading; alarms last, Gaps never."""

import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from twin_client.outbox.losses import Losses
from twin_client.outbox.tables import (
    Damaged,
    Kind,
    Row,
    is_sealed,
    kind_of,
    number_of,
    sealed,
    seq_of,
    span,
    used_pages,
)
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.ranges import Range
from twin_client.protocol.records import Gap, Prediction, Reading, Reason, Record, pack, record_of

_CHUNK_ROWS: Final = 256
_CHUNK_BYTES: Final = 1 << 20  # in memory at a time, unless one row is larger
_ROUNDS: Final = 3  # of thinning the older half of the readings, before anything of another kind goes
MANY_GAPS: Final = 32  # rows; more are merged


def lighter(record: Record) -> Record:
    """The record without what takes the room: it keeps its number, so nothing has to be owned up to."""
    if isinstance(record, Reading):
        return msgspec.structs.replace(record, window=None)
    if isinstance(record, Prediction):
        return msgspec.structs.replace(record, thumbnail=b"")
    return record


def _gone(_: Record) -> None:
    return None


class Evictor:
    """Frees pages of an outbox inside a transaction that the caller has open.

    Its hand goes round the older half of the readings like that of a clock, so that run after run thins all of that
    half once before any of it twice.
    """

    def __init__(self, base: sqlite3.Connection, hand: int = 0):
        self._base = base
        self.hand = hand  # the id from which thinning goes on
        self._names: dict[int, str] = {}
        self.thinned = self.evicted = 0  # rows made lighter, rows gone

    def free(self, goal: int) -> Losses:
        """Get the used pages down to `goal`, and say what was given up. Only Gaps may keep it from that."""
        self._name_epochs()
        losses = Losses()
        for _ in self._rungs(losses):
            if used_pages(self._base) <= goal:
                break
        return losses

    def merge_gaps(self) -> dict[Reason, Losses]:
        """Where Gaps are many, take all of them out; by their reason, what they named, and their own numbers."""
        query = f"SELECT id, kind, seal, body FROM entry WHERE kind = {int(Kind.GAP)} ORDER BY id LIMIT {MANY_GAPS + 1}"
        self._name_epochs()
        merged: dict[Reason, Losses] = {}
        while len(rows := self._base.execute(query).fetchall()) > MANY_GAPS or (merged and rows):
            for row in rows:
                gap = record_in(row)
                assert isinstance(gap, Gap)
                losses = merged.setdefault(gap.reason, Losses())
                losses.add(gap)
                losses.add_rows(self._names[number_of(row[0])], [(seq_of(row[0]),) * 2])
            self._base.executemany("DELETE FROM entry WHERE id = ?", [row[:1] for row in rows])
            self.gone(rows)
        return merged

    def _name_epochs(self) -> None:
        self._names = dict(self._base.execute("SELECT number, name FROM epoch").fetchall())

    def _rungs(self, losses: Losses) -> Iterator[int]:
        """What is given up, one chunk after the other, the least worth first."""
        everything = (0, sys.maxsize)
        yield from self._sweep(Kind.WINDOW, lighter, 2, everything, losses)
        yield from self._sweep(Kind.WINDOW, lighter, 1, everything, losses)
        for _ in range(_ROUNDS):
            yield from self._thin_old_readings(losses)
        yield from self._sweep(Kind.HEALTH, _gone, 1, everything, losses)
        yield from self._sweep(Kind.PREDICTION, lighter, 1, everything, losses)
        for kind in (Kind.READING, Kind.PREDICTION, Kind.ALARM):
            yield from self._sweep(kind, _gone, 1, everything, losses)

    def _thin_old_readings(self, losses: Losses) -> Iterator[int]:
        """Every second reading of each tag in the older half goes; once round."""
        first, last = self._base.execute("SELECT min(id), max(id) FROM entry").fetchone()
        if first is None:
            return
        one_epoch = number_of(first) == number_of(last)
        middle = (first + last) // 2 if one_epoch else span(number_of(last))[0] - 1
        hand = self.hand if first <= self.hand < middle else first
        for between in ((hand, middle), (first, hand - 1)):
            for at in self._sweep(Kind.READING, _gone, 2, between, losses):
                self.hand = at
                yield at

    def _sweep(
        self, kind: Kind, change: Callable[[Record], Record | None], every: int, between: Range, losses: Losses
    ) -> Iterator[int]:
        """Change every so many-th row of each subject of this kind, oldest first; None: it goes. Yields the next id."""
        at, last = between
        seen: Counter[str] = Counter()
        query = f"SELECT id FROM entry WHERE kind = {int(kind)} AND id BETWEEN ? AND ? ORDER BY id LIMIT 1"
        while found := self._base.execute(query, (at, last)).fetchone():
            chunk = self._chunk(found[0], last)
            changed: dict[int, Row | None] = {}
            for row in chunk:
                if row[1] != kind:
                    continue
                record = record_in(row)
                seen[subject_of(record)] += 1
                if seen[subject_of(record)] % every:
                    continue
                left = change(record)
                if left is None:
                    losses.add(record)
                    losses.add_rows(self._names[number_of(row[0])], [(seq_of(row[0]),) * 2])
                    changed[row[0]] = None
                elif left != record:
                    changed[row[0]] = sealed(row[0], int(kind_of(left)), pack(left))
            self._write(chunk, changed)
            at = chunk[-1][0] + 1
            yield at

    def _chunk(self, first: int, last: int) -> list[Row]:
        chunk, total = [], 0
        query = "SELECT id, kind, seal, body FROM entry WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?"
        for row in self._base.execute(query, (first, last, _CHUNK_ROWS)):
            chunk.append(row)
            total += len(row[3])
            if total > _CHUNK_BYTES:
                break
        return chunk

    def _write(self, chunk: list[Row], changed: dict[int, Row | None]) -> None:
        """Put the changes into the file, in a way that empties pages.

        SQLite takes a page back only when two thirds of it are empty, so every second row gone would free nothing:
        where many change, the chunk is taken out whole, and what is left of it written anew, close together.
        """
        if len(changed) * 4 >= len(chunk):
            self._base.execute("DELETE FROM entry WHERE id BETWEEN ? AND ?", (chunk[0][0], chunk[-1][0]))
            left = [row for row in (changed.get(old[0], old) for old in chunk) if row is not None]
        else:
            self._base.executemany("DELETE FROM entry WHERE id = ?", [(row_id,) for row_id in changed])
            left = [row for row in changed.values() if row is not None]
        self._base.executemany("INSERT INTO entry VALUES (?, ?, ?, ?)", left)
        gone = [row for row in chunk if changed.get(row[0], row) is None]
        self.thinned += len(changed) - len(gone)
        self.evicted += len(gone)
        self.gone(gone)

    def gone(self, rows: list[Row]) -> None:
        """Keep the count of rows of each epoch true."""
        for number, count in Counter(number_of(row[0]) for row in rows).items():
            self._base.execute("UPDATE epoch SET rows = rows - ? WHERE number = ?", (count, number))


def record_in(row: Row) -> Record:
    """The record of a row. Raises Damaged where the row is not what was written."""
    if not is_sealed(row):
        raise Damaged(f"entry {seq_of(row[0])} is not what was written")
    try:
        return record_of(row[3])
    except ProtocolError as error:
        raise Damaged(f"entry {seq_of(row[0])} is {error}") from error


def subject_of(record: Record) -> str:
    """Whose record it is; the gateway's own have none."""
    if isinstance(record, Reading):
        return record.tag
    return record.camera if isinstance(record, Prediction) else ""
