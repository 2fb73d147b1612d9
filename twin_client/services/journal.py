"""The memory of commands, on the disk: what came, what was begun, what was answered, and which answers went out.

An SQLite file of its own, each change durable when its call returns: a command is run only once, and answered the
same way for ever, exactly because this never forgets in the wrong moment. Where a journal was lost all the same, the
one after it says so, and since when, for as long as it lives.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from targets.runtime.errors import HighwallError
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.orders import MOST_BYTES, Answer, Command, pack, unpack

_SCHEMA: Final = """
CREATE TABLE command (
    number INTEGER PRIMARY KEY,         -- in the order they came
    id TEXT NOT NULL UNIQUE,
    body BLOB NOT NULL,                 -- the command, as it came
    until INTEGER NOT NULL,             -- its expiry, microseconds
    begun INTEGER NOT NULL DEFAULT 0,   -- how often
    answer BLOB,
    sent INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE birth (at INTEGER);        -- a row where a journal was lost before: when, microseconds; NULL: not known
"""


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much is remembered: the last `count` in any case, and every command until `margin` after its expiry."""

    count: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 1000
    margin: Annotated[float, msgspec.Meta(ge=0, le=31_536_000)] = 86_400.0  # seconds, for a clock that was ahead
    most: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000  # commands that have not expired; more are refused
    bytes: Annotated[int, msgspec.Meta(ge=MOST_BYTES, le=2**30)] = 16 * 2**20  # of all commands together

    def __post_init__(self) -> None:
        if self.count >= self.most:  # then those kept in any case would leave no room for another, for ever
            raise ValueError(f"count, {self.count}, is not less than most, {self.most}")


@dataclass(frozen=True)
class Known:
    """What the journal has of a command; `begun` counts how often it was."""

    command: Command
    begun: int
    answer: Answer | None


class Journal:
    """The journal in the file `path`. `born_anew` says that the one before it is lost: a damaged one is set aside as
    NAME.damaged. What ran before `birth`, microseconds (None: not known yet), is then not remembered; both stay over
    restarts.

    Every call raises HighwallError where the disk refuses, and then nothing was changed.
    """

    def __init__(self, path: Path, memory: Memory | None = None):
        self._path, self._memory = Path(path), memory or Memory()
        self._damaged = self._path.with_name(f"{self._path.name}.damaged")
        self.born_anew = False
        self.birth: int | None = None
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                raise self._refused(error) from error
            try:
                self._set_aside()
                self._open()
            except (OSError, sqlite3.Error) as failure:
                raise self._refused(failure) from failure

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def find(self, command_id: str) -> Known | None:
        """What is known of a command."""
        rows = self._rows("SELECT body, begun, answer FROM command WHERE id = ?", command_id)
        return next((_known(*row) for row in rows), None)

    def was_born(self, at: int) -> None:
        """Remember when a journal that was born anew began, microseconds."""
        with self._change() as base:
            base.execute("UPDATE birth SET at = ?", (at,))
        self.birth = at

    def received(self, command: Command, now: int, answer: Answer | None = None) -> bool:
        """Remember a new command, and with it an answer that there is already.

        False where there are too many that have not expired at `now`, microseconds.
        """
        with self._change() as base:
            floor = now - int(self._memory.margin * 1e6)
            base.execute(
                "DELETE FROM command WHERE answer IS NOT NULL AND until < ?"
                " AND number <= (SELECT coalesce(max(number), 0) - ? FROM command)",
                (floor, self._memory.count),
            )
            body = pack(command)
            count, size = base.execute("SELECT count(*), coalesce(sum(length(body)), 0) FROM command").fetchone()
            if count >= self._memory.most or size + len(body) > self._memory.bytes:
                return False
            row = (command.id, body, command.expires, None if answer is None else pack(answer))
            base.execute("INSERT INTO command (id, body, until, answer) VALUES (?, ?, ?, ?)", row)
            return True

    def begun(self, command_id: str) -> None:
        """Remember that a command is about to run."""
        with self._change() as base:
            base.execute("UPDATE command SET begun = begun + 1 WHERE id = ?", (command_id,))

    def answered(self, answer: Answer) -> None:
        """Remember what became of it; the first answer stays."""
        with self._change() as base:
            row = (pack(answer), answer.id)
            base.execute("UPDATE command SET answer = ? WHERE id = ? AND answer IS NULL", row)

    def sent(self, command_id: str) -> None:
        """Remember that the twin has the answer."""
        with self._change() as base:
            base.execute("UPDATE command SET sent = 1 WHERE id = ? AND answer IS NOT NULL", (command_id,))

    def open_commands(self) -> list[Known]:
        """Those without an answer, in the order they came."""
        return [_known(*row) for row in self._rows("SELECT body, begun, answer FROM command WHERE answer IS NULL")]

    def unsent(self) -> list[Answer]:
        """Answers of which nobody said that the twin has them."""
        rows = self._rows("SELECT answer FROM command WHERE answer IS NOT NULL AND sent = 0")
        return [unpack(Answer, answer) for (answer,) in rows]

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refused(error) from error
        self._base = sqlite3.connect(self._path, isolation_level=None)
        self._base.executescript("PRAGMA journal_mode = DELETE; PRAGMA synchronous = EXTRA; PRAGMA cache_size = -256;")
        if "command" not in self._tables():
            # In one step, and by what is left of the one before: a kill on the way must not make it a first journal.
            born = "INSERT INTO birth VALUES (NULL);" if self._damaged.exists() else ""
            self._base.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} {born} COMMIT;")
        try:  # all of it is read once: rows are few, and when a command comes again is too late to find one damaged
            sound = self._base.execute("PRAGMA integrity_check(1)").fetchone() == ("ok",)
            for name, *row in self._base.execute("SELECT id, body, begun, answer FROM command"):
                sound = sound and _known(*row).command.id == name
            if "birth" in self._tables():  # an older version made none
                for (at,) in self._base.execute("SELECT at FROM birth"):
                    sound = sound and isinstance(at, int | None)
                    self.born_anew, self.birth = True, at
        except ProtocolError:
            sound = False
        if not sound:
            raise sqlite3.DatabaseError("malformed")

    def _set_aside(self) -> None:
        with suppress(AttributeError, sqlite3.Error):
            self._base.close()
        self._path.replace(self._damaged)
        for left in ("-journal", "-wal", "-shm"):
            self._path.with_name(self._path.name + left).unlink(missing_ok=True)

    def _tables(self) -> set[str]:
        return {name for (name,) in self._base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def _rows(self, query: str, *values: object) -> list[Any]:
        try:
            return self._base.execute(f"{query} ORDER BY number", values).fetchall()
        except sqlite3.Error as error:
            raise self._refused(error) from error

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        try:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base
                self._base.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._base.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> HighwallError:
        return HighwallError(f"the journal of commands {self._path} cannot be written or read: {error}")


def _known(body: bytes, begun: int, answer: bytes | None) -> Known:
    return Known(unpack(Command, body), int(begun), None if answer is None else unpack(Answer, answer))
