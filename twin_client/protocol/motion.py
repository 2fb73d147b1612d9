"""What the wearer of an accelerometer does: still, walking, riding, moving, fallen, perhaps fainted.

`judge` looks at one window after another and carries what it must remember in a `State` of some 100 bytes. Any mounting
will do, and no sensor calibration is needed (`look` says why).

Three promises hold whatever comes. A machine neither walks, falls nor faints. Stillness counts only while it is seen:
missing windows stop its clock, and set it back after `bridge` seconds, so they alone never raise a faint; nor do they
end one. And a window handed in twice (`span` 0) counts once. What cannot be told: a tag put down on a table from a
wearer who lies motionless.
"""

import math
from array import array
from collections.abc import Sequence
from operator import mul
from typing import Annotated, Literal

import msgspec

from twin_client.protocol.look import Look, Vector, angle, likeness, mean, mixed, samples_of, wander
from twin_client.protocol.look import look as look_at
from twin_client.protocol.records import Window

Kind = Literal["unknown", "still", "moving", "walking", "riding", "fall", "faint"]

G = 9.80665
Positive = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Angle = Annotated[float, msgspec.Meta(gt=0, lt=180)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The sensitivity of the judgement. Seconds, g (9.80665 m/s²), degrees and Hz; the reason stands by each default.

    A tag that sends two seconds in ten is watched a fifth of the time: its `faint_limit` of 60 s lasts 5 minutes.
    """

    subject: Literal["person", "machine"] = "person"
    unit: Annotated[float, msgspec.Meta(ge=1e-3)] = (
        G  # what one g is in the unit of the windows: 9.80665 where they say m/s², 1 where they say g
    )
    full_scale: Positive = 16.0  # g; more is clipped, so a strike that reaches nine tenths of it counts as hard
    quiet: Positive = 0.025  # g; half a second varies less: above MEMS noise (up to 10 mg an axis), below any fidget
    shift: Angle = 15.0  # degrees; the chest of one who breathes hard rocks by 6, one who turns over by more than 30
    faint_limit: Positive = 60.0  # s of stillness seen; lone-worker alarms use 30 to 120, a waking body moves within 30
    fall_faint_limit: Positive = 20.0  # s of stillness seen since a fall; who is unhurt stirs within seconds
    impact: Positive = 2.5  # g; falls strike with 3 to 10, steps with 2 at most
    dip: Share = 0.65  # of the weight at rest; falls fall below it for 0.2 s and more, steps graze it
    dip_time: Positive = 0.1  # s below `dip` before it counts
    drop: Positive = 1.0  # s from the dip to the strike; a man's height takes half a second
    tilt: Angle = 45.0  # degrees between the posture before and after; bending to a tool stays below, mostly
    settle: Positive = 15.0  # s in which a strike must be followed by what makes it a fall
    walk_level: Positive = 0.09  # g; slow steps give 0.1, the arms of one who stands less
    rhythm: Share = 0.55  # autocorrelation that makes steps; that of rough ground is 0.3, of steps 0.7 and more
    slowest: Positive = 1.3  # steps a second
    fastest: Positive = 3.5
    wander: Angle = 14.0  # degrees from half second to half second; a seated body is carried, one at work bends
    slack: Positive = 1.0  # s of unseen time that is taken for a late frame and not for a missing window
    bridge: Positive = 10.0  # s of unseen time over which stillness pauses; after a longer one it begins anew
    memory: Positive = 4.0  # s over which rhythm and wander are averaged, so that one odd window changes nothing

    def __post_init__(self) -> None:
        if self.slowest >= self.fastest:
            raise ValueError(f"slowest: {self.slowest:g} steps a second are not below fastest, {self.fastest:g}")
        if self.walk_level < self.quiet:
            raise ValueError(f"walk_level: {self.walk_level:g} g is below quiet, {self.quiet:g} g")
        if self.bridge < self.slack:
            raise ValueError(f"bridge: {self.bridge:g} s are less than slack, {self.slack:g} s")
        if self.impact <= 1:
            raise ValueError(f"impact: {self.impact:g} g is no more than the weight at rest")
        if self.fall_faint_limit > self.faint_limit:
            raise ValueError(f"fall_faint_limit: {self.fall_faint_limit:g} s are more than faint_limit")


class State(msgspec.Struct, frozen=True, array_like=True):
    """What is remembered between windows; msgspec packs it to about 100 bytes. Seconds ago; None: never."""

    kind: Kind = "unknown"
    lasted: float = 0.0  # how long the kind has been so
    still: float = 0.0  # unbroken stillness seen
    anchor: Vector | None = None  # rest vector, g, where that stillness began
    posture: Vector | None = None  # rest vector of late, frozen while a strike waits for its explanation
    low: float = 0.0  # how long the force had been below `dip` when the window ended
    dipped: float | None = None  # the end of the last dip
    struck: float | None = None  # the last strike that waits for its explanation
    free: bool = False  # a dip went before it
    fallen: float | None = None  # a fall after which nothing but stillness was seen
    rhythm: float = 0.0
    wander: float = 0.0
    tail: bytes = b""  # mg as int16, of windows too short to show two steps: the last of what went before
    pace: float = 0.0  # of the tail, samples a second
    blind: float = 0.0  # time that windows which showed nothing covered


class Motion(msgspec.Struct, frozen=True):
    """What one window showed, in the light of those before."""

    kind: Kind  # `fall` in the window that confirms it, `faint` for as long as it lasts
    since: float = 0.0  # seconds the kind has lasted, windows missing in between included
    level: float = 0.0  # g, root mean square of what is not gravity, over half seconds
    peak: float = 0.0  # g, the hardest sample
    jerk: float = 0.0  # g/s, root mean square
    steps: float | None = None  # a second, while walking
    tilt: float | None = None  # degrees from the posture before; None: not known yet
    still: float = 0.0  # seconds of unbroken stillness seen
    fallen: bool = False  # nothing but stillness was seen since a fall
    clipped: bool = False  # the peak was harder than the sensor can say


SURE = 10.0  # seconds of stillness after a strike that speak for a fall, unless the posture is what it was
QUIET = 1.0  # seconds of stillness before a posture is read
ENOUGH = 3.0  # seconds show three steps and how a body bends; shorter windows are looked at together
LEAST, SHORTEST = 4, 0.2  # samples, and seconds, in which anything can be seen to move
FOREVER = 1e9  # seconds: a span that nobody knows


def duration(window: Window) -> float:
    """Seconds that a window covers. Raises ProtocolError for what is no window of 1 to 3 axes."""
    return len(samples_of(window)[0]) / window.rate


def judge(settings: Settings, state: State, window: Window, span: float | None) -> tuple[State, Motion]:
    """The state after `window`, and what its wearer does.

    span: seconds from the end of the last window to the end of this one, None where they are not known (a restart of
    the tag or the gateway; so are taken NaN and what is below 0). Of a tag that sends without a pause, tell them by
    its sequence numbers: frames may arrive late together. A window that shows too little to judge is `unknown`, and
    its time counts as unseen; of a wearer it says nothing, not even that he has not fallen. Raises ProtocolError for
    what is no window of 1 to 3 axes.
    """
    samples = samples_of(window)
    passed = span if span is not None and span >= 0 else FOREVER
    if passed == 0:
        return state, Motion(state.kind, state.lasted, still=state.still, fallen=state.fallen is not None)
    whole = min(passed + state.blind, FOREVER)
    look = None
    if len(samples[0]) >= LEAST and len(samples[0]) >= SHORTEST * window.rate:
        look = look_at(window, samples, settings.unit)
    if look is None or look.broken:
        return msgspec.structs.replace(state, blind=whole), Motion("unknown")
    seen = min(look.duration, whole)
    state = _after_a_hole(settings, state, whole - look.duration)
    state = msgspec.structs.replace(state, blind=0.0)
    state, tail, unbroken = _stillness(settings, state, look, seen)
    state, kind, steps = _kind(settings, state, look, seen)
    tilt = None
    if state.posture is not None:
        tilt = angle(state.posture, tail if state.still >= QUIET else look.mean)
    limit = _hard(settings)
    peak = max(look.force)
    fell = False
    if settings.subject == "person":
        state = _strikes(settings, state, look, limit)
        state, fell = _fallen(settings, state, kind, seen, tilt)
    if state.struck is None and peak < limit:
        share = 1.0 if state.posture is None else seen / (seen + settings.memory)
        state = msgspec.structs.replace(state, posture=mixed(state.posture or look.mean, look.mean, share))
    if fell:
        kind = "fall"
    elif settings.subject == "person" and (
        state.still >= (settings.faint_limit if state.fallen is None else settings.fall_faint_limit)
        or (state.kind == "faint" and unbroken)  # a lost window does not end it
    ):
        kind = "faint"
    lasted = state.lasted + whole if kind == state.kind else seen
    state = msgspec.structs.replace(state, kind=kind, lasted=lasted)
    return state, Motion(
        kind=kind,
        since=lasted,
        level=look.level,
        peak=peak,
        jerk=look.jerk,
        steps=steps or None,
        tilt=tilt,
        still=state.still,
        fallen=state.fallen is not None,
        clipped=_clipped(settings, window, samples),
    )


def _after_a_hole(settings: Settings, state: State, unseen: float) -> State:
    """What is still known after a stretch that nobody saw: a posture, a fall, and for a while stillness."""
    if unseen <= settings.slack:
        return state
    struck = None if state.struck is None else state.struck + unseen
    fallen = None if state.fallen is None else state.fallen + unseen
    state = msgspec.structs.replace(state, low=0.0, dipped=None, tail=b"", struck=struck, fallen=fallen)
    if unseen <= settings.bridge:
        return state
    kind = state.kind if state.kind == "faint" else "unknown"  # a movement may have ended; a faint waits to be seen to
    return msgspec.structs.replace(state, kind=kind, still=0.0, struck=None, free=False, rhythm=0.0, wander=0.0)


def _stillness(settings: Settings, state: State, look: Look, seen: float) -> tuple[State, Vector, bool]:
    """Stillness up to the window's end; the rest vector of its still tail, or of its last block; whether it lasts."""
    tail = 0
    for level, rest in zip(reversed(look.levels), reversed(look.rests), strict=True):
        if level >= settings.quiet or angle(rest, look.rests[-1]) > settings.shift:
            break
        tail += 1
    rest = mean(look.rests[-tail:] if tail else look.rests[-1:])
    same = state.anchor is not None and angle(state.anchor, rest) <= settings.shift
    if tail == len(look.levels) and same:
        return msgspec.structs.replace(state, still=state.still + seen), rest, True
    still = min(tail * look.block, seen)
    return msgspec.structs.replace(state, still=still, anchor=rest if tail else None), rest, False


def _kind(settings: Settings, state: State, look: Look, seen: float) -> tuple[State, Kind, float]:
    """Still, walking, riding or moving, from this window and a few seconds before it; and steps a second."""
    levels = sorted(look.levels)
    if levels[len(levels) // 3] < settings.quiet:  # who rests moves now and then; `still`, the clock, is stricter
        return msgspec.structs.replace(state, rhythm=0.0, wander=0.0, tail=b""), "still", 0.0
    if settings.subject == "machine":
        return state, "riding", 0.0
    thin = (_unpacked(state.tail) if state.pace == look.pace else []) + look.thin
    thin = thin[-max(len(look.thin), round(ENOUGH * look.pace)) :]
    share = 1.0
    if state.kind in ("walking", "riding", "moving"):
        share = seen / (seen + settings.memory)
    alike, steps = likeness(thin, look.pace, settings.slowest, settings.fastest)
    rhythm = state.rhythm + share * (alike - state.rhythm)
    bends = state.wander + share * (wander(thin, look.pace) - state.wander)
    tail = b"" if look.duration >= ENOUGH else _packed(thin)
    state = msgspec.structs.replace(state, rhythm=rhythm, wander=bends, tail=tail, pace=look.pace)
    if look.level >= settings.walk_level and rhythm >= settings.rhythm:
        return state, "walking", steps
    carried = bends < settings.wander and levels[0] >= settings.quiet  # a machine under way never rests
    return state, "riding" if carried else "moving", 0.0


def _hard(settings: Settings) -> float:
    return min(settings.impact, 0.9 * settings.full_scale)


def _strikes(settings: Settings, state: State, look: Look, hard: float) -> State:
    """Note dips and strikes of this window; a dip counts only a short while before a strike."""
    step = look.duration / len(look.force)
    weight = 1.0 if state.posture is None else math.hypot(*map(mul, state.posture, look.live))
    low = settings.dip * weight
    run, free = state.low, state.free and state.struck is not None
    dipped = -math.inf if state.dipped is None else -state.dipped
    struck = None if state.struck is None else -state.struck
    for i, force in enumerate(look.force):
        if force < low:
            run += step
            continue
        if run >= settings.dip_time:
            dipped = i * step
        run = 0.0
        if force >= hard:
            struck = i * step
            free = free or struck - dipped <= settings.drop
    ago = look.duration - dipped
    return msgspec.structs.replace(
        state,
        low=run,
        dipped=ago if ago <= settings.drop else None,
        struck=None if struck is None else look.duration - struck,
        free=free,
    )


def _fallen(settings: Settings, state: State, kind: Kind, seen: float, tilt: float | None) -> tuple[State, bool]:
    """Whether this window makes a strike a fall: two of a dip before it, another posture, lasting stillness."""
    if state.fallen is not None:
        # Who still moves a minute later is judged like anyone.
        up = kind in ("walking", "riding") or (kind == "moving" and state.fallen > settings.faint_limit)
        state = msgspec.structs.replace(state, fallen=None if up else state.fallen + seen)
    if state.struck is None:
        return state, False
    under_way = kind in ("walking", "riding")
    turned = tilt is not None and tilt >= settings.tilt
    if under_way and not turned and state.struck > seen:  # of the strike's own window only what came before is known
        return msgspec.structs.replace(state, struck=None, free=False), False
    over = state.struck >= settings.settle
    stays = state.still >= SURE and (tilt is None or tilt > settings.shift)
    fell = state.still >= QUIET and state.free + turned + stays >= 2
    fell = fell or (over and state.free and turned and not under_way)  # writhes, but lies
    if fell:
        return msgspec.structs.replace(state, struck=None, free=False, fallen=state.struck), True
    if over:
        return msgspec.structs.replace(state, struck=None, free=False), False
    return state, False


def _packed(thin: Sequence[Vector]) -> bytes:
    return array("h", [round(max(-32767.0, min(32767.0, 1e3 * value))) for rest in thin for value in rest]).tobytes()


def _unpacked(tail: bytes) -> list[Vector]:
    values = [value * 1e-3 for value in array("h", tail)]
    return list(zip(values[::3], values[1::3], values[2::3], strict=True))


def _clipped(settings: Settings, window: Window, samples: "Sequence[array[int]]") -> bool:
    most = min(32767.0, 0.98 * settings.full_scale * settings.unit / window.scale)
    return any(max(axis) >= most or min(axis) <= -most for axis in samples)
