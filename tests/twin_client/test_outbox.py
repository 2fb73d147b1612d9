"""The outbox: what was appended is in it, acknowledged, or named by a Gap; and nothing else ever leaves."""

import sqlite3
import threading
from contextlib import suppress
from itertools import pairwise

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from outbox_child import (
    alarm,
    everything,
    health,
    named,
    opened,
    prediction,
    reading,
    stamp,
    subject,
    unaccounted,
)

from targets.runtime.errors import HighwallError
from twin_client.outbox import Limits
from twin_client.outbox.losses import MOST, Holding, Losses, coarse
from twin_client.outbox.rows import Rows
from twin_client.protocol.ranges import covers, ranges_of, size, subtract
from twin_client.protocol.records import VERSION, Alarm, Batch, Gap, Lost, Reading, batch_of

SMALL = Limits(cap=1 << 18, spare=0)


@pytest.fixture
def outbox(tmp_path):
    box = opened(tmp_path)
    yield box
    box.close()


def append(outbox, *records):
    with outbox.transaction() as t:
        return t.append(records)


# --- what a transaction promises ------------------------------------------------------------------------------


def test_entries_are_numbered_from_one_and_read_back_in_order(outbox):
    records = [reading(5), alarm(1), health(), prediction(8), reading(6, window=60)]
    entries = append(outbox, *records)
    assert [entry.seq for entry in entries] == [1, 2, 3, 4, 5]
    assert list(everything(outbox).values()) == records
    kinds = [stored.kind for stored in outbox.read(outbox.epoch, 1, 9, 10**6)]
    assert kinds == ["reading", "alarm", "health", "prediction", "reading"]


def test_readings_alarms_and_the_state_of_rules_are_committed_together_or_not_at_all(outbox):
    with outbox.transaction() as t:
        (entry,) = t.append([reading(1)])
        t.append([alarm(entry.seq)])
        t.remember("rules", b"first")
    with pytest.raises(ZeroDivisionError), outbox.transaction() as t:
        t.append([reading(2)])
        t.remember("rules", b"second")
        raise ZeroDivisionError
    assert outbox.recall("rules") == b"first"
    assert outbox.recall("tags") is None
    assert outbox.last(outbox.epoch) == outbox.count() == 2
    assert outbox.marks() == {"tag-7": (3, 1)}
    assert append(outbox, reading(2))[0].seq == 3


def test_a_transaction_that_is_over_takes_nothing_more(outbox):
    with outbox.transaction() as t:
        pass
    with pytest.raises(ValueError, match="over"):
        t.append([reading(1)])
    with pytest.raises(ValueError, match="over"):
        t.remember("key", b"")


def test_a_transaction_within_another_is_a_mistake_that_harms_nothing(outbox):
    with outbox.transaction() as t:
        t.append([reading(1)])
        with pytest.raises(ValueError, match="open"), outbox.transaction():
            pass
        with pytest.raises(ValueError, match="open"):
            outbox.acknowledge(outbox.epoch, [(1, 1)])
    assert outbox.count() == 1


def test_an_epoch_outlives_a_restart_and_so_do_its_numbers(tmp_path):
    first = opened(tmp_path)
    append(first, reading(1), reading(2))
    first.acknowledge(first.epoch, [(1, 2)])
    first.close()
    second = opened(tmp_path)
    assert second.epoch == first.epoch
    assert append(second, reading(3))[0].seq == 3
    second.close()
    assert len(first.epoch) == 16
    assert int(first.epoch, 16) >= 0
    other = opened(tmp_path / "other")
    assert other.epoch != first.epoch
    other.close()


