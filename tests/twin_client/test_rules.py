"""Rules say what they promise: levels, velocity, failure, and sensors that are invalid, spiking, stuck or missing."""

import math
import random

import msgspec
import pytest
from stepping import alarms_of, book, every, gap, health, level, levels, prediction, reading, run, stamp

from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.records import Measure, Reading
from twin_client.protocol.rules import (
    Rules,
    SensorCalibration,
    State,
    calibrated,
    calibrations_of,
    rules_of,
)

# --- sensor calibration ---------------------------------------------------------------------------------


def read(calibration, raw):
    tag = Reading(stamp(0), "tag-7", 1, 1, {"strain": Measure(raw, 99.0, 7)})
    return calibrated(calibrations_of(calibration), tag).values["strain"]


def test_a_value_is_computed_from_the_raw_number_whatever_was_said_before():
    curve = {"tag-7": {"strain": {"version": 3, "coefficients": [1, 2, 0.5], "low": -10, "high": 10}}}
    assert read(curve, 4.0) == Measure(4.0, 1 + 8 + 8, 3)
    assert read(curve, 0.0) == Measure(0.0, 1.0, 3)
    assert read(curve, None) == Measure(None, None, 3)
    assert read(curve, 10.5) == Measure(10.5, None, 3)
    assert read({"tag-8": curve["tag-7"]}, 4.0) == Measure(4.0, 4.0, 0)


def test_a_curve_that_leads_beyond_all_numbers_gives_no_value():
    assert read({"tag-7": {"strain": {"version": 1, "coefficients": [0, 0, 1]}}}, 1e300) == Measure(1e300, None, 1)


@pytest.mark.parametrize(
    ("curve", "fault"),
    [
        ({"version": 0}, "strain.version"),
        ({"version": 1, "coefficients": []}, "strain.coefficients"),
        ({"version": 1, "low": 2, "high": 1}, "low"),
        ({"slope": 2}, "strain.slope"),
    ],
)
def test_a_curve_that_is_none_is_refused_by_the_name_of_its_field(curve, fault):
    with pytest.raises(ProtocolError, match=fault):
        calibrations_of({"tag-7": {"strain": curve}})


def test_another_curve_begins_the_trend_anew():
    rules = book({**VELOCITY, "limits": [5.0]})
    before = [reading(60 * i, 0.01 * i) for i in range(40)]
    curves = calibrations_of({"tag-7": {"strain": {"version": 1, "coefficients": [50, 1]}}})
    after = [calibrated(curves, reading(60 * i, 0.01 * i)) for i in range(40, 80)]
    assert alarms_of(rules, before + after) == []
    unseen = [reading(60 * i, 50 + 0.01 * i) for i in range(40, 80)]
    assert alarms_of(rules, before + unseen) != []


# --- levels ---------------------------------------------------------------------------------------------


def test_an_alarm_keeps_its_id_from_its_onset_until_it_is_over():
    told = alarms_of(book(level()), every(10, [0, 6, 11, 7, 0, 6]))
    assert levels(told) == [1, 2, 1, 0, 1]
    assert {alarm.id for alarm in told[:4]} == {"gw-1/e1/2/strain-high@1"}
    assert told[4].id == "gw-1/e1/6/strain-high@1"
    assert [(alarm.value, alarm.limit) for alarm in told[:4]] == [(6, 5), (11, 10), (7, 10), (0, 5)]
    assert {(alarm.subject, alarm.quantity, alarm.version) for alarm in told} == {("tag-7", "strain", 1)}


def test_an_alarm_says_what_is_to_be_done():
    told = alarms_of(book(level(text="call the geotechnician")), every(10, [0, 6, 0]))
    assert [alarm.text for alarm in told] == ["call the geotechnician", ""]


def test_a_value_that_trembles_at_the_limit_does_not_chatter():
    dice = random.Random(1)
    values = [5 + dice.uniform(-0.9, 0.9) for _ in range(500)]
    assert levels(alarms_of(book(level()), every(1, values))) == [1]
    assert len(alarms_of(book(level(hysteresis=0.01)), every(1, values))) > 50


def test_a_level_waits_for_its_count_and_its_time_in_a_row():
    rules = book(level(rise_count=3, rise_s=25))
    assert alarms_of(rules, every(10, [6, 6, 6, 0, 6, 6, 6])) == []  # three, but over 20 s
    assert levels(alarms_of(rules, every(10, [6, 6, 6, 6]))) == [1]
    assert alarms_of(rules, every(100, [6, 6])) == []  # long, but two
    slow = book(level(fall_count=2, fall_s=15))
    assert levels(alarms_of(slow, every(10, [6, 0, 0, 6, 0, 0]))) == [1]
    assert levels(alarms_of(slow, every(10, [6, 0, 0, 0]))) == [1, 0]


