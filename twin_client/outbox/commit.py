"""One commit of an outbox: entries get their numbers, and what follows from them is remembered with them."""

import sqlite3
from collections.abc import Callable, Iterable
from typing import Final

from twin_client.outbox.salvage import Known
from twin_client.outbox.tables import BROKEN, id_of, kind_of, sealed
from twin_client.protocol.records import Entry, Prediction, Reading, Record, pack

Marked = tuple[str, int, int, int]  # a subject, its boot, its number, and the id of the entry

_ABSURD: Final = 1 << 63  # a number that no counter reaches, and no column holds


class Transaction:
    """What one commit holds. Made by `Outbox.transaction`."""

    def __init__(self, base: sqlite3.Connection, number: int, last: int):
        self._base, self._number, self.last = base, number, last
        self.marks: list[Marked] = []
        self.rows = 0
        self.open = True
        self.failure: Exception | None = None  # what the file or the disk refused, rather than the caller's own work

    def append(self, records: Iterable[Record]) -> list[Entry]:
        """Give these records their numbers. They count once the block has ended."""
        rows, entries, last = [], [], self.last
        for record in records:
            last += 1
            row_id, body = id_of(self._number, last), pack(record)
            rows.append(sealed(row_id, int(kind_of(record)), body))
            entries.append(Entry(last, record))
            if isinstance(record, Reading):
                self.marks.append((record.tag, record.tag_boot, record.tag_seq, row_id))
            elif isinstance(record, Prediction):
                self.marks.append((record.camera, 0, record.capture, row_id))
        self._execute(lambda: self._base.executemany("INSERT INTO entry VALUES (?, ?, ?, ?)", rows))
        self.last, self.rows = last, self.rows + len(rows)
        return entries

    def remember(self, key: str, value: bytes) -> None:
        """Keep `value` under `key`, in place of what was there."""
        self._execute(lambda: self._base.execute("INSERT OR REPLACE INTO memory VALUES (?, ?)", (key, value)))

    def _execute(self, work: Callable[[], object]) -> None:
        if not self.open:
            raise ValueError("this transaction is over; use it inside its `with` block")
        try:
            work()
        except BROKEN as error:
            self.failure = error
            raise


def raised(known: Known, marks: Iterable[Marked]) -> list[Marked]:
    """For each tag and boot the highest number, of these and of those that were known."""
    highest: dict[tuple[str, int], Marked] = {}
    for subject, boot, number, row_id in marks:
        if max(abs(boot), abs(number)) >= _ABSURD:
            continue
        before = highest.get((subject, boot))
        most = known.highest(subject, boot) if before is None else before[2]
        highest[subject, boot] = (subject, boot, number if most is None else max(number, most), row_id)
    return list(highest.values())