def test_the_marks_of_tags_are_the_highest_numbers_of_their_latest_boots(tmp_path):
    outbox = opened(tmp_path)
    append(outbox, reading(9), reading(4), reading(70, "tag-8", 1), prediction(3))
    append(outbox, reading(2), reading(0, "tag-8", 2))
    expected = {"tag-7": (3, 9), "tag-8": (2, 0), "bench-4": (0, 3)}
    assert outbox.marks() == expected
    outbox.acknowledge(outbox.epoch, [(1, 6)])
    outbox.close()
    outbox = opened(tmp_path)
    assert outbox.marks() == expected
    outbox.close()


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 2**64 - 1, -1])
def test_a_tag_with_an_absurd_number_harms_nobody(outbox, number):
    assert append(outbox, reading(number, boot=number), reading(1))[1].seq == 2
    assert [record.tag_seq for record in everything(outbox).values()] == [number, 1]


def test_only_the_thread_that_opened_it_may_use_it(outbox):
    caught = []

    def work():
        try:
            append(outbox, reading(1))
        except sqlite3.ProgrammingError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert caught
    assert append(outbox, reading(1))[0].seq == 1


def test_two_agents_cannot_have_one_outbox_and_a_reader_may_look_at_any_time(tmp_path, outbox):
    append(outbox, reading(1))
    with pytest.raises(HighwallError, match="another agent"):
        opened(tmp_path)
    look = Rows.look(tmp_path)
    assert [record.tag_seq for record in everything(look).values()] == [1]
    append(outbox, reading(2))
    assert look.count() == 2
    assert look.last(outbox.epoch) == 2
    look.close()
    outbox.close()
    look = Rows.look(tmp_path)
    assert look.count() == 2
    look.close()
    with pytest.raises(HighwallError, match="closed"):
        look.count()
    with pytest.raises(HighwallError, match="there is no outbox"):
        Rows.look(tmp_path / "elsewhere")


# --- reading ------------------------------------------------------------------------------------------------


def test_reading_is_bounded_by_rows_and_by_bytes_but_never_stuck_at_a_large_row(outbox):
    append(outbox, *(reading(number, window=5000 if number == 2 else 0) for number in range(5)))

    def seqs(first, rows, most):
        return [stored.seq for stored in outbox.read(outbox.epoch, first, rows, most)]

    assert seqs(1, 2, 10**6) == [1, 2]
    assert seqs(1, 99, 300) == [1, 2]
    assert seqs(3, 99, 1) == [3]
    assert seqs(3, 99, 10**6) == [3, 4, 5]
    assert seqs(-5, 1, 10**6) == [1]
    assert seqs(6, 9, 10**6) == seqs(1, 0, 10**6) == []
    assert outbox.read("0" * 16, 1, 9, 10**6) == []
    assert outbox.first("0" * 16) is None
    assert outbox.last("0" * 16) == 0


def test_alarms_can_be_read_before_what_lies_in_front_of_them(outbox):
    append(outbox, *(reading(number) for number in range(50)), alarm(1), health(), reading(50), alarm(2))
    stored = outbox.read(outbox.epoch, 1, 10, 10**6, kinds=("alarm", "health"))
    assert [(row.kind, row.seq) for row in stored] == [("alarm", 51), ("health", 52), ("alarm", 54)]
    assert [row.seq for row in outbox.read(outbox.epoch, 52, 1, 10**6, kinds=["alarm"])] == [54]
    assert len(outbox.read(outbox.epoch, 1, 99, 10**6, kinds=["reading"])) == 51
    assert outbox.read(outbox.epoch, 1, 99, 10**6, kinds=[]) == []


def test_a_batch_is_assembled_from_stored_rows_without_decoding_them(outbox):
    records = [reading(1, window=30), alarm(2), health()]
    append(outbox, *records)
    rows = [(row.seq, msgspec.Raw(row.body)) for row in outbox.read(outbox.epoch, 1, 9, 10**6)]
    batch = {"version": VERSION, "gateway": "gw-1", "epoch": outbox.epoch, "entries": rows}
    decoded = batch_of(msgspec.msgpack.encode(batch))
    assert isinstance(decoded, Batch)
    assert [entry.record for entry in decoded.entries] == records


