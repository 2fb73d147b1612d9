"""What can still be read of a damaged outbox, carried over into a new file with its old epochs and numbers."""

import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from targets.runtime.files import atomic_write
from twin_client.outbox.retention import record_in
from twin_client.outbox.tables import (
    BROKEN,
    EPOCH_BITS,
    PAGE,
    Damaged,
    Row,
    check_schema,
    connect,
    id_of,
    number_of,
    seq_of,
)
from twin_client.protocol.ranges import Range, union

_GRAIN: Final = 16  # ids; a damaged stretch this short is given up
_KNOWN: Final = "outbox.marks"
_KEPT_PAIRS: Final = 5000  # of a tag and a boot, whose highest numbers are remembered
_TRIES: Final = 200_000  # failed reads after which the rest is given up, a few seconds
_GROUP_ROWS, _GROUP_BYTES = 1000, 1 << 20  # of one commit
_BEYOND: Final = 1 << 20  # numbers that are looked for after the highest known one, where that is not certain
MOST_SEQ: Final = 1 << EPOCH_BITS


class Mark(msgspec.Struct, array_like=True):
    """The highest number of a tag or camera in one of its boots, and the entry that came last."""

    number: int
    id: int


class Born(msgspec.Struct, array_like=True):
    """An epoch: its name, the lowest number that was not acknowledged and the highest given, as far as known."""

    name: str
    first: int
    last: int


class Known(msgspec.Struct):
    """What is known of an outbox beside its file: kept in a second one, so that it outlives the first."""

    epochs: dict[int, Born] = {}
    marks: dict[str, dict[int, Mark]] = {}  # by subject and boot

    def note(self, subject: str, boot: int, mark: Mark) -> None:
        """Keep the higher number and the later entry of two."""
        old = self.marks.setdefault(subject, {}).setdefault(boot, mark)
        self.marks[subject][boot] = Mark(max(old.number, mark.number), max(old.id, mark.id))

    def highest(self, subject: str, boot: int) -> int | None:
        """The highest number of a subject in one of its boots."""
        mark = self.marks.get(subject, {}).get(boot)
        return None if mark is None else mark.number

    def outlived(self) -> list[tuple[str, int]]:
        """Earlier boots of tags of which no rows can be here any more, or that are too many to remember."""
        oldest = min((id_of(number, born.first) for number, born in self.epochs.items()), default=0)
        earlier = []
        for subject, boots in self.marks.items():
            latest = max(mark.id for mark in boots.values())
            earlier += [(mark.id, subject, boot) for boot, mark in boots.items() if mark.id < latest]
        surplus = sum(map(len, self.marks.values())) - _KEPT_PAIRS
        return [each[1:] for at, each in enumerate(sorted(earlier)) if each[0] < oldest or at < surplus]


def load_known(folder: Path) -> Known:
    """What `save_known` wrote; nothing where it is not there or cannot be read."""
    try:
        return msgspec.msgpack.decode((folder / _KNOWN).read_bytes(), type=Known)
    except (OSError, msgspec.MsgspecError, ValueError):
        return Known()


