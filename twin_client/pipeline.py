"""From a source's records to the outbox: read by their calibrations, numbered, judged, all in one commit.

A commit takes what has come within a second, or at once when a hundred records wait. So a power cut costs at most the
last second, and what was judged of a record is on the disk exactly when the record is. Where the disk takes nothing,
records are held in memory, the least worth given up first, and what was given up is a Gap when the disk is back.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from twin_client.outbox import Holding, Outbox, OutboxFull, Transaction
from twin_client.protocol.records import Alarm, Entry, Record, Stamp

GROUP_S: Final = 1.0  # seconds that a record may wait for others
GROUP_ROWS: Final = 100  # records that wait for no more
MOST: Final = 1000  # records of one commit
QUEUE: Final = 5000  # records that may wait; then sources are told to keep theirs
RETRY_S: Final = 5.0  # seconds between two attempts on a disk that refuses


class Judgement(Protocol):
    """What becomes of records on their way: a state that changes only with the commit that holds what it made."""

    def begin(self, remembered: Callable[[str], bytes | None]) -> object:
        """The state as it was committed last."""

    def read(self, state: Any, record: Record) -> tuple[object, Record]:
        """A record as it is kept: read by its sensor's calibration, a window by what it shows."""

    def judge(self, state: Any, epoch: str, entry: Entry) -> tuple[object, Sequence[Alarm]]:
        """What the rules say of it."""

    def saved(self, before: Any, after: Any) -> Mapping[str, bytes]:
        """What of the state is to be remembered, where it has changed."""


@dataclass
class _Group:
    """Records that are committed together or not at all."""

    records: list[Record]
    marks: dict[str, bytes] = field(default_factory=dict)
    done: asyncio.Future[None] | None = None


