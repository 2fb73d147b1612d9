"""Levels with hysteresis: each limit is a latch that closes and opens only after enough values in a row."""

from typing import NamedTuple

from twin_client.protocol.rules.settings import Graded


class Latch(NamedTuple):
    """One limit. A run is values in a row that call for the other position; `since` is where it began."""

    on: bool = False
    run: int = 0
    since: int = 0  # microseconds of the state's axis


class Grade(NamedTuple):
    """How one rule stands towards one subject, and the alarm that says so."""

    level: int = 0
    id: str = ""  # of the alarm, while there is one
    latches: tuple[Latch, ...] = ()


CALM = Grade()


def reached(rule: Graded, value: float) -> bool:
    """Whether a value reaches the mildest limit: to a rule that is calm, nothing else matters."""
    return _beyond(rule, value, rule.limits[0]) >= 0


def graded(rule: Graded, grade: Grade, value: float, at: int) -> tuple[Latch, ...]:
    """The latches after a value at `at` microseconds."""
    latches = grade.latches or (Latch(),) * len(rule.limits)
    return tuple(
        _moved(rule, latch, _beyond(rule, value, limit), at) for latch, limit in zip(latches, rule.limits, strict=True)
    )


def level_of(rule: Graded, latches: tuple[Latch, ...]) -> int:
    """The level that the latches stand for: that of the gravest closed one."""
    return max((rule.first + i for i, latch in enumerate(latches) if latch.on), default=0)


def interrupted(grade: Grade) -> Grade:
    """After something that nobody saw: what holds still holds, but no run goes on across it."""
    if not any(latch.run for latch in grade.latches):
        return grade
    return grade._replace(latches=tuple(Latch(latch.on) for latch in grade.latches))


def paused(grade: Grade, unseen: int) -> Grade:
    """After `unseen` microseconds in which a few values were lost: runs go on, but that time is no part of them."""
    if not any(latch.run for latch in grade.latches):
        return grade
    return grade._replace(
        latches=tuple(latch._replace(since=latch.since + unseen) if latch.run else latch for latch in grade.latches)
    )


def pressed(latch: Latch, calls: bool, count: int, seconds: float, at: int) -> Latch:
    """The latch after one more value: it moves once `count` in a row over `seconds` have called for that."""
    if not calls:
        return Latch(latch.on) if latch.run else latch
    since = latch.since if latch.run else at
    run = min(latch.run + 1, count)  # no more is ever asked for
    if run >= count and at - since >= seconds * 1e6:
        return Latch(not latch.on)
    return Latch(latch.on, run, since)


def _moved(rule: Graded, latch: Latch, beyond: float, at: int) -> Latch:
    if latch.on:
        return pressed(latch, beyond < -rule.hysteresis, rule.fall_count, rule.fall_s, at)
    return pressed(latch, beyond >= 0, rule.rise_count, rule.rise_s, at)


def _beyond(rule: Graded, value: float, limit: float) -> float:
    """How far a value lies on the wrong side of a limit; below 0: on the right one."""
    if rule.side == "below":
        return limit - value
    return (abs(value) if rule.side == "either" else value) - limit