def save_known(folder: Path, known: Known) -> None:
    """Write it beside the outbox. Raises HighwallError."""
    with atomic_write(folder / _KNOWN) as partial:
        partial.write_bytes(msgspec.msgpack.encode(known))


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Yield where to make a new file; it is complete when the block ends, and `swap` may put it in place."""
    new = folder / "outbox.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new / "rows.sqlite"
        _sync(new)
        new.rename(folder / "outbox.next")
        _sync(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def swap(folder: Path, most: int) -> None:
    """Put the new outbox in the place of the old one, which is set aside: two of them at most, of `most` bytes each."""
    old, aside = folder / "outbox", [folder / f"outbox.corrupt-{number}" for number in (1, 2)]
    if old.exists() and sum(file.stat().st_size for file in old.iterdir()) > most:
        shutil.rmtree(old)
    if old.exists():
        if aside[0].exists() and aside[1].exists():
            shutil.rmtree(aside[0])
            aside[1].rename(aside[0])
        old.rename(aside[1] if aside[0].exists() else aside[0])
    (folder / "outbox.next").rename(old)
    _sync(folder)


def finish_swap(folder: Path, most: int) -> None:
    """End what a power cut interrupted."""
    shutil.rmtree(folder / "outbox.new", ignore_errors=True)
    if (folder / "outbox.next").exists():
        swap(folder, most)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def pour(old: Path, fresh: sqlite3.Connection, known: Known) -> tuple[dict[int, list[Range]], bool]:
    """Carry every readable row and memory of the file `old` into `fresh`, a newborn one.

    Returns what was carried, by epoch, and whether the highest numbers are certain. `known` grows by what the file
    still says. Raises what SQLite raises where `fresh` cannot be written.
    """
    held: dict[int, list[Range]] = {}
    certain = False
    if (base := _opened(old, _first_page(fresh))) is not None:
        with closing(base):
            certain = _learn(base, known)
            for group in _groups(row for born in sorted(known.epochs) for row in _walk(base, born, known, certain)):
                fresh.execute("BEGIN IMMEDIATE")
                fresh.executemany("INSERT OR IGNORE INTO entry VALUES (?, ?, ?, ?)", group)
                fresh.execute("COMMIT")
                for row in group:
                    held.setdefault(number_of(row[0]), []).append((seq_of(row[0]),) * 2)
                held = {number: union(ranges) for number, ranges in held.items()}
            for key, value in _all(base, "SELECT key, value FROM memory", str, bytes):
                fresh.execute("INSERT OR IGNORE INTO memory VALUES (?, ?)", (key, value))
    for number, ranges in held.items():
        known.epochs[number].last = max(known.epochs[number].last, ranges[-1][1])
    return held, certain


def _first_page(newborn: sqlite3.Connection) -> bytes:
    """All outboxes have their tables at the same places, so the first page of a newborn one mends a lost one."""
    newborn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    (_, _, path) = newborn.execute("PRAGMA database_list").fetchone()
    with Path(path).open("rb") as file:
        return file.read(PAGE)


def _opened(path: Path, first_page: bytes) -> sqlite3.Connection | None:
    """The damaged file, with its first page mended where that alone keeps it shut; None: it cannot be opened."""
    for mend in (False, True):
        base = None
        try:
            if mend:
                pages = (path.stat().st_size // PAGE).to_bytes(4, "big")
                with path.open("r+b") as file:
                    file.write(first_page[:28] + pages + first_page[32:])
            base = connect(path)
            check_schema(base)
            base.execute("SELECT min(id) FROM entry WHERE id > 0").fetchone()
            return base
        except (*BROKEN, OSError):
            if base is not None:
                base.close()
    return None


def _learn(base: sqlite3.Connection, known: Known) -> bool:
    """What the tables of epochs and marks say; whether the highest numbers are certain now."""
    behind = set(known.epochs)
    for number, name, last in _all(base, "SELECT number, name, last FROM epoch", int, str, int):
        if 0 <= last < MOST_SEQ:
            born = known.epochs.setdefault(number, Born(name, 1, last))
            if last >= born.last:
                born.last = last
                behind.discard(number)
    for subject, boot, number, row in _all(base, "SELECT subject, boot, number, id FROM mark", str, int, int, int):
        known.note(subject, boot, Mark(number, row))
    return bool(known.epochs) and not behind


def _walk(base: sqlite3.Connection, epoch: int, known: Known, certain: bool) -> Iterator[Row]:
    """Every readable row of an epoch: what breaks off is halved, until it is too short to matter."""
    last = known.epochs[epoch].last + (0 if certain else _BEYOND)
    stretches = [(id_of(epoch, 1), id_of(epoch, last))]
    for _ in range(_TRIES):
        if not stretches:
            return
        first, last = stretches.pop()
        for way in ("ASC", "DESC"):
            query = f"SELECT id, kind, seal, body FROM entry WHERE id BETWEEN ? AND ? ORDER BY id {way}"
            try:
                for row in base.execute(query, (first, last)):
                    if way == "ASC":
                        first = row[0] + 1
                    if is_whole(row):
                        yield row
                break
            except BROKEN:
                if last - first >= _GRAIN:
                    middle = (first + last) // 2
                    stretches += [(middle + 1, last), (first, middle)]
                    break


def is_whole(row: Row) -> bool:
    """Whether a row is what was written."""
    try:
        record_in(row)
    except Damaged:
        return False
    return True


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    total = 0
    for row in rows:
        group.append(row)
        total += len(row[3])
        if len(group) == _GROUP_ROWS or total > _GROUP_BYTES:
            yield group
            group, total = [], 0
    if group:
        yield group


def _all(base: sqlite3.Connection, query: str, *kinds: type) -> Iterator[tuple[Any, ...]]:
    """Rows until one cannot be read, without those whose columns are of other types than were written."""
    try:
        for row in base.execute(query):
            if all(isinstance(value, kind) for value, kind in zip(row, kinds, strict=True)):
                yield row
    except BROKEN:
        return
