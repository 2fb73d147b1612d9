"""Keeping the outbox's file: opened and found whole, or begun anew beside what can be saved of it; and one commit.

Numbers are what must never be given twice. Whatever casts doubt on them (a damaged file, a lost one, an older copy
put back, the card of another gateway) begins a new epoch, and a `Gap` says what of the old one is missing.
"""

import copy
import fcntl
import secrets
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated, Final, TypeVar

import msgspec

from targets.runtime.errors import HighwallError
from twin_client.outbox.commit import Transaction, raised
from twin_client.outbox.losses import Losses
from twin_client.outbox.rows import Rows
from twin_client.outbox.salvage import (
    Born,
    Known,
    Mark,
    building,
    finish_swap,
    is_whole,
    load_known,
    pour,
    save_known,
    swap,
)
from twin_client.outbox.tables import (
    BROKEN,
    VERSION,
    Damaged,
    OutboxFull,
    Vanished,
    check_schema,
    connect,
    create,
    has_our_header,
    id_of,
    is_damage,
    lowest,
    number_of,
    typed,
)
from twin_client.protocol.ranges import Range, size, subtract
from twin_client.protocol.records import Gap, Lost, Stamp

T = TypeVar("T")

_OWNER: Final = "outbox.gateway"  # among what is remembered: whose the file is
_OPEN: Final = "outbox.open"  # among what is remembered: the boot in which it was opened and not yet closed
_SKIPPED: Final = 1 << 20  # numbers, far more than one log of SQLite's can hold
_PROBED: Final = 20  # of the last rows, looked at on opening


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much room the outbox may take. Above, it gives up by value what it has, and owns up to it."""

    cap: Annotated[int, msgspec.Meta(ge=1 << 18)] = 1 << 30  # bytes in use of the file; one commit may exceed it
    spare: Annotated[int, msgspec.Meta(ge=0)] = 64 << 20  # bytes free on the disk, below which the file grows no more
    set_aside: Annotated[int, msgspec.Meta(ge=0)] = 64 << 20  # bytes; a larger damaged file is not kept
    marks: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 10.0  # seconds between two savings of `outbox.marks`


class Reborn(HighwallError):
    """The file was damaged and a new epoch has begun. Nothing of this transaction was kept: run it again."""


class Keeper(Rows):
    """The file, open or about to be; and what must outlive it, in a second one."""

    epoch: str

    def __init__(
        self, folder: Path, gateway: str, limits: Limits, stamp: Callable[[], Stamp], say: Callable[[str], None]
    ):
        super().__init__(folder / "outbox" / "rows.sqlite")
        self._folder, self._gateway, self._limits, self._stamp, self._say = folder, gateway, limits, stamp, say
        self.counters: Counter[str] = Counter()
        self._known = Known()
        self._number = 0  # of the present epoch
        self._saved = 0  # when `outbox.marks` was, by the clock that is never set
        self._lock: IO[bytes] | None = None

    def close(self) -> None:
        """Close the file, and let another have it."""
        if self._base is not None:
            with suppress(HighwallError, *BROKEN):
                self._save_known()
                self._base.execute("DELETE FROM memory WHERE key = ?", (_OPEN,))
        self._drop()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _drop(self) -> None:
        with suppress(sqlite3.Error):
            super().close()

    # --- one commit ---------------------------------------------------------------------------------------------

    def _begin(self) -> Transaction:
        base = self._ready()
        base.execute("BEGIN IMMEDIATE")
        return Transaction(base, self._number, self._known.epochs[self._number].last)

    def _undo(self, t: Transaction) -> None:
        t.open = False
        if self._base is not None:
            with suppress(sqlite3.Error):  # SQLite itself has done so after some errors
                self._base.execute("ROLLBACK")

    def _commit(self, t: Transaction) -> None:
        """Put it on the disk; what is in memory changes only after that."""
        t.open = False
        base = self._ready()
        try:
            marks = raised(self._known, t.marks)
            if t.rows:
                query = "UPDATE epoch SET last = ?, rows = rows + ? WHERE number = ?"
                base.execute(query, (t.last, t.rows, self._number))
            if marks:
                base.executemany("INSERT OR REPLACE INTO mark VALUES (?, ?, ?, ?)", marks)
            base.execute("COMMIT")
        except BaseException:
            self._undo(t)
            raise
        for subject, boot, number, row_id in marks:
            self._known.marks.setdefault(subject, {})[boot] = Mark(number, row_id)
        self._known.epochs[self._number].last = t.last

    @contextmanager
    def _change(self) -> Iterator[Transaction]:
        """A commit of this room's own."""
        t = self._begin()
        try:
            yield t
        except BaseException:
            self._undo(t)
            raise
        self._commit(t)

    def _ask(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            with self._translated():
                return work(self._ready())
        except Reborn:
            with self._translated():
                return work(self._ready())

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Tell a damaged file, which is replaced at once, from a disk that will not be written."""
        try:
            yield
        except BROKEN as error:
            if not is_damage(error):
                raise self._refused(error) from error
            self._begin_anew(error)
            raise Reborn(f"the outbox in {self._folder} was damaged: {error}; do the same again") from error

    def _refused(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.ProgrammingError):  # such as the wrong thread: a mistake of ours
            return error
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            self._drop()  # what was opened on a read-only disk stays so
        self.counters["refused"] += 1
        return OutboxFull(f"the outbox in {self._folder} cannot be written: {error}; free some space or mend the disk")

    # --- opening --------------------------------------------------------------------------------------------------

    def _idle(self) -> None:
        if self._ready().in_transaction:
            raise ValueError("a transaction is open; end its `with` block first")

    def _ready(self) -> sqlite3.Connection:
        """The open file; opened, mended or born where it is not open."""
        if self._base is None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._take_lock()
                finish_swap(self._folder, self._limits.set_aside)
                if not self._known.epochs:
                    self._known = load_known(self._folder)
                self._open_file()
            except OSError as error:
                raise self._refused(error) from error
        assert self._base is not None
        return self._base

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        lock = (self._folder / "outbox.lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise HighwallError(f"another agent has the outbox in {self._folder}; stop that one first") from None
        self._lock = lock

    def _open_file(self) -> None:
        if not self._path.exists():
            self._begin_anew(Damaged("its file was gone") if self._known.epochs else None)
            return
        base = None
        try:
            base = connect(self._path)
            self._adopt(base, *self._checked(base))
        except BaseException as error:
            self._base = None
            if base is not None:
                base.close()
            if not isinstance(error, BROKEN):
                raise
            if not is_damage(error) and has_our_header(self._path):
                raise self._refused(error) from error
            self._begin_anew(error)

    def _checked(self, base: sqlite3.Connection) -> tuple[int, str]:
        """Look where damage shows at once; the rest is found when it is met. Returns the present epoch."""
        (version,) = base.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise HighwallError(f"the outbox {self._path} was written by a newer highwall; install that one again")
        check_schema(base)
        present = base.execute("SELECT number, name, last FROM epoch ORDER BY number DESC LIMIT 1").fetchone()
        if present is None:
            raise Damaged("it holds no epoch")
        ((number, name, last),) = typed([present], int, str, int)
        rows = base.execute(f"SELECT id, kind, seal, body FROM entry ORDER BY id DESC LIMIT {_PROBED}").fetchall()
        if not all(map(is_whole, rows)) or (rows and rows[0][0] > id_of(number, last)):
            raise Damaged("its last rows are not what was written")
        (after,) = base.execute("SELECT min(id) FROM entry").fetchone()
        while after is not None:
            if not base.execute("SELECT 1 FROM epoch WHERE number = ?", (number_of(after),)).fetchone():
                raise Damaged("it holds rows of an epoch that it does not name")
            next_epoch = id_of(number_of(after) + 1, 0)
            (after,) = base.execute("SELECT min(id) FROM entry WHERE id >= ?", (next_epoch,)).fetchone()
        newest = max(self._known.epochs, default=0)
        if newest > number or (newest == number and self._known.epochs[number].last > last):
            raise Damaged("it is older than it was before, so its numbers would be given twice")
        owner = base.execute("SELECT value FROM memory WHERE key = ?", (_OWNER,)).fetchone()
        if owner != (self._gateway.encode(),):
            raise Damaged("it is that of another gateway")
        return number, name

    def _adopt(self, base: sqlite3.Connection, number: int, name: str) -> None:
        """Go on with this file."""
        known = Known()
        for each, born, last in typed(base.execute("SELECT number, name, last FROM epoch"), int, str, int):
            known.epochs[each] = Born(born, lowest(base, each) or last + 1, last)
        marks = base.execute("SELECT subject, boot, number, id FROM mark")
        for subject, boot, highest, row_id in typed(marks, str, int, int, int):
            known.note(subject, boot, Mark(highest, row_id))
        self._known, self._base, self._number, self.epoch = known, base, number, name
        self._skip_numbers(base)

    def _skip_numbers(self, base: sqlite3.Connection) -> None:
        """After a power cut go on well above the highest number that is here.

        Many cards say that they have written what they have not. Numbers of such rows may be with the twin already,
        and what it has it would not take again.
        """
        boot = self._stamp().boot.encode()
        left = base.execute("SELECT value FROM memory WHERE key = ?", (_OPEN,)).fetchone()
        with self._change() as t:
            if left is not None and left != (boot,):
                skipped = (t.last + 1, t.last + _SKIPPED)
                t.last += _SKIPPED
                text = "the power went; these numbers were never given, or the card has lost what had them"
                t.append([Gap(self._stamp(), "restarted", self.epoch, (skipped,), (), text)])
            t.remember(_OPEN, boot)
        base.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()  # that much at least may not be lost with the log

    # --- beginning anew -------------------------------------------------------------------------------------------

    def _begin_anew(self, error: Exception | None) -> None:
        """A new file with a new epoch; `error` is why the old one, whose readable rows are carried over, was given up.

        It is made beside the old one and takes its place when it is complete, so a power cut at any point costs
        nothing. Where the disk has no room for that the old one stays, to be tried again.
        """
        exact = self._base is not None  # while it is open, memory knows the highest numbers
        self._drop()
        why = "" if error is None else str(error)
        if why:
            self.counters["damaged"] += 1
            self._say(f"the outbox in {self._folder} is given up: {why}; what can be read moves to a new one")
        known = copy.deepcopy(self._known)  # this may yet fail
        if isinstance(error, Vanished) and error.number in known.epochs:
            known.epochs[error.number].first = 1
        try:
            with building(self._folder) as path:
                base = create(path)
                try:
                    held, certain = pour(self._path, base, known) if why else ({}, True)
                    self._settle(base, known, held, certain or exact, why)
                finally:
                    base.close()
            swap(self._folder, self._limits.set_aside)
            base = connect(self._path)
            self._known = known
            self._adopt(base, *self._checked(base))
        except (*BROKEN, OSError) as problem:
            self._drop()
            raise self._refused(problem) from problem
        self._save_known()

    def _settle(
        self, base: sqlite3.Connection, known: Known, held: dict[int, list[Range]], certain: bool, why: str
    ) -> None:
        """Begin the new epoch behind the rows that were carried over, with a Gap of what is missing."""
        losses = Losses()
        for number, born in known.epochs.items():
            losses.add_rows(born.name, subtract([(born.first, born.last)], held.get(number, [])))
        if known.epochs and not certain:
            newest = known.epochs[max(known.epochs)]
            losses.add_rows(newest.name, [(newest.last + 1, newest.last + _SKIPPED)])
        if losses:
            for subject, boots in known.marks.items():
                for boot, mark in boots.items():
                    losses.add_lost(Lost(subject, boot, None, mark.number))
        number, name = max(known.epochs, default=0) + 1, secrets.token_hex(8)
        base.execute("BEGIN IMMEDIATE")
        rows = [(each, known.epochs[each].name, known.epochs[each].last, size(held[each])) for each in held]
        base.executemany("INSERT INTO epoch VALUES (?, ?, ?, ?)", [*rows, (number, name, 0, 0)])
        marks = [
            (subject, boot, mark.number, mark.id)
            for subject, boots in known.marks.items()
            for boot, mark in boots.items()
        ]
        base.executemany("INSERT INTO mark VALUES (?, ?, ?, ?)", marks)
        t = Transaction(base, number, 0)
        t.append(losses.gaps(self._stamp(), "corrupt", why))
        t.remember(_OWNER, self._gateway.encode())
        base.execute("UPDATE epoch SET last = ?, rows = ? WHERE number = ?", (t.last, t.rows, number))
        base.execute("COMMIT")

    # --- what outlives the file -----------------------------------------------------------------------------------

    def _save_known_if_due(self) -> None:
        now = self._stamp().mono
        if not 0 <= now - self._saved < self._limits.marks * 1e6:
            self._saved = now
            self._save_known()

    def _save_known(self) -> None:
        """Best effort: the disk may be full just now, and what it costs is only a wider Gap, should the file break."""
        self._forget_old_boots()
        try:
            save_known(self._folder, self._known)
        except HighwallError:
            self.counters["refused"] += 1

    def _forget_old_boots(self) -> None:
        if gone := self._known.outlived():
            with suppress(*BROKEN), self._change():
                self._ready().executemany("DELETE FROM mark WHERE subject = ? AND boot = ?", gone)
                for subject, boot in gone:
                    del self._known.marks[subject][boot]
