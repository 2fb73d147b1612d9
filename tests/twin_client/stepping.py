"""Records by the second and the rules that judge them, for the tests of the rules."""

from collections.abc import Iterable

from twin_client.protocol.records import (
    Alarm,
    ClockQuality,
    Gap,
    Health,
    Lost,
    Measure,
    Prediction,
    Reading,
    Record,
    Stamp,
)
from twin_client.protocol.rules import Book, State, rules_of, step

SECOND = 1_000_000
WALL = 1_750_000_000 * SECOND


def stamp(t, *, wall=None, boot="boot-1", clock=ClockQuality.NETWORK, up=0.0) -> Stamp:
    """At `t` seconds; `up`: when the boot began."""
    return Stamp(WALL + round((t if wall is None else wall) * SECOND), round((t - up) * SECOND), boot, clock)


def reading(t, value, *, tag="tag-7", quantity="strain", seq=None, at=None, tag_boot=1, **more) -> Reading:
    """A value as an uncalibrated tag sends it; None: null."""
    number = round(t * 1000) if seq is None else seq
    return Reading(at or stamp(t, **more), tag, tag_boot, number, {quantity: Measure(value, value)})


def health(t, **more) -> Health:
    return Health(stamp(t, **more))


def gap(t, *subjects, first=1, last=2) -> Gap:
    return Gap(stamp(t), "radio", lost=tuple(Lost(subject, 1, first, last) for subject in subjects))


def prediction(t, probability, *, positive=0, camera="east") -> Prediction:
    return Prediction(stamp(t), camera, round(t), "m", probability, 0.5, 100, 50, positive)


def book(*rules, **more) -> Book:
    return Book(rules_of({"rules": list(rules), **more}))


def level(**more):
    return {"kind": "level", "name": "strain-high", "quantity": "strain", "limits": [5, 10], "hysteresis": 1, **more}


def run(rules: Book, records: Iterable[Record], state: State | None = None, first=1) -> tuple[State, list[Alarm]]:
    """Step over records, numbered from `first`."""
    state, told = state or State(), []
    for seq, record in enumerate(records, first):
        state, alarms = step(rules, state, ("gw-1", "e1", seq), record)
        told += alarms
    return state, told


def alarms_of(rules: Book, records: Iterable[Record]) -> list[Alarm]:
    return run(rules, records)[1]


def levels(told: Iterable[Alarm]) -> list[int]:
    return [alarm.level for alarm in told]


def every(seconds, values, **more) -> list[Reading]:
    """One value after the other; `...`: nothing is sent."""
    return [reading(i * seconds, value, **more) for i, value in enumerate(values) if value is not ...]
