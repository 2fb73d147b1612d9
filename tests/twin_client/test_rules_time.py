"""Rules tell time by stamps alone, say the same live and afterwards, and stay bounded whatever is thrown at them."""

import math
import random
import time

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stepping import SECOND, WALL, alarms_of, book, gap, health, level, levels, prediction, reading, run, stamp

from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.records import Alarm, ClockQuality, Measure, Reading, Stamp
from twin_client.protocol.rules import State, changed, packed, recalled, restored, step
from twin_client.protocol.rules.settings import SpikingRule
from twin_client.protocol.rules.trend import POINT

VELOCITY = {
    "kind": "velocity",
    "name": "creep",
    "quantity": "strain",
    "limits": [10.0, 40.0],
    "hysteresis": 2,
    "window_s": 600,
    "points": 10,
    "least": 4,
}
EVERYTHING = book(
    level(rise_count=2, fall_s=30),
    level(name="low", side="below", limits=[-5, -9], hysteresis=0.5),
    VELOCITY,
    {**VELOCITY, "limits": [0.5, 2], "name": "drift", "hysteresis": 0.1},
    {
        **VELOCITY,
        "kind": "forecast",
        "name": "failure",
        "limits": [5, 0.1],
        "hysteresis": 1,
        "floor": 0.5,
        "points": 20,
    },
    {"kind": "validity", "name": "range", "quantity": "strain", "high": 1000, "low": -1000, "count": 2},
    {"kind": "spiking", "name": "spikes", "quantity": "strain", "limit": 6, "most": 3, "among": 12},
    {"kind": "stuck", "name": "dead", "quantity": "strain", "tolerance": 0.1, "count": 4},
    {"kind": "missing", "name": "silent", "seconds": 200},
    {"kind": "missing", "name": "mute", "seconds": 300, "quantity": "strain"},
    level(name="sure", quantity="crack_probability", limits=[0.5, 0.9], hysteresis=0.1),
    paired=["tag-1", "tag-2", "tag-3"],
)


@st.composite
def histories(draw):
    """Some hours of records: tags that come and go, spikes, nulls, gaps, restarts, clocks that step."""
    dice = random.Random(draw(st.integers(0, 2**32)))
    t, boot, up, wall, clock = 0.0, 0, 0.0, 0.0, ClockQuality.NETWORK
    value = dict.fromkeys(("tag-1", "tag-2"), 0.0)
    steady = draw(st.booleans())  # tag-2 does nothing but accelerate
    odd = 0.02 if steady else 1.0
    records = []
    for i in range(draw(st.integers(1, 120))):
        t += dice.choice((0, 1, 20, 20, 20, 60, 250, 400 if dice.random() < 0.1 * odd else 20)) if not steady else 20
        if dice.random() < 0.02 * odd:
            boot, up, clock = boot + 1, t, dice.choice((ClockQuality.LOST, ClockQuality.NETWORK))
        if dice.random() < 0.05:
            wall += dice.choice((-86_400, 86_400, 30))
        at = stamp(t, wall=t + wall, boot=f"boot-{boot}", up=up, clock=clock)
        tag = dice.choice(tuple(value))
        value[tag] = dice.choice((value[tag], value[tag] + dice.uniform(-2, 3), dice.uniform(-12, 12)))
        said = dice.choice((value[tag], value[tag], value[tag], None, 5000.0, 0.0))
        if steady and tag == "tag-2":
            said = -math.log(max(0.01, 1.1 - t / 3600)) + dice.gauss(0, 0.01)
        plain = reading(t, said, tag=tag, at=at, seq=i)
        if dice.random() > odd:
            records.append(plain)
            continue
        records.append(
            dice.choice(
                (
                    *[plain] * 8,
                    health(t) if boot == 0 else msgspec.structs.replace(health(0), at=at),
                    msgspec.structs.replace(gap(0, tag, "east"), at=at),
                    msgspec.structs.replace(prediction(0, dice.random(), positive=50), at=at),
                    msgspec.structs.replace(reading(0, said, tag=tag), at=at, tag_seq=max(0, i - 2)),
                )
            )
        )
    return records


def through_bytes(state):
    again = restored(packed(state))
    assert again == state
    return again


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories(), st.randoms(use_true_random=False))
def test_live_backlog_and_a_state_restored_at_any_point_say_the_same(records, dice):
    state, told = run(EVERYTHING, records)
    live, kept, live_told = State(), {}, []
    for seq, record in enumerate(records, 1):
        before = live
        live, alarms = step(EVERYTHING, live, ("gw-1", "e1", seq), record)
        live_told += alarms
        kept |= changed(before, live)
        if dice.random() < 0.5:
            live = through_bytes(live) if dice.random() < 0.5 else recalled(kept.get)
    assert (live, live_told) == (state, told)
    assert recalled(kept.get) == state


