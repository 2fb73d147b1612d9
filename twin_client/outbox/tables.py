"""The tables of an outbox's file, how a row is sealed, and how a damaged file is told from a disk that is full."""

import re
import sqlite3
import zlib
from collections.abc import Iterable
from contextlib import closing
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from targets.runtime.errors import HighwallError
from twin_client.protocol.records import Alarm, Gap, Health, Prediction, Reading, Record

Row = tuple[int, int, int, bytes]  # of the table `entry`: id, kind, seal, body

PAGE: Final = 4096  # bytes; a flash card writes no less
VERSION: Final = 1  # of the tables
EPOCH_BITS: Final = 44  # of an id, for the entry's number; the rest is the epoch's, so ids ascend with age

# SQLite reuses no row id of its own accord only with AUTOINCREMENT, which costs a write to a table of its own: the
# highest number of an epoch lies in `epoch` instead. Kind 1 is the bulk; the rare kinds are found by their index.
SCHEMA: Final = f"""
CREATE TABLE entry (
    id INTEGER PRIMARY KEY,   -- the epoch's number, shifted by {EPOCH_BITS} bits, and the entry's own
    kind INTEGER NOT NULL,
    seal INTEGER NOT NULL,    -- CRC-32 of all the rest: a card may return what was never written
    body BLOB NOT NULL        -- the record as MessagePack
);
CREATE INDEX rare ON entry (kind) WHERE kind <> 1;
CREATE TABLE epoch (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    last INTEGER NOT NULL,    -- the highest number given
    rows INTEGER NOT NULL     -- that are here
);
CREATE TABLE memory (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE mark (           -- the highest number of each tag and camera, per boot
    subject TEXT NOT NULL,
    boot INTEGER NOT NULL,
    number INTEGER NOT NULL,
    id INTEGER NOT NULL,      -- of the entry that came last
    PRIMARY KEY (subject, boot)
) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""


class OutboxFull(HighwallError):
    """The disk takes no more: it is full, read-only or failing. Nothing was changed; the records are the caller's."""


class Damaged(Exception):
    """What lies in the file is not what was written."""


# What reading a damaged file raises: SQLite's module cannot even decode the message where a name in it is damaged.
BROKEN: Final = (sqlite3.Error, Damaged, UnicodeDecodeError)


class Vanished(Damaged):
    """Rows of an epoch are not to be found, and nobody can say which."""

    def __init__(self, number: int, text: str):
        super().__init__(text)
        self.number = number


class Kind(IntEnum):
    """What a row is, by what is given up first when room is short."""

    WINDOW = 0  # a reading with its raw window
    READING = 1
    HEALTH = 2
    PREDICTION = 3
    ALARM = 4
    GAP = 5


NAMES: Final = dict(enumerate(("reading", "reading", "health", "prediction", "alarm", "gap")))
_KINDS: Final = {
    Reading: Kind.READING,
    Health: Kind.HEALTH,
    Prediction: Kind.PREDICTION,
    Alarm: Kind.ALARM,
    Gap: Kind.GAP,
}


def kind_of(record: Record) -> Kind:
    """The kind of the row that holds `record`."""
    kind = _KINDS[type(record)]
    return Kind.WINDOW if kind is Kind.READING and record.window is not None else kind  # type: ignore[union-attr]


def id_of(number: int, seq: int) -> int:
    """The row id of entry `seq` in epoch `number`."""
    return number << EPOCH_BITS | seq


def seq_of(row_id: int) -> int:
    """The entry's own number."""
    return row_id & ((1 << EPOCH_BITS) - 1)


def number_of(row_id: int) -> int:
    """The number of the epoch that a row belongs to."""
    return row_id >> EPOCH_BITS


def span(number: int) -> tuple[int, int]:
    """The first and the last id that an epoch may use."""
    return id_of(number, 1), id_of(number + 1, 0) - 1


def sealed(row_id: int, kind: int, body: bytes) -> Row:
    """A row as it is written."""
    return row_id, kind, zlib.crc32(body, (row_id ^ kind << 28) & 0xFFFFFFFF), body


def is_sealed(row: Row) -> bool:
    """Whether a row is what was written; a damaged page may yield anything, of any type."""
    row_id, kind, _, body = row
    return isinstance(kind, int) and kind in NAMES and isinstance(body, bytes) and sealed(row_id, kind, body) == row


