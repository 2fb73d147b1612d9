"""A rule that is accepted can speak, and an alarm that it raises can end."""

import random
import textwrap
import tomllib

import pytest
from stepping import alarms_of, health, level, levels, prediction, reading, run

from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.rules import Book, rules_of, settings
from twin_client.protocol.rules.fits import FEWEST
from twin_client.protocol.tags import QUANTITIES

VELOCITY = {
    **{"kind": "velocity", "name": "creep", "quantity": "strain", "limits": [1.0], "hysteresis": 0.1},
    **{"window_s": 3600},
}
FORECAST = {**VELOCITY, "kind": "forecast", "name": "failure", "floor": 0.1, "limits": [12.0]}


def book(*rules, tags=None, **more):
    return Book(rules_of({"rules": list(rules), **more}), tags)


# --- trends ---------------------------------------------------------------------------------------------


def rising(period, hours=4.0, *, jitter=0.0, lost=0.0, seed=0):
    """100 an hour, said every `period` seconds or so."""
    dice = random.Random(seed)
    times = [period * i + dice.uniform(-jitter, jitter) for i in range(1, int(hours * 3600 / period))]
    return [reading(t, t / 36, seq=i) for i, t in enumerate(times) if dice.random() >= lost]


@pytest.mark.parametrize(("points", "least"), [(6, 6), (8, 8), (10, 10), (40, 8), (40, 31), (40, 40), (60, 60)])
@pytest.mark.parametrize("period", [7, 59, 60, 61, 89, 90])
def test_a_velocity_is_told_whatever_the_points_and_however_the_tag_s_period_lies_to_them(points, least, period):
    for how in ({}, {"jitter": period / 3, "lost": 0.05}):
        told = alarms_of(book({**VELOCITY, "points": points, "least": least}), rising(period, **how))
        assert levels(told) == [1]
        assert told[0].value == pytest.approx(100, rel=1e-6)


def test_a_velocity_is_told_once_the_points_span_what_the_rule_asks_for():
    for points, least_s in ((8, 2800), (40, 1800), (120, 900)):
        (told,) = alarms_of(book({**VELOCITY, "points": points, "least_s": least_s}), rising(10))
        assert least_s <= told.at.mono / 1e6 <= least_s + 2 * 3600 / points + 20


def test_the_window_holds_no_more_than_it_says_and_all_of_that():
    turning = [reading(10 * i, max(0, i - 360) / 3.6, seq=i) for i in range(1000)]  # 100 an hour, from an hour on
    for points in (8, 40):
        told = alarms_of(book({**VELOCITY, "points": points, "limits": [99.0], "hysteresis": 1}), turning)
        assert 3600 + 0.7 * 3600 <= told[0].at.mono / 1e6 <= 7200 + 3600 / points + 10


def test_a_forecast_waits_for_as_many_points_as_its_law_needs_and_is_refused_where_these_never_come():
    kept = rules_of({"rules": [{**FORECAST, "points": 8, "least": 4}]}).rules[0]
    assert kept.enough == FEWEST
    with pytest.raises(ProtocolError, match=r"points: .*take 7 or more"):
        rules_of({"rules": [{**FORECAST, "points": 6, "least": 6}]})


# --- alarms end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantity", ["crack_probability", "crack_area", "fall", "faint", "motion_still"])
def test_a_hysteresis_that_no_value_can_fall_by_is_refused_in_one_line_that_says_why(quantity):
    for hysteresis in (0.5, 0.9):
        with pytest.raises(ProtocolError, match=r"hysteresis: .* is never below 0, .*0\.5.*\Z") as refused:
            book(level(quantity=quantity, limits=[0.5], hysteresis=hysteresis))
        assert "\n" not in str(refused.value)
    assert book(level(quantity=quantity, limits=[0.5], hysteresis=0.49))
    assert book(level(quantity=quantity, limits=[0.5], hysteresis=0.9, side="below"))
    assert book(level(quantity="strain", limits=[0.5], hysteresis=0.9)), "what can be below 0 can fall"


def test_the_largest_hysteresis_that_is_taken_lets_the_alarm_end():
    rules = book(level(quantity="crack_probability", limits=[0.5], hysteresis=0.499))
    assert levels(alarms_of(rules, [prediction(0, 0.9), prediction(60, 0.0)])) == [1, 0]