class Pipeline:
    """All methods belong to the loop, but `offer`, which any thread may call.

    `open_outbox` and all that follows runs in the disk's thread, by way of `run`. `committed` is called on the loop
    with the epoch, its last number, and the records of a commit, in order, alarms among them.
    """

    def __init__(
        self,
        open_outbox: Callable[[], Outbox],
        run: Callable[..., Awaitable[Any]],
        judgement: Judgement,
        stamp: Callable[[], Stamp],
        *,
        committed: Callable[[str, int, Sequence[Record]], None] = lambda epoch, last, records: None,
        say: Callable[[str], None] = print,
    ):
        self.judgement = judgement
        self.beat = time.monotonic()
        self.counters: Counter[str] = Counter()
        self.held = 0  # records in memory because the disk takes none
        self.outbox: Outbox | None = None
        self._open_outbox, self._run, self._stamp, self._committed, self._say = (
            open_outbox,
            run,
            stamp,
            committed,
            say,
        )
        self._state: object = None
        self._holding = Holding()
        self._promised: list[asyncio.Future[None]] = []  # of groups that are held
        self._held_marks: dict[str, bytes] = {}
        self._waiting: deque[_Group] = deque()
        self._rows = 0
        self._loop = asyncio.get_running_loop()
        self._news, self._many = asyncio.Event(), asyncio.Event()
        self._refused = False

    async def open(self) -> bool:
        """Open the outbox; False where the disk refuses, which is tried again with every commit."""
        try:
            await self._run(self._opened)
        except OutboxFull as error:
            self._complain(error)
            return False
        return True

    def offer(self, records: list[Record]) -> bool:
        """Take records that wait for no answer; False where too many wait already: then none was taken."""
        if self._rows > QUEUE:
            return False
        self._loop.call_soon_threadsafe(self._arrived, _Group(list(records)))
        return True

    async def put(self, records: Sequence[Record], marks: Mapping[str, bytes] | None = None) -> None:
        """Commit records, with what is to be remembered beside them; they are on the disk when this returns."""
        group = _Group(list(records), dict(marks or {}), self._loop.create_future())
        self._loop.call_soon_threadsafe(self._arrived, group)  # behind what was offered before
        assert group.done is not None
        await group.done

    async def recall(self, key: str) -> bytes | None:
        """What was committed last under `key`; None also where the outbox cannot be opened."""
        if not await self.open():
            return None
        assert self.outbox is not None
        found: bytes | None = await self._run(self.outbox.recall, key)
        return found

    async def run(self) -> None:
        """Commit what comes, until cancelled."""
        while True:
            self.beat = time.monotonic()
            if not self._waiting:
                self._news.clear()
                try:
                    async with asyncio.timeout(RETRY_S):
                        await self._news.wait()
                except TimeoutError:
                    if self.held:
                        await self._commit([])
                    continue
            if self._rows < GROUP_ROWS and not self._refused:
                self._many.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(GROUP_S):
                        await self._many.wait()
            await self._commit(self._taken())
            if self._refused:
                await asyncio.sleep(min(GROUP_S, RETRY_S))

    async def flush(self) -> None:
        """Commit all that waits, now; what the disk has refused is tried once more."""
        while self._waiting:
            await self._commit(self._taken())
        if self.held:
            await self._commit([])

    def _arrived(self, group: _Group) -> None:
        self._waiting.append(group)
        self._rows += len(group.records)
        self._news.set()
        if self._rows >= GROUP_ROWS:
            self._many.set()

    def _taken(self) -> list[_Group]:
        groups: list[_Group] = []
        rows = 0
        while self._waiting and (not groups or rows + len(self._waiting[0].records) <= MOST):
            groups.append(self._waiting.popleft())
            rows += len(groups[-1].records)
        self._rows -= rows
        return groups

    async def _commit(self, groups: list[_Group]) -> None:
        """Cancelled, it waits for what the disk is at: it may go through, and must not be written once more."""
        commit = asyncio.ensure_future(self._commit_whole(groups))
        try:
            await asyncio.shield(commit)
        except asyncio.CancelledError:
            await asyncio.wait([commit])
            with suppress(asyncio.CancelledError, Exception):
                commit.result()  # its groups wait again
            raise

    async def _commit_whole(self, groups: list[_Group]) -> None:
        records = [record for group in groups for record in group.records]
        marks = {key: value for group in groups for key, value in group.marks.items()}
        try:
            epoch, last, kept = await self._run(self._write, records, marks)
        except OutboxFull as error:
            self._complain(error)
            self.held = await self._run(self._hold, records, marks)
            self._promised += [group.done for group in groups if group.done is not None]
            return
        except BaseException:
            self._waiting.extendleft(reversed(groups))
            self._rows += len(records)
            raise
        if self._refused:
            self._refused = False
            self._say("the outbox can be written again; what was held in memory is in it now")
        self.held = 0
        self._committed(epoch, last, kept)
        promised, self._promised = self._promised, []
        for done in (*promised, *(group.done for group in groups)):
            if done is not None and not done.done():
                done.set_result(None)

    def _complain(self, error: Exception) -> None:
        if not self._refused:
            self._say(f"{error}; until then records are held in memory")
        self._refused = True

    # --- in the disk's thread -------------------------------------------------------------------------------------

    def _opened(self) -> Outbox:
        if self.outbox is None:
            self.outbox = self._open_outbox()
            self._state = self.judgement.begin(self.outbox.recall)
        return self.outbox

    def _hold(self, records: list[Record], marks: dict[str, bytes]) -> int:
        self._holding.hold(records)
        self._held_marks |= marks
        return len(self._holding)

    def _write(self, records: list[Record], marks: dict[str, bytes]) -> tuple[str, int, list[Record]]:
        outbox = self._opened()
        if len(self._holding):
            records = [*self._holding.records(self._stamp()), *records]
            marks = self._held_marks | marks

        def work(t: Transaction) -> tuple[object, int, list[Record]]:
            state, read = self._state, []
            for record in records:
                state, kept = self._safely(self.judgement.read, state, record, instead=record)
                read.append(kept)
            alarms: list[Record] = []
            for entry in (entries := t.append(read)):
                state, found = self._safely(self.judgement.judge, state, outbox.epoch, entry, instead=())
                alarms += found
            entries += t.append(alarms)
            for key, value in (marks | dict(self.judgement.saved(self._state, state))).items():
                t.remember(key, value)
            return state, t.last, [entry.record for entry in entries]

        self._state, last, kept = outbox.write(work)
        self._holding.clear()
        self._held_marks = {}
        return outbox.epoch, last, kept

    def _safely(self, work: Callable[..., tuple[object, Any]], state: object, *given: Any, instead: Any) -> Any:
        """No fault in a rule, and no window that is none, may cost the record itself."""
        try:
            return work(state, *given)
        except Exception as error:
            self.counters["not judged"] += 1
            if self.counters["not judged"] == 1:
                self._say(f"a record cannot be judged: {type(error).__name__}: {error}; it is kept as it came")
            return state, instead

    def renew(self, judgement: Judgement) -> None:
        """From the next commit on, judge by these; called in the disk's thread."""
        self.judgement = judgement
        if self.outbox is not None:
            self._state = judgement.begin(self.outbox.recall)