def typed(rows: Iterable[tuple[Any, ...]], *kinds: type) -> list[tuple[Any, ...]]:
    """Rows of which every column must be of the type that was written. Raises Damaged."""
    found = list(rows)
    for row in found:
        if not all(isinstance(value, kind) for value, kind in zip(row, kinds, strict=True)):
            raise Damaged("a table holds what was never written there")
    return found


def connect(path: Path) -> sqlite3.Connection:
    """Open or create the file for writing. A commit is on the disk when it returns: WAL with `synchronous=FULL`.

    Free pages are reused, and given back to the disk only in small steps (`auto_vacuum=INCREMENTAL`). Nothing is
    mapped into memory and the cache is small, so memory stays flat however much is queued.
    """
    base = sqlite3.connect(path, timeout=5, isolation_level=None, cached_statements=48)
    try:
        base.executescript(
            f"PRAGMA page_size = {PAGE}; PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL;"
            "PRAGMA synchronous = FULL; PRAGMA cache_size = -512; PRAGMA mmap_size = 0; PRAGMA secure_delete = OFF;"
            "PRAGMA wal_autocheckpoint = 512; PRAGMA temp_store = MEMORY; PRAGMA cell_size_check = ON;"
        )
    except BaseException:
        base.close()
        raise
    return base


def create(path: Path) -> sqlite3.Connection:
    """A new file with empty tables."""
    base = connect(path)
    base.executescript(f"BEGIN; {SCHEMA} COMMIT;")
    return base


def check_schema(base: sqlite3.Connection) -> None:
    """Raise Damaged unless the tables are exactly ours: one letter that a card has changed may rename a column."""
    with closing(sqlite3.connect(":memory:")) as ours:
        ours.executescript(SCHEMA)
        if _words(base) != _words(ours):
            raise Damaged("its tables are not what was written")


def _words(base: sqlite3.Connection) -> list[list[str]]:
    """The schema without its comments and spaces, of which a later version may have others."""
    rows = base.execute("SELECT name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
    return [[str(name), str(table), *re.sub(r"--.*", "", str(sql)).split()] for name, table, sql in rows]


def has_our_header(path: Path) -> bool:
    """Whether the file says of itself what ours do; what says otherwise may be taken for one that is read-only."""
    with path.open("rb") as file:
        header = file.read(24)
    return header == b"SQLite format 3\0" + PAGE.to_bytes(2, "big") + bytes((2, 2, 0, 64, 32, 32))


def is_damage(error: Exception) -> bool:
    """Whether SQLite says that the file is damaged, rather than that the disk is full or will not be written."""
    if isinstance(error, Damaged | UnicodeDecodeError | sqlite3.IntegrityError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(error, sqlite3.Error) or code is None:
        return False
    unreadable = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)
    header = code & 0xFF == sqlite3.SQLITE_ERROR and any(words in str(error) for words in ("no such", "file format"))
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or code in unreadable or header


def epoch_of(base: sqlite3.Connection, name: str) -> tuple[Any, ...] | None:
    """The number of the epoch of this name and the highest it has given; None: it is not known here."""
    found = base.execute("SELECT number, last FROM epoch WHERE name = ?", (name,)).fetchone()
    return typed([found], int, int)[0] if found else None


def lowest(base: sqlite3.Connection, number: int) -> int | None:
    """The lowest entry of epoch `number` that is here. Raises Damaged where there is none but should be.

    That is how rows are missed at last which damage has made invisible without an error.
    """
    (row,) = base.execute("SELECT min(id) FROM entry WHERE id BETWEEN ? AND ?", span(number)).fetchone()
    if row is not None:
        return seq_of(row)
    for (rows,) in typed(base.execute("SELECT rows FROM epoch WHERE number = ?", (number,)), int):
        if rows > 0:
            raise Vanished(number, f"{rows} of its rows have vanished")
    return None


def used_pages(base: sqlite3.Connection) -> int:
    """Pages of the file that hold something."""
    (pages,), (free,) = (base.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count"))
    return int(pages) - int(free)


def rare_ids(base: sqlite3.Connection, kind: Kind, low: int, high: int, most: int) -> list[int]:
    """The first ids of a kind between two others, found by its index."""
    query = f"SELECT id FROM entry WHERE kind = {int(kind)} AND id BETWEEN ? AND ? ORDER BY id LIMIT ?"
    return [number for (number,) in base.execute(query, (low, high, most))]
