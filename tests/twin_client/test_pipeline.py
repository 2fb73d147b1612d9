"""The pipeline: what is judged of a record is on the disk exactly when the record is, whatever the disk does."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from twin_client.outbox import Outbox, OutboxFull
from twin_client.parts import ended
from twin_client.pipeline import QUEUE, Pipeline
from twin_client.protocol.records import Alarm, ClockQuality, Entry, Gap, Measure, Reading, Record, Stamp, record_of


class Ticks:
    """Stamps a millisecond apart."""

    def __init__(self) -> None:
        self.now = 1_763_884_800_000_000

    def __call__(self) -> Stamp:
        self.now += 1000
        return Stamp(self.now, self.now, "boot", ClockQuality.NETWORK)


class Counting:
    """A judgement that counts records, and raises an alarm at every tenth."""

    def begin(self, remembered: Callable[[str], bytes | None]) -> int:
        return int(remembered("count") or b"0")

    def read(self, state: int, record: Record) -> tuple[int, Record]:
        return state, record

    def judge(self, state: int, epoch: str, entry: Entry) -> tuple[int, list[Alarm]]:
        state += 1
        if isinstance(entry.record, Reading) and entry.record.values["x"].raw == -1:
            raise RuntimeError("a rule that has a mistake")
        if state % 10:
            return state, []
        return state, [Alarm(entry.record.at, f"a{state}", "t", "tenth", 1, 1, "x", None, None)]

    def saved(self, before: int | None, after: int) -> dict[str, bytes]:
        return {"count": str(after).encode()}


class Bench:
    """A pipeline with a real outbox, whose disk can be made to refuse."""

    def __init__(self, folder: Path):
        self.folder, self.ticks, self.full = folder, Ticks(), False
        self.said: list[str] = []
        self.kept: list[Record] = []
        self._disk = ThreadPoolExecutor(1)
        self.pipeline = Pipeline(
            self._open, self.run, Counting(), self.ticks, committed=self._committed, say=self.said.append
        )

    async def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._disk, lambda: work(*arguments))

    def _open(self) -> Outbox:
        if self.full:
            raise OutboxFull("no space left")
        outbox = Outbox.open(self.folder, "gw", stamp=self.ticks, say=self.said.append)
        write = outbox.write

        def refusing(work: Callable[..., Any]) -> Any:
            if self.full:
                raise OutboxFull("no space left")
            return write(work)

        outbox.write = refusing  # type: ignore[method-assign]
        return outbox

    def _committed(self, epoch: str, last: int, records: Any) -> None:
        self.kept += records

    async def close(self) -> list[Record]:
        """All that is on the disk."""
        outbox = self.pipeline.outbox
        assert outbox is not None

        def read() -> list[Record]:
            found = [
                record_of(row.body) for epoch in outbox.epochs() for row in outbox.read(epoch, 0, 100_000, 1 << 30)
            ]
            outbox.close()
            return found

        found: list[Record] = await self.run(read)
        self._disk.shutdown()
        return found


def reading(seq: int, at: Stamp, value: float = 1.0) -> Reading:
    return Reading(at, "t", 1, seq, {"x": Measure(value)})


def live(folder: Path, work: Callable[[Bench], Any]) -> list[Record]:
    """Run `work` with a pipeline that runs; what is on the disk afterwards."""

    async def main() -> list[Record]:
        bench = Bench(folder)
        task = asyncio.create_task(bench.pipeline.run())
        try:
            await work(bench)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await bench.pipeline.flush()
        return await bench.close()

    return asyncio.run(main())


def numbers(records: list[Record]) -> list[int]:
    return [record.tag_seq for record in records if isinstance(record, Reading)]


def test_records_come_to_the_disk_in_order_with_what_is_said_of_them(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        for seq in range(25):
            assert bench.pipeline.offer([reading(seq, bench.ticks())])
        await bench.pipeline.put([reading(25, bench.ticks())])
        assert numbers(bench.kept) == list(range(26))

    found = live(tmp_path, work)
    assert numbers(found) == list(range(26))
    assert [alarm.id for alarm in found if isinstance(alarm, Alarm)] == ["a10", "a20"]


def test_a_restart_goes_on_where_the_committed_state_was(tmp_path: Path) -> None:
    async def seven(bench: Bench) -> None:
        await bench.pipeline.put([reading(seq, bench.ticks()) for seq in range(7)])

    live(tmp_path, seven)
    found = live(tmp_path, seven)
    assert [alarm.id for alarm in found if isinstance(alarm, Alarm)] == ["a10"]


def test_while_the_disk_is_full_records_wait_in_memory_and_nothing_is_lost(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        await bench.pipeline.put([reading(0, bench.ticks())])
        bench.full = True
        for seq in range(1, 200):
            bench.pipeline.offer([reading(seq, bench.ticks())])
        promised = asyncio.create_task(bench.pipeline.put([reading(200, bench.ticks())], {"mark": b"here"}))
        await asyncio.sleep(1.5)
        assert bench.pipeline.held > 100
        assert not promised.done(), "it was promised to be on the disk"
        bench.full = False
        bench.pipeline.offer([reading(201, bench.ticks())])
        await promised
        assert await bench.pipeline.recall("mark") == b"here"

    found = live(tmp_path, work)
    assert numbers(found) == list(range(202))


def test_what_memory_cannot_hold_is_owned_up_to(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        bench.full = True
        for first in range(0, 4000, 100):
            bench.pipeline.offer([reading(seq, bench.ticks()) for seq in range(first, first + 100)])
            await asyncio.sleep(0)
        await asyncio.sleep(2)
        bench.full = False
        await bench.pipeline.put([reading(4000, bench.ticks())])

    found = live(tmp_path, work)
    lost = [
        number
        for gap in found
        if isinstance(gap, Gap) and gap.reason == "disk"
        for each in gap.lost
        for number in range(each.first or 0, each.last + 1)
    ]
    assert sorted({*numbers(found), *lost}) == list(range(4001))
    assert len(numbers(found)) >= 2000


def test_an_end_in_the_middle_of_a_write_writes_nothing_twice(tmp_path: Path) -> None:
    async def main() -> list[Record]:
        bench = Bench(tmp_path)
        await bench.pipeline.open()
        outbox = bench.pipeline.outbox
        assert outbox is not None
        write, writing = outbox.write, threading.Event()

        def slow(work: Callable[..., Any]) -> Any:
            written = write(work)
            writing.set()
            time.sleep(0.3)  # a card that takes its time to sync
            return written

        outbox.write = slow  # type: ignore[method-assign]
        task = asyncio.create_task(bench.pipeline.run())
        for seq in range(100):
            bench.pipeline.offer([reading(seq, bench.ticks())])
        promised = asyncio.create_task(bench.pipeline.put([reading(100, bench.ticks())]))
        while not writing.is_set():
            await asyncio.sleep(0.01)
        await ended(task, 0.1)  # no longer than the agent's own end would wait
        await bench.pipeline.flush()
        await promised
        return await bench.close()

    assert numbers(asyncio.run(main())) == list(range(101))


def test_what_a_full_disk_has_refused_is_tried_once_more_at_the_end(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        await bench.pipeline.put([reading(0, bench.ticks())])
        bench.full = True
        bench.pipeline.offer([reading(1, bench.ticks())])
        while not bench.pipeline.held:
            await asyncio.sleep(0.01)
        bench.full = False

    assert numbers(live(tmp_path, work)) == [0, 1]


def test_an_outbox_that_opens_late_is_no_reason_to_lose_anything(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        bench.full = True
        assert not await bench.pipeline.open()
        bench.pipeline.offer([reading(0, bench.ticks())])
        await asyncio.sleep(1.2)
        bench.full = False
        await bench.pipeline.put([reading(1, bench.ticks())])

    assert numbers(live(tmp_path, work)) == [0, 1]


def test_a_mistake_in_a_rule_costs_no_record(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        await bench.pipeline.put([reading(0, bench.ticks()), reading(1, bench.ticks(), -1), reading(2, bench.ticks())])
        assert bench.pipeline.counters["not judged"] == 1
        assert "a rule that has a mistake" in " ".join(bench.said)

    assert numbers(live(tmp_path, work)) == [0, 1, 2]


def test_a_source_is_told_to_keep_its_records_when_too_many_wait(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)  # which does not run: nothing is taken from it
        taken = 0
        while taken <= 2 * QUEUE and bench.pipeline.offer(
            [reading(taken + each, bench.ticks()) for each in range(500)]
        ):
            taken += 500
            await asyncio.sleep(0)
        assert QUEUE <= taken <= QUEUE + 1000
        await bench.pipeline.flush()
        assert numbers(await bench.close()) == list(range(taken))

    asyncio.run(main())


@pytest.mark.parametrize("count", [1, 99, 101, 1001])
def test_any_number_at_once(tmp_path: Path, count: int) -> None:
    async def work(bench: Bench) -> None:
        await bench.pipeline.put([reading(seq, bench.ticks()) for seq in range(count)])

    assert numbers(live(tmp_path, work)) == list(range(count))