def test_a_grave_level_may_need_to_be_seen_while_a_mild_one_holds():
    told = alarms_of(book(level(rise_count=3)), every(10, [6, 11, 6, 11, 11, 11]))
    assert levels(told) == [1, 2]
    assert [alarm.at for alarm in told] == [stamp(20), stamp(50)]


def test_limits_lie_below_or_on_either_side_if_the_rule_says_so():
    below = book(level(limits=[-5, -10], side="below"))
    assert levels(alarms_of(below, every(10, [0, -5, -10.5, -8.5, -4.5, -3.5]))) == [1, 2, 1, 0]
    either = book(level(side="either"))
    assert levels(alarms_of(either, every(10, [0, -6, 6, 12, 0]))) == [1, 2, 0]


def test_zero_is_a_value_and_null_and_absence_are_none():
    rules = book(level(limits=[-1], side="above", rise_count=2))
    assert levels(alarms_of(rules, every(10, [-5, 0, 0]))) == [1]
    assert alarms_of(rules, every(10, [None, None, None])) == []
    high = book(level(fall_count=2))
    assert levels(alarms_of(high, every(10, [6, None, None, ..., ...]))) == [1]  # what says nothing calms nobody


def test_rules_mind_the_subjects_that_they_name():
    rules = book(level(subjects=["tag-1?", "tag-9"]))
    tags = ("tag-1", "tag-12", "tag-9", "tag-99")
    assert {alarm.subject for alarm in alarms_of(rules, [reading(1, 6, tag=tag) for tag in tags])} == {
        "tag-12",
        "tag-9",
    }


def test_cracks_have_levels_on_probability_and_on_area():
    rules = book(
        level(name="sure", quantity="crack_probability", limits=[0.5, 0.9], hysteresis=0.05),
        level(name="large", quantity="crack_area", limits=[0.01, 0.1], hysteresis=0.002),
    )
    told = alarms_of(
        rules, [prediction(0, 0.2), prediction(60, 0.95, positive=100), prediction(120, 0.95, positive=600)]
    )
    assert [(alarm.rule, alarm.level, alarm.subject) for alarm in told] == [
        ("sure", 2, "east"),
        ("large", 1, "east"),
        ("large", 2, "east"),
    ]
    assert told[-1].value == pytest.approx(600 / 5000)


def test_a_tag_and_a_camera_of_one_name_are_two():
    rules = book(level(), level(name="sure", quantity="crack_probability", limits=[0.5], hysteresis=0.05))
    told = alarms_of(rules, [reading(0, 6, tag="east"), prediction(1, 0.9), reading(2, 0, tag="east")])
    assert [(alarm.rule, alarm.level) for alarm in told] == [("strain-high", 1), ("sure", 1), ("strain-high", 0)]


@pytest.mark.parametrize("probability", [math.nan, math.inf])
def test_what_is_no_probability_raises_nothing(probability):
    rules = book(level(name="sure", quantity="crack_probability", limits=[0.5], hysteresis=0.05))
    assert alarms_of(rules, [prediction(0, probability)]) == []


# --- trends ---------------------------------------------------------------------------------------------

VELOCITY = {
    "kind": "velocity",
    "name": "creep",
    "quantity": "strain",
    "limits": [1.0, 2.0],
    "hysteresis": 0.2,
    "window_s": 3600,
}


def creeping(per_hour, noise=0.02, *, count=120, start=0, seed=1, step=60, value=0.0):
    dice = random.Random(seed)
    return [reading(start + step * i, value + per_hour * i * step / 3600 + dice.gauss(0, noise)) for i in range(count)]


def test_a_linear_creep_is_told_by_its_velocity_in_the_unit_that_was_asked_for():
    (told,) = alarms_of(book(VELOCITY), creeping(1.5))
    assert (told.level, told.value) == (1, pytest.approx(1.5, rel=0.15))
    (told,) = alarms_of(book({**VELOCITY, "per": "day", "limits": [30], "hysteresis": 2}), creeping(-1.5))
    assert told.value == pytest.approx(-36, rel=0.15)
    assert alarms_of(book(VELOCITY), creeping(0.7)) == []


def test_spikes_do_not_bend_a_velocity():
    records = creeping(0.7)
    for i in range(7, 120, 9):
        records[i] = reading(60 * i, 500.0)
    assert alarms_of(book(VELOCITY), records) == []


