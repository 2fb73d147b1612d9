"""What becomes of one quantity of one subject before any level sees it: is it valid, is it a spike, is it stuck."""

from collections.abc import Sequence
from typing import NamedTuple

from twin_client.protocol.rules.settings import SpikingRule, StuckRule, ValidityRule

ENOUGH = 3  # values, before one can lie far from them


class Sample(NamedTuple):
    """A value and when it was measured, microseconds on the axis."""

    at: int
    value: float


class Series(NamedTuple):
    """What is remembered of a quantity."""

    calibration: int = 0  # of the last value; another one begins everything anew
    heard: int | None = None  # when it last said a number
    recent: tuple[float, ...] = ()  # values that were taken, by which a spike is told
    doubted: Sample | None = None  # which only the next value can confirm
    spikes: int = 0  # a bit for each of the last values, the newest lowest: it was a spike


class Stuck(NamedTuple):
    """A run of values that are the same within a tolerance."""

    low: float
    high: float
    size: int
    since: int


def invalid(rules: Sequence[ValidityRule], value: float) -> bool:
    """Whether one of the rules says that this cannot be."""
    return any(
        (rule.low is not None and value < rule.low) or (rule.high is not None and value > rule.high) for rule in rules
    )


def sifted(rule: SpikingRule, series: Series, sample: Sample) -> tuple[Series, tuple[Sample, ...]]:
    """The series after a sample, and what may be taken now: nothing, the sample, or with it the one in doubt.

    A spike is alone. A second value in a row on the same side of what was before is no spike, and then neither is the
    first: what moves faster than `limit` from value to value, as a slope that fails does, is delayed but never hidden.
    """
    doubted, recent = series.doubted, series.recent
    middle = sorted(recent)[len(recent) // 2] if len(recent) >= ENOUGH else sample.value
    off = sample.value - middle
    taken: tuple[Sample, ...] = (sample,)
    doubt = None
    if abs(off) <= rule.limit:
        told = (series.spikes << 1) if doubted is None else (series.spikes << 2) | 0b10
    elif doubted is None:
        return series._replace(doubted=sample), ()
    elif (doubted.value > middle) == (off > 0):
        taken, told, recent = (doubted, sample), series.spikes << 2, ()
    else:
        taken, told, doubt = (), (series.spikes << 1) | 1, sample
    recent = (*recent, *(each.value for each in taken))[-rule.neighbours :]
    return Series(series.calibration, series.heard, recent, doubt, told & ((1 << rule.among) - 1)), taken


def held(rule: StuckRule, stuck: Stuck | None, sample: Sample) -> tuple[Stuck, bool]:
    """The run after a sample, and whether it is long enough to call the sensor stuck."""
    low = sample.value if stuck is None else min(stuck.low, sample.value)
    high = sample.value if stuck is None else max(stuck.high, sample.value)
    if stuck is None or high - low > rule.tolerance:
        return Stuck(sample.value, sample.value, 1, sample.at), False
    stuck = Stuck(low, high, min(stuck.size + 1, rule.count), stuck.since)
    return stuck, stuck.size >= rule.count and sample.at - stuck.since >= rule.seconds * 1e6
