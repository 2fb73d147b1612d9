"""A radio that loses frames delays what must come in a row, either way; it neither hides an alarm nor makes one."""

import random

import msgspec
import pytest
from stepping import alarms_of, book, every, gap, level, levels, prediction, reading

from twin_client.protocol.records import Gap, Lost

HOUR = 3600


def lossy(values, lost, *, step=10.0, seed=0, tag="tag-7"):
    """A value every `step` seconds, each lost with a chance of `lost`, and owned up to with the next that comes."""
    dice, records, last = random.Random(seed), [], -1
    for number, value in enumerate(values):
        if dice.random() < lost:
            continue
        frame = reading(number * step, value, seq=number, tag=tag)
        if number > last + 1:
            records.append(Gap(frame.at, "radio", lost=(Lost(tag, 1, last + 1, number - 1),)))
        records.append(frame)
        last = number
    return records


def hours(alarm):
    return alarm.at.mono / HOUR / 1e6


RULES = {
    "rise_s": level(limits=[5], rise_s=600),
    "rise_count": level(limits=[5], rise_count=30),
    "stuck": {"kind": "stuck", "name": "dead", "quantity": "strain"},
    "stuck for a time": {"kind": "stuck", "name": "dead", "quantity": "strain", "count": 2, "seconds": 600},
    "validity": {"kind": "validity", "name": "range", "quantity": "strain", "high": 1, "count": 30},
}


@pytest.mark.parametrize("lost", [0.02, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_lost_frames_delay_what_must_come_in_a_row_by_no_more_than_their_share(rule, lost):
    whole = hours(alarms_of(book(rule), lossy([9.0] * 400, 0.0))[0])
    for seed in range(5):
        told = alarms_of(book(rule), lossy([9.0] * 400, lost, seed=seed))
        assert levels(told) == [1]
        assert 0.999 * whole <= hours(told[0]) <= 1.7 * whole / (1 - lost), "later, but neither sooner nor never"


def test_time_in_which_values_were_lost_raises_no_level_and_calms_none():
    two = [reading(0, 9), gap(590, "tag-7", last=10), reading(590, 9)]
    assert alarms_of(book(level(rise_s=300)), two) == []
    assert levels(alarms_of(book(level(rise_s=300)), [*two, *(reading(600 + 50 * i, 9) for i in range(6))])) == [1]
    calmed = [reading(0, 9), reading(10, 0), gap(590, "tag-7", last=10), reading(590, 0)]
    assert levels(alarms_of(book(level(fall_s=300)), calmed)) == [1]


def test_a_value_by_itself_raises_nothing_however_many_are_lost_beside_it():
    for last in (1, 19, 500):
        lone = [reading(0, 0), gap(500, "tag-7", last=last), reading(500, 9), gap(999, "tag-7", last=last)]
        assert alarms_of(book(level(rise_count=2)), [*lone, reading(999, 0)]) == []
        assert alarms_of(book(level(rise_s=1)), [*lone, reading(999, 0)]) == []


@pytest.mark.parametrize("lost", [0.0, 0.1, 0.5])
def test_an_alarm_ends_on_a_bad_radio_too_and_not_before_its_time(lost):
    rules = book(level(limits=[5], fall_s=600, fall_count=20))
    for seed in range(5):
        told = alarms_of(rules, lossy([9.0] * 30 + [0.0] * 1000, lost, seed=seed))
        assert levels(told) == [1, 0]
        assert 890 <= told[1].at.mono / 1e6 <= 300 + 1.7 * 600 / (1 - lost)


def test_a_hole_as_large_as_the_rule_says_begins_the_end_of_an_alarm_anew():
    rules = book(level(limits=[5], fall_count=3))
    for last, ends in ((19, [1, 0]), (20, [1])):
        calm = [reading(0, 9), reading(10, 0), reading(20, 0), gap(300, "tag-7", last=last), reading(300, 0)]
        assert levels(alarms_of(rules, calm)) == ends


def test_an_unknown_number_of_lost_frames_is_a_large_one():
    unknown = [*every(10, [9, 9]), gap(19, "tag-7", first=None), reading(20, 9)]
    assert alarms_of(book(level(rise_count=3, lost=1000)), unknown) == []


def test_lost_images_do_not_hide_a_crack():
    sure = level(name="sure", quantity="crack_probability", limits=[0.5], hysteresis=0.1, rise_count=3)
    seen = [each for t in range(0, 240, 60) for each in (gap(t, "east", last=1), prediction(t, 0.9))]
    assert levels(alarms_of(book(sure), seen)) == [1]


def test_spikes_are_kept_out_although_frames_are_lost_and_a_jump_is_not_hidden():
    spiking = {"kind": "spiking", "name": "spikes", "quantity": "strain", "limit": 3, "most": 30}
    dice = random.Random(3)
    spikes = [50.0 if i % 7 == 6 else dice.gauss(0, 0.1) for i in range(700)]
    for seed in range(5):
        assert alarms_of(book(level(), spiking), lossy(spikes, 0.1, seed=seed)) == []
        told = alarms_of(book(level(), spiking), lossy([0.0] * 50 + [50.0] * 20, 0.3, seed=seed))
        assert levels(told) == [2]
    broken = lossy(spikes, 0.1)
    assert alarms_of(book(level(), {**spiking, "lost": 1}), broken) != [], "what is lost at once begins them anew"


def test_a_velocity_that_must_be_seen_twice_is_told_on_a_bad_radio():
    rule = {
        **{"kind": "velocity", "name": "creep", "quantity": "strain", "limits": [1.0], "hysteresis": 0.2},
        **{"window_s": 3600, "rise_count": 3},
    }
    for seed in range(3):
        told = alarms_of(book(rule), lossy([1.5 * i / 60 for i in range(150)], 0.2, step=60.0, seed=seed))
        assert levels(told) == [1]


def test_how_little_is_little_can_be_said_of_every_rule_that_waits_for_values_in_a_row():
    for rule in RULES.values():
        few = [each for i in range(200) for each in (gap(60 * i, "tag-7", last=3), reading(60 * i, 9.0))]
        assert levels(alarms_of(book({**rule, "lost": 4}), few)) == [1]
        assert alarms_of(book({**rule, "lost": 3}), few) == []
        with pytest.raises(ValueError, match="lost"):
            book({**rule, "lost": 0})


def test_a_gap_is_of_its_own_subject_alone():
    rules = book(level(rise_count=3))
    other = [*every(10, [9, 9]), msgspec.structs.replace(gap(19, "tag-8", last=500)), reading(20, 9)]
    assert levels(alarms_of(rules, other)) == [1]