@settings(max_examples=40, deadline=None)
@given(histories())
def test_alarms_among_the_records_and_entries_that_come_twice_change_nothing(records):
    state, told = run(EVERYTHING, records)
    seen, again = State(), []
    for seq, record in enumerate(records, 1):
        for _ in range(2):
            seen, alarms = step(EVERYTHING, seen, ("gw-1", "e1", seq), record)
            again += alarms
        for alarm in alarms:
            assert step(EVERYTHING, seen, ("gw-1", "e1", seq + 10_000), alarm) == (seen, [])
    assert (seen, again) == (state, told)


@settings(max_examples=40, deadline=None)
@given(histories())
def test_each_event_has_one_id_and_ends_before_the_next_begins(records):
    standing: dict[tuple[str, str], Alarm] = {}
    onsets = set()
    for alarm in run(EVERYTHING, records)[1]:
        key = alarm.subject, alarm.rule
        before = standing.pop(key, None)
        if before is None:
            assert alarm.level > 0
            assert (alarm.id, alarm.subject) not in onsets
            onsets.add((alarm.id, alarm.subject))
        else:
            assert alarm.id == before.id
            assert alarm.level != before.level
        if alarm.level:
            standing[key] = alarm


# --- time -----------------------------------------------------------------------------------------------


def creeping(first, last, *, per_hour=15.0, start=0.0, **more):
    return [reading(t, start + per_hour * t / 3600, **more) for t in range(first, last, 20)]


@settings(max_examples=40, deadline=None)
@given(histories(), st.lists(st.integers(-(10**12), 10**12), min_size=120, max_size=120))
def test_no_step_of_the_wall_clock_within_a_boot_changes_what_is_said(records, steps):
    one_boot = []
    for i, record in enumerate(records):
        at = Stamp(record.at.wall, i * 20 * SECOND, "boot-1", record.at.clock)
        one_boot.append(msgspec.structs.replace(record, at=at))
    stepped = [
        msgspec.structs.replace(record, at=msgspec.structs.replace(record.at, wall=WALL + step))
        for record, step in zip(one_boot, steps, strict=False)
    ]

    def said(told):
        return [(alarm.id, alarm.level, alarm.value, alarm.at.mono) for alarm in told]

    assert said(alarms_of(EVERYTHING, stepped)) == said(alarms_of(EVERYTHING, one_boot))


def test_a_trend_goes_on_over_a_restart_that_both_clocks_time():
    rules = book({**VELOCITY, "least_s": 400})
    rebooted = creeping(320, 640, boot="boot-2", up=310)
    assert levels(alarms_of(rules, creeping(0, 300) + rebooted)) == [1]


@pytest.mark.parametrize("lost", ["before", "after"])
def test_a_trend_begins_anew_where_a_clock_was_lost_in_a_restart(lost):
    rules = book({**VELOCITY, "least_s": 400})
    before = creeping(0, 300, clock=ClockQuality.LOST if lost == "before" else ClockQuality.NETWORK)
    after = creeping(320, 640, boot="boot-2", up=310, clock=ClockQuality.LOST if lost == "after" else ClockQuality.HELD)
    assert alarms_of(rules, before + after) == []


def test_a_wall_that_lies_back_after_a_restart_begins_trends_anew():
    rules = book({**VELOCITY, "least_s": 400})
    back = [reading(t, 15 * t / 3600, at=stamp(t, wall=t - 86_400, boot="boot-2", up=310)) for t in range(320, 640, 20)]
    assert alarms_of(rules, creeping(0, 300) + back) == []


def test_a_late_record_of_an_earlier_boot_disturbs_no_trend():
    rules = book({**VELOCITY, "least_s": 400})
    records = creeping(0, 300) + creeping(320, 700, boot="boot-2", up=310)
    records[25:25] = [reading(290, 999.0)]
    (told,) = alarms_of(rules, records)
    assert told.value == pytest.approx(15, rel=0.01)


def test_a_late_record_from_before_an_unknown_time_disturbs_no_trend():
    rules = book({**VELOCITY, "least_s": 400})
    records = creeping(0, 300) + creeping(320, 900, boot="boot-2", up=310, clock=ClockQuality.LOST)
    records[16:16] = records[32:32] = [reading(299, 999.0, seq=301_000)]
    (told,) = alarms_of(rules, records)
    assert told.value == pytest.approx(15, rel=0.01)


def test_a_wall_that_lies_back_after_a_restart_hides_no_value():
    back = reading(320, 6, at=stamp(320, wall=100, boot="boot-2", up=310))
    assert levels(alarms_of(book(level()), [reading(0, 0), reading(300, 0), back])) == [1]