def test_null_is_no_point_of_a_trend():
    records = creeping(0.0, value=100.0)
    nulls = [reading(60 * i + 30, None) for i in range(120)]
    assert alarms_of(book(VELOCITY), sorted(records + nulls, key=lambda record: record.at.mono)) == []


def test_a_gap_that_names_the_tag_and_a_long_silence_begin_a_trend_anew():
    before, after = creeping(0.0), creeping(0.0, start=7200, value=30.0)
    assert 2 in levels(alarms_of(book(VELOCITY), before + after))  # a jump of 30 looks like a velocity
    assert alarms_of(book(VELOCITY), [*before, gap(7190, "tag-7", last=20), *after]) == []
    assert alarms_of(book(VELOCITY), [*before, gap(7190, "tag-8", last=20), *after]) != []
    late = creeping(0.0, start=7200 + 1000, value=30.0)
    assert alarms_of(book(VELOCITY), before + late) == []


def test_what_must_come_in_a_row_begins_anew_only_where_as_much_was_lost_at_once_as_the_rule_says():
    stuck = {"kind": "stuck", "name": "dead", "quantity": "strain", "count": 3}
    for more, last, told in (({}, 2, 2), ({}, 19, 2), ({}, 20, 0), ({"lost": 1}, 1, 0), ({"lost": 30}, 29, 2)):
        rules = book(level(rise_count=3, **more), {**stuck, **more})
        assert len(alarms_of(rules, every(10, [6, 6, 6]))) == 2
        lossy = [*every(10, [6, 6]), gap(19, "tag-7", last=last), reading(20, 6)]
        assert len(alarms_of(rules, lossy)) == told, (more, last)


def test_a_velocity_is_that_of_its_window_however_seldom_a_tag_speaks():
    seldom = [reading(300 * i, max(0, i - 28) * 1.5 / 12) for i in range(44)]
    assert levels(alarms_of(book({**VELOCITY, "limits": [1.4]}), seldom)) == [1]


def test_a_trend_may_outlive_the_loss_of_single_frames():
    lossy = [each for i, one in enumerate(creeping(1.5)) for each in ((one, gap(60 * i, "tag-7")) if i % 5 else (one,))]
    assert levels(alarms_of(book(VELOCITY), lossy)) == [1]
    assert alarms_of(book({**VELOCITY, "lost": 1}), lossy) == []
    unknown = [*creeping(0.0), gap(7190, "tag-7", first=None), *creeping(0.0, start=7200, value=30.0)]
    assert alarms_of(book({**VELOCITY, "lost": 1000}), unknown) == []


def test_a_lost_trend_lowers_no_level():
    told = alarms_of(book(VELOCITY), [*creeping(1.5), gap(7200, "tag-7"), *creeping(1.5, count=8, start=7260)])
    assert levels(told) == [1]


FORECAST = {
    "kind": "forecast",
    "name": "failure",
    "quantity": "strain",
    "limits": [24.0, 6.0],
    "hysteresis": 2.0,
    "window_s": 40 * 3600,
    "floor": 0.05,
}


