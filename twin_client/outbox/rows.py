"""What lies in an outbox, read: by its owner, or by another process that looks at the same file."""

import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from targets.runtime.errors import HighwallError
from twin_client.outbox.tables import (
    BROKEN,
    NAMES,
    PAGE,
    Damaged,
    Kind,
    epoch_of,
    id_of,
    is_sealed,
    lowest,
    rare_ids,
    seq_of,
    span,
    used_pages,
)

T = TypeVar("T")


class Stored(msgspec.Struct, frozen=True, gc=False):
    """An entry as it lies on the disk; `body` is the record as MessagePack and goes into a batch as it is."""

    epoch: str
    seq: int
    kind: str  # `reading`, `prediction`, `alarm`, `health` or `gap`
    body: bytes


class Rows:
    """What can be read of an outbox. `Rows.look` opens one of another process, read-only."""

    def __init__(self, path: Path, base: sqlite3.Connection | None = None):
        self._path, self._base = path, base

    @classmethod
    def look(cls, folder: Path) -> "Rows":
        """The outbox in `folder`, for reading only, also while an agent writes to it. Raises HighwallError."""
        path = Path(folder) / "outbox" / "rows.sqlite"
        if not path.is_file():
            raise HighwallError(f"there is no outbox in {folder}; name the folder that the gateway keeps its data in")
        # Without a log there is nobody who writes, and then no lock is needed either, which a read-only card refuses.
        how = "mode=ro" if path.with_name("rows.sqlite-wal").exists() else "mode=ro&immutable=1"
        try:
            base = sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True, timeout=5, isolation_level=None)
            base.execute("SELECT count(*) FROM epoch").fetchone()
        except BROKEN as error:
            raise HighwallError(f"the outbox {path} cannot be read: {error}; let the agent open it once") from error
        return cls(path, base)

    def close(self) -> None:
        """Close the file."""
        if self._base is not None:
            self._base.close()
            self._base = None

    def epochs(self) -> list[str]:
        """All epochs that have rows here, oldest first, and the present one, which comes last."""
        return self._ask(lambda base: [name for (name,) in base.execute("SELECT name FROM epoch ORDER BY number")])

    def first(self, epoch: str) -> int | None:
        """The lowest number of `epoch` that is still here; None: there is none."""
        return self._ask(lambda base: lowest(base, found[0]) if (found := epoch_of(base, epoch)) else None)

    def last(self, epoch: str) -> int:
        """The highest number that `epoch` has given, whether still here or not; 0: none, or an unknown epoch."""
        return self._ask(lambda base: found[1] if (found := epoch_of(base, epoch)) else 0)

    def count(self) -> int:
        """How many rows are here."""
        return self._ask(lambda base: int(base.execute("SELECT coalesce(sum(rows), 0) FROM epoch").fetchone()[0]))

    def used(self) -> int:
        """How many bytes of the file are in use; pages that wait to be used again are not counted."""
        return self._ask(lambda base: used_pages(base) * PAGE)

    def read(
        self, epoch: str, first_seq: int, limit_rows: int, limit_bytes: int, kinds: Iterable[str] | None = None
    ) -> list[Stored]:
        """Entries of `epoch` from number `first_seq` on, in order.

        At most `limit_rows`, and no more than `limit_bytes` of bodies, but always one where there is one. `kinds`
        names the only ones that are wanted; without readings among them this takes no longer however many lie between.
        """
        wanted = [kind for kind in Kind if kinds is None or NAMES[kind] in set(kinds)]

        def work(base: sqlite3.Connection) -> list[Stored]:
            found = epoch_of(base, epoch)
            if found is None or limit_rows < 1 or not wanted:
                return []
            low, high = max(id_of(found[0], max(first_seq, 0)), span(found[0])[0]), span(found[0])[1]
            if Kind.READING in wanted:
                only = (
                    "" if len(wanted) == len(Kind) else f"AND +kind IN ({','.join(str(int(kind)) for kind in wanted)})"
                )
                where, values = f"id BETWEEN ? AND ? {only}", [low, high]
            else:
                ids = sorted(number for kind in wanted for number in rare_ids(base, kind, low, high, limit_rows))[:900]
                where, values = f"id IN ({','.join('?' * len(ids))})", ids
            cursor = base.execute(
                f"SELECT id, kind, seal, body FROM entry WHERE {where} ORDER BY id LIMIT {int(limit_rows)}", values
            )
            stored: list[Stored] = []
            total = 0
            for row in cursor:
                if not is_sealed(row):
                    raise Damaged(f"entry {seq_of(row[0])} of epoch {epoch} is not what was written")
                total += len(row[3])
                if stored and total > limit_bytes:
                    break
                stored.append(Stored(epoch, seq_of(row[0]), NAMES[row[1]], row[3]))
            cursor.close()
            return stored

        return self._ask(work)

    def recall(self, key: str) -> bytes | None:
        """What `Transaction.remember` last committed under `key`."""
        found = self._ask(lambda base: base.execute("SELECT value FROM memory WHERE key = ?", (key,)).fetchone())
        return None if found is None else bytes(found[0])

    def marks(self) -> dict[str, tuple[int, int]]:
        """The boot and number of the last committed reading of each tag; of a camera 0 and its capture."""
        query = "SELECT subject, boot, number FROM mark ORDER BY id"
        return self._ask(lambda base: {subject: (boot, number) for subject, boot, number in base.execute(query)})

    def _ask(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._base is None:
            raise HighwallError(f"the outbox {self._path} is closed; open it again")
        try:
            return work(self._base)
        except BROKEN as error:
            raise HighwallError(f"the outbox {self._path} cannot be read: {error}; let the agent open it") from error
