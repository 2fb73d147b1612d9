"""What the rules remember from record to record, and how that becomes bytes and state again.

Everything is immutable, so that a commit that fails goes back to what was before. Subjects lie in a fixed number of
shards: `changed` names those that a stretch of records touched, which is all that must be written beside it.
"""

import zlib
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.rules.axis import Axis
from twin_client.protocol.rules.levels import Grade, interrupted, paused
from twin_client.protocol.rules.series import Series, Stuck
from twin_client.protocol.rules.trend import Trend

SHARDS = 64


class Subject(msgspec.Struct, frozen=True, array_like=True):
    """A tag or a camera. Times are microseconds on the axis."""

    heard: int  # when it last spoke
    era: int = 0
    boot: int = 0  # of the tag
    seq: int = -1
    series: dict[str, Series] = {}  # by quantity
    grades: dict[str, Grade] = {}  # by rule; one that is calm has none
    trends: dict[str, Trend] = {}  # by rule
    stuck: dict[str, Stuck] = {}  # by rule


Shard = dict[str, Subject]
T = TypeVar("T")


class Clockwork(msgspec.Struct, frozen=True, array_like=True):
    """What belongs to no subject."""

    axis: Axis = ()
    now: int = 0  # when the last record came
    began: int = 0  # since when records have come without a long silence
    due: int | None = None  # when to look for missing tags again; None: with the next record
    ref: tuple[str, str, int] | None = None  # the last entry: gateway, epoch, number
    rules: dict[str, tuple[int, int]] = {}  # version and digest of each rule, by its name


class State(msgspec.Struct, frozen=True):
    """All that is remembered. A new one, `State()`, knows nothing."""

    clockwork: Clockwork = Clockwork()
    shards: tuple[Shard, ...] = ({},) * SHARDS

    def subject(self, key: str) -> Subject | None:
        """What is known of one tag, or of one camera, whose key is its name after a slash."""
        return self.shards[shard_of(key)].get(key)


def shard_of(key: str) -> int:
    """Where a subject lies; the same on every machine."""
    return zlib.crc32(key.encode("utf-8", "replace")) % SHARDS


def broken(
    subject: Subject,
    kept: Collection[str] = (),
    spiking: Mapping[str, str] = MappingProxyType({}),
    unseen: int = 0,
) -> Subject:
    """After something of it was lost: levels stand as they are; runs, trends and what was in doubt begin anew.

    But for the rules in `kept`: to them it was little, and goes on; `unseen` microseconds are no part of their runs.
    spiking: the rule that keeps spikes out of a quantity.
    """
    return replace(
        subject,
        series={
            name: series if spiking.get(name) in kept else Series(series.calibration, series.heard)
            for name, series in subject.series.items()
        },
        grades={
            name: paused(grade, unseen) if name in kept else interrupted(grade)
            for name, grade in subject.grades.items()
        },
        trends={name: trend for name, trend in subject.trends.items() if name in kept},
        stuck={
            name: stuck._replace(since=stuck.since + unseen) for name, stuck in subject.stuck.items() if name in kept
        },
    )


_encoder = msgspec.msgpack.Encoder()
_state = msgspec.msgpack.Decoder(State)
_clockwork = msgspec.msgpack.Decoder(Clockwork)
_shard = msgspec.msgpack.Decoder(Shard)


def packed(state: State) -> bytes:
    """The whole state as bytes."""
    return _encoder.encode(state)


def restored(data: bytes) -> State:
    """The state that `packed` gave. Raises ProtocolError where the bytes are none."""
    state = _decoded(_state, data)
    if len(state.shards) != SHARDS:
        raise ProtocolError(f"not the state of rules: it has {len(state.shards)} shards instead of {SHARDS}")
    return state


def changed(before: State, after: State) -> dict[str, bytes]:
    """What must be written, each under its name, so that what was written for `before` becomes `after`."""
    parts = {
        f"{i:02}": _encoder.encode(new)
        for i, (old, new) in enumerate(zip(before.shards, after.shards, strict=True))
        if old is not new
    }
    if before.clockwork is not after.clockwork:
        parts["clockwork"] = _encoder.encode(after.clockwork)
    return parts


def recalled(part: Callable[[str], bytes | None]) -> State:
    """The state from all that `changed` had written; `part` gives what lies under a name, None: nothing.

    Raises ProtocolError where a part is broken.
    """
    first = part("clockwork")
    shards = tuple({} if (data := part(f"{i:02}")) is None else _decoded(_shard, data) for i in range(SHARDS))
    return State(Clockwork() if first is None else _decoded(_clockwork, first), shards)


def with_subjects(state: State, subjects: Mapping[str, Subject], most: int) -> State:
    """The state with these subjects; where a shard would hold more than its part of `most`, its stalest ones go."""
    shards = list(state.shards)
    for key, subject in subjects.items():
        i = shard_of(key)
        shard = dict(shards[i])
        if key not in shard and len(shard) >= max(1, most // SHARDS):
            del shard[_stalest(shard)]
        shard[key] = subject
        shards[i] = shard
    return State(state.clockwork, tuple(shards))


def _stalest(shard: Shard) -> str:
    """The one silent for longest; one with an alarm only where all have one."""
    return min(shard, key=lambda key: (any(grade.level for grade in shard[key].grades.values()), shard[key].heard, key))


def _decoded(decoder: "msgspec.msgpack.Decoder[T]", data: bytes) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"not the state of rules: {error}") from error