def failing(at_h, until_h, noise=0.1, seed=1):
    """A slope that fails at `at_h`, every ten minutes."""
    dice = random.Random(seed)
    return [
        reading(t, -10 * math.log(at_h - t / 3600) + dice.gauss(0, noise)) for t in range(0, int(until_h * 3600), 600)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_a_failure_is_foretold_in_time_and_its_level_rises(seed):
    told = alarms_of(book(FORECAST), failing(60, 58, seed=seed))
    assert levels(told)[-2:] == [1, 2] or levels(told)[-1] == 2
    last = told[-1]
    left = 60 - last.at.mono / 3.6e9
    assert last.value == pytest.approx(left, abs=1.5)
    assert 4 < left < 9
    assert last.text.startswith("failure in ")


def test_steady_creep_foretells_no_failure():
    assert alarms_of(book({**FORECAST, "rise_count": 2}), creeping(0.3, 0.1, count=600, step=600)) == []


# --- sensors that cannot be believed --------------------------------------------------------------------


def test_invalid_values_raise_no_level_but_an_alarm_of_their_own():
    rules = book(level(), {"kind": "validity", "name": "range", "quantity": "strain", "high": 100, "count": 2})
    told = alarms_of(rules, every(10, [1, 900, 1, 900, 900, 900, 1, 1]))
    assert [(alarm.rule, alarm.level) for alarm in told] == [("range", 1), ("range", 0)]


def test_a_number_that_its_calibration_cannot_read_is_invalid():
    rules = book({"kind": "validity", "name": "range", "quantity": "strain", "count": 2})
    curves = calibrations_of({"tag-7": {"strain": {"version": 1, "high": 100}}})
    told = alarms_of(rules, [calibrated(curves, each) for each in every(10, [1, 900, 900, None, 1, 1])])
    assert levels(told) == [1, 0]


SPIKING = {"kind": "spiking", "name": "spikes", "quantity": "strain", "limit": 3, "most": 4, "among": 20}


def test_a_single_value_far_off_raises_no_level_and_a_true_jump_does():
    rules = book(level(), SPIKING)
    assert alarms_of(rules, every(10, [0, 0, 0, 0, 50, 0, 0, -50, 50, 0, 0])) == []
    told = alarms_of(rules, every(10, [0, 0, 0, 0, 50, 50]))
    assert [(alarm.level, alarm.at) for alarm in told] == [(2, stamp(50))]


def test_what_moves_faster_than_a_spike_is_never_hidden():
    values = [0, 0, 0, *(4.0 * i for i in range(1, 9))]
    assert levels(alarms_of(book(level(limits=[20]), SPIKING), every(10, values))) == [1]


def test_many_spikes_are_an_alarm_until_they_are_half_as_many():
    calm = [0.0] * 5
    spikes = [0.0, 50.0] * 4
    told = alarms_of(book(SPIKING), every(10, calm + spikes + [0.0] * 30))
    assert levels(told) == [1, 0]
    assert told[0].value == 4


def test_a_stuck_sensor_is_found_and_noise_or_a_slow_drift_is_not():
    rules = book({"kind": "stuck", "name": "dead", "quantity": "strain", "tolerance": 0.1, "count": 5, "seconds": 60})
    assert levels(alarms_of(rules, every(20, [1.0, 1.05, 1.0, 1.05, 1.0, 1.0, 3.0]))) == [1, 0]
    assert alarms_of(rules, every(10, [1.0] * 6)) == []  # not long enough
    assert alarms_of(rules, every(60, [1.0] * 4)) == []  # not often enough
    assert alarms_of(rules, every(20, [i * 0.03 for i in range(50)])) == []


MISSING = {"kind": "missing", "name": "silent", "seconds": 600}


def ticks(first, last):
    return [health(t) for t in range(first, last, 60)]


def test_a_silent_tag_is_found_by_any_later_record_and_is_back_with_its_next():
    rules = book(MISSING, paired=["tag-7"])
    told = alarms_of(rules, [reading(0, 1), *ticks(60, 1200), reading(1300, 1)])
    assert [(alarm.level, alarm.subject, alarm.at) for alarm in told] == [
        (1, "tag-7", stamp(600)),
        (0, "tag-7", stamp(1300)),
    ]
    assert alarms_of(rules, [each for t in range(0, 6000, 500) for each in (reading(t, 1), health(t + 60))]) == []


def test_a_tag_that_never_spoke_is_missing_too():
    rules = book({**MISSING, "subjects": ["tag-1*", "tag-x"]}, paired=["tag-1", "tag-2"])
    told = alarms_of(rules, ticks(0, 1200))
    assert [alarm.subject for alarm in told] == ["tag-1", "tag-x"]
    assert len({alarm.id for alarm in told}) == 2


def test_a_quantity_can_be_missing_while_its_tag_speaks():
    rules = book({**MISSING, "quantity": "strain"}, paired=["tag-7"])
    talk = [reading(t, None) if t % 120 else reading(t, 20, quantity="temperature") for t in range(60, 1200, 60)]
    told = alarms_of(rules, [reading(0, 1), *talk, reading(1300, 0.0)])
    assert [(alarm.level, alarm.quantity) for alarm in told] == [(1, "strain"), (0, "strain")]
    assert told[1].at == stamp(1300)


def test_no_tag_is_missed_while_the_gateway_itself_was_silent_or_off():
    rules = book(MISSING, paired=["tag-7"])
    assert alarms_of(rules, [reading(0, 1), *ticks(50_000, 50_500), reading(50_520, 1)]) == []
    rebooted = [health(t, boot="boot-2", up=50_000) for t in range(50_000, 50_500, 60)]
    assert alarms_of(rules, [reading(0, 1), *rebooted]) == []
    assert levels(alarms_of(rules, [reading(0, 1), *ticks(50_000, 50_700)])) == [1]


def test_a_tag_that_is_paired_or_a_rule_that_begins_later_is_given_its_time():
    state, _ = run(book(paired=[]), ticks(0, 6000))
    state, told = run(book(MISSING, paired=["tag-7"]), ticks(6000, 6500), state, first=200)
    assert told == []
    state, told = run(book(MISSING, paired=["tag-7"]), ticks(6540, 6720), state, first=300)
    assert levels(told) == [1]
    state, told = run(book(MISSING, paired=[]), ticks(6720, 6800), state, first=400)
    assert levels(told) == [0]


# --- settings and versions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        (level(limits=[5, 5]), "limits"),
        (level(limits=[5, 10], side="below"), "limits"),
        (level(limits=[]), "limits"),
        (level(limits=[1, 2, 3, 4, 5]), "limits"),
        (level(limits=[math.nan]), "limits"),
        (level(limits=[0.5], side="either"), "limits"),
        (level(limits=[1, 2], first=4), "first"),
        (level(hysteresis=0), "hysteresis"),
        (level(hysteresis=-1), "hysteresis"),
        (level(rise_count=0), "rise_count"),
        (level(subjects=[]), "subjects"),
        (level(subjects=["a/b"]), "subjects"),
        (level(name="a b"), "name"),
        (level(limit=3), "limit"),
        ({**VELOCITY, "window_s": 0}, "window_s"),
        ({**VELOCITY, "least": 50}, "least"),
        ({**VELOCITY, "least_s": 3500}, "least_s"),
        ({**VELOCITY, "gap_s": 3500}, "gap_s"),
        ({**FORECAST, "limits": [6, 24]}, "limits"),
        ({**FORECAST, "floor": 0}, "floor"),
        ({**FORECAST, "side": "above"}, "side"),
        ({**SPIKING, "most": 15}, "most"),
        ({"kind": "validity", "name": "v", "quantity": "strain", "low": 2, "high": 1}, "low"),
        ({"kind": "other", "name": "v"}, "kind"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused_by_the_name_of_its_field(rule, fault):
    with pytest.raises(ProtocolError, match=rf"rules\[1\].*({fault})"):
        rules_of({"rules": [level(name="good"), rule]})


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ProtocolError, match=r"rules\[0\].hysteresis.*rules\[1\].window_s"):
        rules_of({"rules": [level(hysteresis=0), {**VELOCITY, "window_s": 0}]})


def test_two_rules_of_one_name_are_refused():
    with pytest.raises(ProtocolError, match="strain-high"):
        rules_of({"rules": [level(), level(limits=[7])]})


def test_rules_come_back_from_their_own_json():
    rules = rules_of({"version": 3, "rules": [level(), VELOCITY, FORECAST, SPIKING, MISSING], "paired": ["tag-7"]})
    assert msgspec.json.decode(msgspec.json.encode(rules), type=Rules) == rules
    curve = SensorCalibration(2, (1.0, 2.0), high=4.0)
    assert msgspec.json.decode(msgspec.json.encode(curve), type=SensorCalibration) == curve


def test_alarms_of_a_changed_rule_end_and_those_of_an_unchanged_one_go_on():
    old = book(level(), level(name="other"), level(name="gone"))
    state, told = run(old, every(10, [6]))
    assert len(told) == 3
    new = book(level(version=2, limits=[50]), level(name="other"))
    state, told = run(new, [health(20)], state, first=2)
    assert [(alarm.rule, alarm.version, alarm.level, alarm.id) for alarm in told] == [
        ("strain-high", 1, 0, "gw-1/e1/1/strain-high@1"),
        ("gone", 1, 0, "gw-1/e1/1/gone@1"),
    ]
    assert all(alarm.text for alarm in told)
    _, told = run(new, [reading(30, 0)], state, first=3)
    assert [(alarm.rule, alarm.id) for alarm in told] == [("other", "gw-1/e1/1/other@1")]


@pytest.mark.parametrize("record", [health(20), gap(20, "tag-7"), reading(20, 7), reading(20, 0)])
def test_an_alarm_of_a_changed_rule_ends_once_whatever_comes_first(record):
    state, _ = run(book(level()), every(10, [6]))
    state, told = run(book(level(version=2)), [record], state, first=2)
    assert (told[0].level, told[0].version) == (0, 1)
    assert not any(alarm.version == 1 for alarm in told[1:])
    _, told = run(book(level(version=2)), [reading(30, 0)], state, first=3)
    assert not any(alarm.version == 1 for alarm in told)


def test_no_rules_say_nothing():
    assert alarms_of(book(), [*every(10, [1, 2]), *ticks(60, 600)]) == []
    assert rules_of({}) == Rules()
    assert State() == State()
