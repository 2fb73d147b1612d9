"""What a site's rules may say: one struct for each kind of rule, and `Rules`, the versioned set of them.

    [[rules]]
    kind = "level"              # or velocity, forecast, validity, stuck, spiking, missing
    name = "crack-opening"
    quantity = "extensometer"
    subjects = ["tag-1*"]
    limits = [5.0, 10.0, 20.0]  # levels 1, 2 and 3
    hysteresis = 0.5

A rule with another `version`, or changed in any other way, is another rule: alarms of the old one end.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, get_args

import msgspec

from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.orders import Name
from twin_client.protocol.rules.fits import FEWEST
from twin_client.protocol.site import faults

HIGHEST = 4  # level of a TARP
LOST = 20  # numbers that a Gap names at once, for what must come in a row to begin anew: a radio loses single frames
NOT_NEGATIVE = ("crack_probability", "crack_area", "fall", "faint", "motion", "motion_level", "motion_still")

Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e8)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e12)]
Level = Annotated[int, msgspec.Meta(ge=1, le=HIGHEST)]
Count = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
Version = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Pattern = Annotated[
    str,
    msgspec.Meta(pattern=r"\A[A-Za-z0-9_.:*?-]{1,64}\Z", description="a name, in which * and ? stand for any"),
]
Limits = Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=HIGHEST)]
Side = Literal["above", "below", "either"]  # either: the size of the value, whatever its sign


class Common(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every rule has. A subject is a tag, or a camera where the quantity is a `crack_` one."""

    name: Name
    version: Version = 1
    subjects: Annotated[tuple[Pattern, ...], msgspec.Meta(min_length=1, max_length=1000)] = ("*",)
    text: Annotated[str, msgspec.Meta(max_length=200)] = ""  # what is to be done; goes with the alarm


class Graded(Common, frozen=True, kw_only=True):
    """A rule with a limit for each of its levels, the mildest first.

    A level rises once its limit is reached by `rise_count` values in a row that span `rise_s` seconds or more, and
    falls once `fall_count` in a row that span `fall_s` seconds lie off it by more than `hysteresis`. Where a Gap names
    fewer than `lost` numbers, values before and after it are in a row, but the time of those numbers does not count:
    a bad radio delays a level, either way, and by itself moves none.
    """

    quantity: Name
    limits: Limits
    hysteresis: Positive  # in the unit of the limits
    first: Level = 1  # the level of the first limit
    rise_count: Count = 1
    rise_s: Seconds = 0.0
    fall_count: Count = 1
    fall_s: Seconds = 0.0

    side: ClassVar[Side] = "above"  # of the limits on which alarm lies

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.limits)):
            raise ValueError(f"limits: {list(self.limits)} must be finite numbers")
        rising = [-limit for limit in self.limits] if self.side == "below" else list(self.limits)
        if any(mild >= grave for mild, grave in pairwise(rising)):
            way = "falling" if self.side == "below" else "rising"
            raise ValueError(f"limits: {list(self.limits)} must be strictly {way}, the mildest first")
        if self.side == "either" and self.limits[0] <= self.hysteresis:
            raise ValueError("limits: on either side of 0 the first must be more than hysteresis, or it never falls")
        if self.first + len(self.limits) - 1 > HIGHEST:
            raise ValueError(f"first: {len(self.limits)} limits from level {self.first} go past level {HIGHEST}")


class LevelRule(Graded, frozen=True, kw_only=True, tag="level", tag_field="kind"):
    """Levels on a value: of a sensor's quantity, or on `crack_probability` and `crack_area` of a camera's images.

    `crack_area` is the share of the image that lies above the model's threshold, 0 to 1.
    """

    side: Side = "above"  # type: ignore[misc]  # what is fixed for other rules is a setting of this one
    lost: Count = LOST

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side == "above" and self.quantity in NOT_NEGATIVE and self.limits[0] <= self.hysteresis:
            raise ValueError(
                f"hysteresis: {self.quantity} is never below 0, so of a first limit of {self.limits[0]:g} the alarm "
                f"ends only with a hysteresis below that, not {self.hysteresis:g}"
            )