# --- acknowledgement ----------------------------------------------------------------------------------------


def test_rows_leave_when_acknowledged_and_what_was_never_given_is_ignored_and_counted(outbox):
    append(outbox, *map(reading, range(10)))
    assert outbox.acknowledge("f" * 16, [(1, 10)]) == 0
    assert outbox.counters["unknown_acknowledged"] == 10
    assert outbox.acknowledge(outbox.epoch, [(11, 2**70), (-9, 0), (7, 3)]) == 0
    assert outbox.acknowledge(outbox.epoch, [(8, 2**70), (2, 3), (3, 4)]) == 6
    assert outbox.acknowledge(outbox.epoch, [(2, 4)]) == 0
    assert [seq for _, seq in everything(outbox)] == [1, 5, 6, 7]
    assert outbox.count() == 4
    assert outbox.first(outbox.epoch) == 1
    assert outbox.last(outbox.epoch) == 10
    assert append(outbox, reading(10))[0].seq == 11


def test_the_file_shrinks_again_after_a_long_outage(tmp_path, outbox):
    for group in range(60):
        append(outbox, *(reading(100 * group + each, window=900) for each in range(100)))
    path = tmp_path / "outbox" / "rows.sqlite"
    full = outbox.used()
    for group in range(70):
        append(outbox, reading(group))
        outbox.acknowledge(outbox.epoch, [(100 * group + 1, 100 * group + 100)])
    assert full > 5 << 20
    assert path.stat().st_size < full / 2
    assert path.with_name("rows.sqlite-wal").stat().st_size <= 8 << 20


# --- a full outbox ------------------------------------------------------------------------------------------


def fill(outbox, groups, size=100, first=0, **kind):
    for group in range(first, first + groups):
        append(outbox, *(reading(size * group + each, tag=f"tag-{each % 3}", **kind) for each in range(size)))


def test_windows_are_given_up_before_any_number_is(tmp_path):
    outbox = opened(tmp_path, SMALL)
    fill(outbox, 4, window=2400)
    records = everything(outbox)
    assert len(records) == 400
    assert outbox.counters["thinned"] > 100
    assert outbox.counters["evicted"] == 0
    assert not any(isinstance(record, Gap) for record in records.values())
    kept = [record.tag_seq for record in records.values() if record.window]
    assert kept
    assert outbox.used() <= SMALL.cap + 100 * 3000
    outbox.close()