EVERY_GRADE = (
    level(limits=[5]),
    {"kind": "stuck", "name": "dead", "quantity": "strain", "count": 2},
    {"kind": "missing", "name": "mute", "seconds": 100, "quantity": "load"},
    level(name="waiting", limits=[5], rise_count=9),
)


def test_all_alarms_of_a_tag_that_is_unpaired_end_once_and_those_of_others_stand():
    sure = level(name="sure", quantity="crack_area", limits=[0.1], hysteresis=0.01)
    records = [reading(60 * i, 9, tag=tag) for i in range(4) for tag in ("tag-1", "tag-2")]
    rules = book(*EVERY_GRADE, sure, paired=["tag-1"], tags=["tag-1", "tag-2"])
    state, told = run(rules, [*records, prediction(200, 0.9, positive=4000)])
    assert sorted((alarm.subject, alarm.rule) for alarm in told) == [
        *(("east", "sure"), ("tag-1", "dead"), ("tag-1", "mute"), ("tag-1", "strain-high")),
        *(("tag-2", "dead"), ("tag-2", "strain-high")),
    ]
    for left in ("tag-1", "tag-2"):
        stays = ({"tag-1", "tag-2"} - {left}).pop()
        fewer = book(*EVERY_GRADE, sure, paired=[stays], tags=[stays])
        after, over = run(fewer, [health(250), health(260)], state, first=50)
        began = {(alarm.subject, alarm.rule): alarm.id for alarm in told if alarm.subject == left}
        assert {(alarm.subject, alarm.rule): alarm.id for alarm in over} == began
        assert {(alarm.level, alarm.text) for alarm in over} == {(0, "the tag is not paired any more")}
        assert not after.subject(left).grades, "a run of it is forgotten too"
        assert after.subject(stays).grades == state.subject(stays).grades or stays == "tag-2"
        assert after.subject("/east").grades


def test_who_does_not_know_which_tags_are_paired_ends_no_alarm_for_that():
    rules = [level(limits=[5])]
    state, told = run(book(*rules, paired=["tag-7"]), [reading(0, 9)])
    assert levels(told) == [1]
    assert run(book(*rules, paired=[]), [health(10)], state, first=2)[1] == []


def test_a_tag_that_a_rule_waits_for_by_name_stays_missed_although_it_is_unpaired():
    missing = {"kind": "missing", "name": "silent", "seconds": 100, "subjects": ["tag-1"]}
    ticks = [health(60 * i) for i in range(5)]
    state, told = run(book(missing, tags=["tag-1"]), ticks)
    assert levels(told) == [1]
    assert run(book(missing, tags=[]), [health(300)], state, first=9)[1] == []


# --- what is kept, what is said -------------------------------------------------------------------------

DIGESTS = {  # as they lie on the card of a gateway whose rules had no `lost` yet
    **{"a": 2806691626, "b": 1897380044, "c": 2201448672, "d": 1459828291},
    **{"e": 2657781586, "f": 2973335927, "g": 3764407477, "h": 676748009},
}


def test_rules_stay_the_ones_they_were_when_a_gateway_is_updated():
    at = {"quantity": "strain"}
    below = {"kind": "level", "name": "b", **at, "limits": [-5.0], "hysteresis": 1, "side": "below", "rise_s": 60}
    rules = [
        {"kind": "level", "name": "a", **at, "limits": [5, 10], "hysteresis": 1},
        {**below, "subjects": ["t*"], "text": "x"},
        {"kind": "stuck", "name": "c", **at},
        {"kind": "validity", "name": "d", **at, "high": 3},
        {"kind": "spiking", "name": "e", **at, "limit": 3},
        {"kind": "missing", "name": "f", "seconds": 60},
        {"kind": "velocity", "name": "g", **at, "limits": [1.0], "hysteresis": 0.1, "window_s": 3600},
        {"kind": "forecast", "name": "h", **at, "limits": [48.0], "hysteresis": 1, "window_s": 3600, "floor": 1},
    ]
    found = {name: digest for name, (_, digest) in book(*rules).digests.items() if name}
    assert found == DIGESTS
    assert book({**rules[0], "lost": 5}).digests["a"] != book(rules[0]).digests["a"], (
        "another tolerance is another rule"
    )


def test_the_example_in_the_rules_own_words_is_a_rule_on_what_tags_send():
    words = settings.__doc__.split("\n\n")[1]
    rules = rules_of(tomllib.loads(textwrap.dedent(words))).rules
    assert rules[0].quantity in QUANTITIES.values()