class Windowed(Graded, frozen=True, kw_only=True):
    """A graded rule on the trend over a window, which is kept as at most `points` means of equal spans of time.

    It is judged when such a span is over, every `window_s / points` seconds at most. What the trend cannot say, because
    it began anew, lowers no level. A tag that speaks less often than `least` times in `window_s`, or pauses for longer
    than `gap_s`, has none.
    """

    window_s: Annotated[float, msgspec.Meta(ge=1, le=1e8)]
    points: Annotated[int, msgspec.Meta(ge=6, le=120)] = 40
    least: Annotated[int, msgspec.Meta(ge=4, le=120)] = 8  # points, before anything is said; half of `points` will do
    least_s: Seconds = 0.0  # that they span; 0: a quarter of the window
    gap_s: Seconds = 0.0  # without a value, after which the trend begins anew; 0: a quarter of the window
    lost: Count = LOST

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least > self.points:
            raise ValueError(f"least: {self.least} points are more than points, {self.points}")
        if self.least_s > self.window_s * 0.8:
            raise ValueError("least_s: must be at most four fifths of window_s, or nothing is ever said")
        if self.gap_s > self.window_s / 2:
            raise ValueError("gap_s: must be at most half of window_s")

    @property
    def enough(self) -> int:
        """Points, before anything is said: a tag that speaks once in two spans never fills more than half of them."""
        return min(self.least, self.points // 2)

    @property
    def span(self) -> float:
        """Seconds that the points must span."""
        return self.least_s or self.window_s / 4

    @property
    def break_us(self) -> float:
        """Microseconds without a value that end a trend."""
        return (self.gap_s or self.window_s / 4) * 1e6


class VelocityRule(Windowed, frozen=True, kw_only=True, tag="velocity", tag_field="kind"):
    """Levels on how fast a value changes, in its unit per hour or per day."""

    side: Side = "either"  # type: ignore[misc]
    per: Literal["h", "day"] = "h"


class ForecastRule(Windowed, frozen=True, kw_only=True, tag="forecast", tag_field="kind"):
    """Levels on hours to failure by inverse velocity (Fukuzono 1985), while the value truly accelerates.

    The limits fall: [48, 12, 3]. What is nearer than `window_s / points` is not told apart: take a rule a time scale.
    A part of a daily swing accelerates too: let the window hold several days, or `floor` be above the swing's velocity.
    """

    side: ClassVar[Side] = "below"
    floor: Positive  # least velocity at the end of the window, in the value's unit an hour, either way
    confidence: Annotated[float, msgspec.Meta(ge=0.5, le=0.999)] = 0.95  # that it accelerates, and of the interval

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limits[-1] < 0:
            raise ValueError("limits: hours to failure are not negative")
        if self.points < FEWEST:
            raise ValueError(f"points: no failure can be told from {self.points}; take {FEWEST} or more")

    @property
    def enough(self) -> int:
        """As of any trend, but no fewer than the law can be fitted to."""
        return max(FEWEST, super().enough)


class ValidityRule(Common, frozen=True, kw_only=True, tag="validity", tag_field="kind"):
    """Which values can be true. Others raise no level and enter no trend; `count` of them in a row are an alarm."""

    quantity: Name
    low: float | None = None  # None: no limit
    high: float | None = None
    count: Count = 3  # in a row, to begin an alarm and to end it
    level: Level = 1
    lost: Count = LOST

    def __post_init__(self) -> None:
        if not (-math.inf if self.low is None else self.low) < (math.inf if self.high is None else self.high):
            raise ValueError(f"low: {self.low} must be below high, {self.high}")


class StuckRule(Common, frozen=True, kw_only=True, tag="stuck", tag_field="kind"):
    """A sensor that says the same for `count` values and for `seconds`, of which lost ones are no part."""

    quantity: Name
    tolerance: Annotated[float, msgspec.Meta(ge=0, le=1e12)] = 0.0  # the same: highest and lowest differ by no more
    count: Annotated[int, msgspec.Meta(ge=2, le=1_000_000)] = 60
    seconds: Seconds = 0.0
    level: Level = 1
    lost: Count = LOST


class SpikingRule(Common, frozen=True, kw_only=True, tag="spiking", tag_field="kind"):
    """What a spike is: one value farther than `limit` from the median of the last, and the next is not.

    Spikes raise no level and enter no trend. The price: a true jump counts only when the next value confirms it.
    `most` spikes among the last `among` values are an alarm, which is over at half of that. Of several such rules for
    one quantity of a subject, the first is the one that keeps spikes out, and the only one that counts them.
    """

    quantity: Name
    limit: Positive
    neighbours: Annotated[int, msgspec.Meta(ge=3, le=15)] = 5
    most: Annotated[int, msgspec.Meta(ge=2, le=32)] = 5
    among: Annotated[int, msgspec.Meta(ge=4, le=64)] = 60
    level: Level = 1
    lost: Count = LOST

    def __post_init__(self) -> None:
        if self.most > self.among // 2:  # of two values in a row, one at most is a spike
            raise ValueError(f"most: {self.most} spikes cannot come among {self.among} values; take half at most")


class MissingRule(Common, frozen=True, kw_only=True, tag="missing", tag_field="kind"):
    """A paired tag that says nothing for `seconds`; found by the next record of anything that passes that time."""

    seconds: Annotated[float, msgspec.Meta(ge=1, le=1e8)]
    quantity: Name | None = None  # of which it must say a valid number, so no null; None: anything at all
    level: Level = 1


Rule = LevelRule | VelocityRule | ForecastRule | ValidityRule | StuckRule | SpikingRule | MissingRule


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole set, and what it takes to apply it.

    `missing` rules wait for the tags in `paired`, and for names without * and ? among their own subjects. Where no
    record of any kind came for `silence_s` seconds, it was the gateway that was silent: no tag is missed for that time.
    A gateway takes 2.5 times its own `health` for that where this is more, for when all its tags are silent nothing
    else comes; a twin must do the same. Beyond `most_subjects`, the one that was silent for longest is forgotten.
    """

    version: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0
    rules: Annotated[tuple[Rule, ...], msgspec.Meta(max_length=1000)] = ()
    paired: Annotated[tuple[Name, ...], msgspec.Meta(max_length=100_000)] = ()
    silence_s: Annotated[float, msgspec.Meta(ge=60, le=86_400)] = 300.0
    most_subjects: Annotated[int, msgspec.Meta(ge=64, le=1_000_000)] = 10_000

    def __post_init__(self) -> None:
        names = [rule.name for rule in self.rules]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"rules: two are called {min(twice)}; each needs its own name")


def rules_of(value: Any) -> Rules:
    """Rules from what TOML, JSON or a site says. Raises ProtocolError that names every fault by rule and field."""
    if found := [fault for each in _faults(value) for fault in each] or faults(Rules, value):
        raise ProtocolError(f"rules: {'; '.join(found)}")
    return msgspec.convert(value, Rules)


def sound(value: dict[str, Any]) -> dict[str, Any]:
    """`value` without those rules that are faulty by themselves, as they were to no earlier version."""
    return value | {"rules": [rule for rule, wrong in zip(_each(value), _faults(value), strict=True) if not wrong]}


def _each(value: Any) -> Sequence[Any]:
    rules = value.get("rules") if isinstance(value, dict) else None
    return rules if isinstance(rules, list | tuple) else ()


def _faults(value: Any) -> Iterator[list[str]]:
    """Faults of each rule by itself, so that all can be mended at once."""
    for at, rule in enumerate(_each(value)):
        kind = next(
            (kind for kind in get_args(Rule) if isinstance(rule, dict) and rule.get("kind") == _tag(kind)), None
        )
        if kind is None:
            yield [f"rules[{at}].kind: must be one of {', '.join(map(_tag, get_args(Rule)))}"]
        else:
            yield faults(kind, {name: each for name, each in rule.items() if name != "kind"}, f"rules[{at}]")


def _tag(kind: type[msgspec.Struct]) -> str:
    return str(kind.__struct_config__.tag)