def test_one_wrong_stamp_silences_no_tag():
    rules = book(level())
    wrong = reading(10**9, 0, at=Stamp(WALL, 10**15, "boot-1", ClockQuality.NETWORK))
    told = alarms_of(rules, [reading(0, 0), wrong, health(60), reading(70, 0), reading(80, 6)])
    assert levels(told) == [1]
    missing = book({"kind": "missing", "name": "silent", "seconds": 600}, paired=["tag-7"])
    told = alarms_of(missing, [reading(0, 0), wrong, *(health(t) for t in range(60, 1200, 60))])
    assert levels(told) == [1]


# --- what nobody should send ----------------------------------------------------------------------------


def test_a_frame_that_comes_twice_or_late_counts_once():
    rules = book(level(rise_count=2))
    assert alarms_of(rules, [reading(0, 6, seq=5), reading(1, 6, seq=5), reading(2, 6, seq=4)]) == []
    assert levels(alarms_of(rules, [reading(0, 6, seq=5), reading(1, 6, seq=5), reading(2, 6, seq=6)])) == [1]
    assert levels(alarms_of(rules, [reading(0, 6, seq=5), reading(1, 6, seq=0, tag_boot=2)])) == [1]
    assert levels(alarms_of(rules, [reading(0, 6, seq=500_000), reading(1, 6, seq=0)])) == [1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1), st.sampled_from("ab"))))
def test_no_stamp_breaks_a_step_and_the_state_can_always_be_packed(stamps):
    state = State()
    for seq, (wall, mono, boot) in enumerate(stamps):
        at = Stamp(wall, mono, boot, ClockQuality.SATELLITE)
        state, _ = step(EVERYTHING, state, ("gw-1", "e1", seq), reading(0, 1e308, at=at, seq=seq))
        through_bytes(state)


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(60)))
def test_records_in_any_order_leave_a_state_that_goes_on(order):
    state, _ = run(EVERYTHING, [reading(20 * i, i, seq=i) for i in order])
    _, told = run(EVERYTHING, [reading(5000 + i, 8, seq=100 + i) for i in range(4)], through_bytes(state), first=100)
    assert "strain-high" in {alarm.rule for alarm in told} or any(
        "strain-high" in shard[tag].grades for shard in state.shards for tag in shard
    )


def test_the_state_is_bounded_in_tags_and_in_points():
    rules = book(VELOCITY, level(), most_subjects=640)
    state = State()
    for seq in range(5000):
        state, _ = step(rules, state, ("gw-1", "e1", seq), reading(seq, 0.0, tag=f"tag-{seq}"))
    assert sum(map(len, state.shards)) <= 640
    state, _ = run(book(VELOCITY), [reading(100 * i, 0.0) for i in range(500)])
    assert len(state.subject("tag-7").trends["creep"].points) == 10 * POINT


def test_a_tag_with_an_alarm_is_forgotten_last():
    rules = book(level(), most_subjects=640)
    records = [reading(0, 6, tag="alarmed"), *(reading(i, 0, tag=f"tag-{i}") for i in range(1, 1900))]
    state, _ = run(rules, records)
    _, told = run(rules, [reading(1000, 0, tag="alarmed", seq=10**9)], state, first=2000)
    assert levels(told) == [0]


def test_the_spikes_that_are_remembered_fit_in_64_bits():
    assert (
        max(each.le for each in SpikingRule.__annotations__["among"].__metadata__ if isinstance(each, msgspec.Meta))
        <= 64
    )


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xc1", packed(State())[:-1], msgspec.msgpack.encode({"shards": []})])
def test_bytes_that_are_no_state_are_refused(data):
    with pytest.raises(ProtocolError, match="state of rules"):
        restored(data)


# --- speed ----------------------------------------------------------------------------------------------


def twenty():
    """Twenty rules: on each of five quantities a level, a velocity, a validity and a spiking rule."""
    rules = []
    for quantity in ("strain", "tilt_x", "tilt_y", "temperature", "extension"):
        at = {"quantity": quantity, "name": quantity}
        rules += [
            level(**{**at, "name": f"{quantity}-level"}),
            {**VELOCITY, **at, "name": f"{quantity}-velocity", "window_s": 3600, "points": 40, "least": 8},
            {"kind": "validity", **at, "name": f"{quantity}-validity", "high": 1000},
            {"kind": "spiking", **at, "name": f"{quantity}-spiking", "limit": 3},
        ]
    return book(*rules)


def test_twenty_rules_keep_pace_with_2000_readings_a_second():
    rules, state, dice = twenty(), State(), random.Random(1)
    names = [rule.quantity for rule in rules.rules.rules[::4]]
    records = []
    for i in range(4000):
        values = {name: Measure(dice.gauss(0, 1)) for name in dice.sample(names, 1)}
        records.append(Reading(stamp(i / 2000), f"tag-{i % 200}", 1, i, values))
    began = time.process_time()
    for seq, record in enumerate(records):
        state, _ = step(rules, state, ("gw-1", "e1", seq), record)
    assert (time.process_time() - began) / len(records) < 250e-6  # half of what there is