def test_old_readings_are_thinned_evenly_for_each_tag_and_alarms_and_predictions_stay(tmp_path):
    outbox = opened(tmp_path, SMALL)
    precious = [alarm(1), prediction(4, thumbnail=300), health()]
    append(outbox, *precious)
    fill(outbox, 25)
    records = everything(outbox)
    assert 0 < outbox.counters["evicted"] < 1500
    assert outbox.used() <= SMALL.cap
    assert [record for record in records.values() if record in precious] == precious
    young = [record for record in records.values() if isinstance(record, Reading) and record.tag_seq >= 2000]
    assert len(young) == 500
    for tag in ("tag-0", "tag-1", "tag-2"):
        old = [r.tag_seq for r in records.values() if isinstance(r, Reading) and r.tag == tag and r.tag_seq < 600]
        assert 5 <= len(old) <= 110
        apart = [after - before for before, after in pairwise(old)]
        assert max(apart) <= 4 * sorted(apart)[len(apart) // 2]
    outbox.close()


def test_alarms_are_the_last_to_go_and_gaps_never_do(tmp_path):
    outbox = opened(tmp_path, SMALL)
    appended = {}
    for number in range(0, 6000, 100):
        records = [alarm(each) for each in range(number, number + 100)]
        appended |= {(outbox.epoch, entry.seq): entry.record for entry in append(outbox, *records)}
    assert unaccounted(appended, {}, outbox) == []
    full = sum(isinstance(record, Alarm) for record in everything(outbox).values())
    fill(outbox, 3, window=200)
    append(outbox, *map(prediction, range(50)), *(health() for _ in range(50)))
    append(outbox, alarm(1))
    kinds = [type(record).__name__ for record in everything(outbox).values()]
    assert kinds.count("Alarm") > 0.7 * full > 700
    assert kinds.count("Gap") >= 1
    assert kinds.count("Reading") < 300
    outbox.close()


def test_the_cap_holds_though_every_frame_is_a_gap_of_its_own(tmp_path):
    outbox = opened(tmp_path, SMALL)
    for group in range(60):
        lost = [Lost("tag-7", 3, 1000 * group + 10 * each, 1000 * group + 10 * each + 5) for each in range(100)]
        append(outbox, *(Gap(stamp(), "radio", lost=(one,)) for one in lost))
    assert outbox.used() <= SMALL.cap + 100_000
    gaps = [record for record in everything(outbox).values() if isinstance(record, Gap)]
    rows, numbers = named(gaps)
    assert {gap.reason for gap in gaps} == {"radio"}
    wanted = [(1000 * group + 10 * each, 1000 * group + 10 * each + 5) for group in range(60) for each in range(100)]
    assert subtract(wanted, numbers["tag-7", 3]) == []
    here = [(seq, seq) for _, seq in everything(outbox)]
    assert subtract([(1, outbox.last(outbox.epoch))], [*here, *rows[outbox.epoch]]) == []
    outbox.close()


def test_a_disk_that_others_have_filled_makes_it_grow_no_more(tmp_path):
    outbox = opened(tmp_path, Limits(spare=1 << 60))
    fill(outbox, 120, window=100)
    assert outbox.counters["thinned"] > 0
    assert outbox.used() <= 2 << 20
    outbox.close()


def test_an_eviction_leaves_one_gap_that_names_rows_and_tags_numbers(tmp_path):
    outbox = opened(tmp_path, SMALL)
    fill(outbox, 19)
    before = outbox.counters["evicted"]
    group = 19
    while outbox.counters["evicted"] == before:
        fill(outbox, 1, first=group)
        group += 1
    gaps = [record for record in everything(outbox).values() if isinstance(record, Gap)]
    (gap,) = gaps[-1:]
    assert gap.reason == "evicted"
    assert gap.epoch == outbox.epoch
    assert 1 <= len(gap.seqs) <= MOST
    assert {lost.subject for lost in gap.lost} == {"tag-0", "tag-1", "tag-2"}
    assert "reading" in gap.text
    outbox.close()


# --- the ledger of losses and the holding area --------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 7, 1000])
def test_coarse_ranges_hold_all_of_the_exact_ones_and_as_little_else_as_can_be(most):
    exact = ranges_of([*range(0, 40, 2), 100, 102, *range(500, 600), 1000])
    few = coarse(exact, most)
    assert len(few) <= max(most, 1)
    assert subtract(exact, few) == []
    if most >= 7:
        assert size(few) < 40 + 3 + 100 + 1 + 7


def test_a_ledger_names_all_that_is_lost_however_scattered(outbox):
    losses = Losses()
    numbers = {(f"tag-{number % 5}", number * 7919 % 100_000) for number in range(20_000)}
    for tag, number in numbers:
        losses.add(reading(number, tag))
    gaps = losses.gaps(stamp(), "overrun")
    _, lost = named(gaps)
    assert all(covers(lost[tag, 3], number) for tag, number in numbers)
    assert sum(len(gap.lost) for gap in gaps) <= MOST
    assert Losses().gaps(stamp(), "disk") == []


def test_rows_of_several_epochs_and_very_many_tags_take_several_gaps_and_none_is_left_out():
    losses = Losses()
    for number in range(3 * MOST):
        losses.add(reading(number, f"tag-{number}"))
    losses.add_rows("a", [(1, 5)])
    losses.add_rows("b", [(9, 9)])
    losses.add_lost(Lost("tag-0", 9, None, 44))
    gaps = losses.gaps(stamp(), "corrupt", "why")
    rows, lost = named(gaps)
    assert rows["a"] == [(1, 5)]
    assert rows["b"] == [(9, 9)]
    assert len(lost) == 3 * MOST + 1
    assert all(len(gap.lost) <= MOST for gap in gaps)


def test_what_is_held_in_memory_comes_back_in_order_and_overflow_is_owned_up_to():
    holding = Holding(6)
    holding.hold([reading(1), alarm(1), reading(2), health(), reading(3)])
    assert [type(record) for record in holding.records(stamp())] == [Reading, Alarm, Reading, type(health()), Reading]
    holding.hold(reading(number) for number in range(4, 10))
    gap, *rest = holding.records(stamp())
    assert gap.reason == "disk"
    assert len(rest) == len(holding) == 6
    assert [subject(record)[2] for record in rest if isinstance(record, Reading)] == [6, 7, 8, 9]
    assert gap.lost == (Lost("tag-7", 3, 1, 5),)
    holding.clear()
    assert holding.records(stamp()) == []
    assert len(holding) == 0


# --- against a model ----------------------------------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """Every appended number is in the outbox, acknowledged, or inside a Gap, whatever is done in whatever order."""

    @initialize(folder=st.uuids())
    def begin(self, folder):
        self.folder = self.root / str(folder)
        self.outbox = opened(self.folder, SMALL)
        self.appended, self.told, self.count = {}, {}, 0

    @rule(count=st.integers(0, 300), window=st.sampled_from([0, 0, 0, 2000]), boot=st.integers(1, 3))
    def readings(self, count, window, boot):
        self._append([self._reading(boot, window) for _ in range(count)])

    @rule(count=st.integers(1, 60), thumbnail=st.sampled_from([0, 3000]))
    def others(self, count, thumbnail):
        self.count += count
        self._append([prediction(self.count - each, thumbnail=thumbnail) for each in range(count)])
        self._append([health() if each % 3 else alarm(each) for each in range(count)])

    @rule(first=st.integers(1, 3000), length=st.integers(0, 1500))
    def acknowledge(self, first, length):
        epoch = self.outbox.epoch
        rows = everything(self.outbox)
        self.outbox.acknowledge(epoch, [(first, first + length)])
        self.told |= {key: record for key, record in rows.items() if first <= key[1] <= first + length}

    @rule()
    def reopen(self):
        epoch = self.outbox.epoch
        self.outbox.close()
        self.outbox = opened(self.folder, SMALL)
        assert self.outbox.epoch == epoch

    @rule()
    def fail(self):
        with suppress(ZeroDivisionError), self.outbox.transaction() as t:
            t.append([self._reading(1, 0)])
            raise ZeroDivisionError

    @precondition(lambda self: hasattr(self, "outbox"))
    @invariant()
    def nothing_is_unaccounted(self):
        assert unaccounted(self.appended, self.told, self.outbox) == []
        assert self.outbox.count() == len(everything(self.outbox))

    def teardown(self):
        if hasattr(self, "outbox"):
            self.outbox.close()

    def _reading(self, boot, window):
        self.count += 1
        return reading(self.count, f"tag-{self.count % 4}", boot, window)

    def _append(self, records):
        entries = append(self.outbox, *records)
        keys = {(self.outbox.epoch, entry.seq): entry.record for entry in entries}
        assert not keys.keys() & self.appended.keys()
        self.appended |= keys


def test_every_appended_number_is_here_acknowledged_or_inside_a_gap(tmp_path):
    machine = type("Rooted", (Machine,), {"root": tmp_path})
    case = machine.TestCase
    case.settings = settings(
        max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
    )
    case().runTest()
