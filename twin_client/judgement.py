"""What becomes of a record on its way to the outbox: read by its sensor's calibration and its wearer's motion, judged
by the rules.

What a tag that is worn shows of its wearer becomes quantities of its reading: `motion` (a number, see `MOTIONS`),
`motion_level` (g), `motion_still` (seconds), `fall` and `faint` (0 or 1), on which there are rules like on any others.
Of a window that shows too little there is `motion` alone, 0: whoever lay before it may lie still, so alarms stand.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec
from msgspec.structs import replace

from targets.runtime.errors import HighwallError
from twin_client.config import Settings, sensitivity
from twin_client.pairing import WORN, Tag
from twin_client.protocol import motion, rules
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.orders import SetSensorCalibration
from twin_client.protocol.records import Alarm, Entry, Measure, Reading, Record
from twin_client.protocol.rules import Book, Calibrations, LevelRule, Rules, SensorCalibration
from twin_client.protocol.rules.step import AGAIN
from twin_client.protocol.site import Site, faults
from twin_client.services import folder as disk

MOTIONS: Final[tuple[str, ...]] = get_args(motion.Kind)  # what the numbers of `motion` stand for, from 0
LATEST: Final = 120.0  # seconds that a frame may come late; more without a number missing is a tag that slept
SMOOTH: Final = 64  # frames that tell how often a tag sends: several bursts of a line that delivers some at once
HEALTHS: Final = 2.5  # periods of health records without one, for the gateway to have been silent: one may be late

# Without any rules of its own a gateway still watches over people.
OWN_RULES: Final = (
    LevelRule(
        name="own:faint",
        quantity="faint",
        limits=(1.0,),
        hysteresis=0.5,
        first=4,
        text="somebody lies still: go and look",
    ),
    LevelRule(
        name="own:fall",
        quantity="fall",
        limits=(1.0,),
        hysteresis=0.5,
        first=3,
        text="somebody has fallen: call, go and look",
    ),
)


class _Kept(msgspec.Struct, frozen=True):
    """Sensor calibrations that came as commands."""

    curves: Calibrations = {}


class Moved(msgspec.Struct, frozen=True, array_like=True):
    """How a wearer moved, and when that was seen last."""

    state: motion.State
    boot: str  # of the gateway
    mono: int
    tag_boot: int
    tag_seq: int
    pace: float = 0.0  # seconds from one number of the tag to the next, on average
    known: int = 0  # frames by which the pace is known
    late: float = 0.0  # seconds that the frame came after its window's end, as far as that can be told


class State(msgspec.Struct, frozen=True):
    """Everything that is carried from record to record."""

    judged: rules.State = rules.State()
    moved: dict[str, Moved] = {}


_pack, _json = msgspec.msgpack.Encoder().encode, msgspec.json.Encoder().encode


class Judge:
    """The rules, calibrations and limits that are in force for the tags that are paired."""

    def __init__(self, settings: Settings, site: Site, folder: Path, tags: Mapping[str, Tag]):
        self._settings, self._site, self._folder, self._tags = settings, site, folder, dict(tags)
        self._motion, _ = sensitivity(settings, site)
        self._book = Book(rules_in_force(site, sorted(tags), settings.health), tags)
        kept = disk.load_state(folder / "calibrations.json", _Kept) or _Kept()
        self._curves = _newest(rules.calibrations_of(site.calibrations), kept.curves)

    def begin(self, remembered: Callable[[str], bytes | None]) -> State:
        """The state as it was committed last; a new one where it was written by a version that knew others."""
        try:
            judged = rules.recalled(lambda part: remembered(f"rules/{part}"))
        except ProtocolError:
            judged = rules.State()
        moved = {}
        for tag in self._tags:
            with suppress(msgspec.MsgspecError, ValueError):
                if (body := remembered(f"moved/{tag}")) is not None:
                    moved[tag] = msgspec.msgpack.decode(body, type=Moved)
        return State(judged, moved)

    def read(self, state: State, record: Record) -> tuple[State, Record]:
        """A reading with its values calibrated, and what its window shows."""
        if not isinstance(record, Reading):
            return state, record
        record = rules.calibrated(self._curves, record)
        kind = self._tags.get(record.tag, Tag()).type
        if record.window is not None and kind in WORN:
            return self._moving(state, record, "machine" if kind == "machine" else "person")
        return state, record

    def judge(self, state: State, epoch: str, entry: Entry) -> tuple[State, Sequence[Alarm]]:
        """What the rules say of an entry."""
        ref = (self._settings.gateway, epoch, entry.seq)
        judged, alarms = rules.step(self._book, state.judged, ref, entry.record)
        return replace(state, judged=judged), alarms

    def saved(self, before: State | None, after: State) -> Mapping[str, bytes]:
        """Only what has changed: a card is not written for the rest."""
        old = before or State()
        found = {f"rules/{name}": part for name, part in rules.changed(old.judged, after.judged).items()}
        found |= {f"moved/{tag}": _pack(each) for tag, each in after.moved.items() if old.moved.get(tag) is not each}
        return found

    def calibrated_by(self, order: SetSensorCalibration) -> "Judge":
        """These with another curve, which is on the disk when this returns; the one in force may come again.

        Raises HighwallError for an older one, and for another of the same version.
        """
        try:
            curve = msgspec.convert(order.calibration, SensorCalibration)
        except msgspec.ValidationError as error:
            raise HighwallError(f"calibration: {error}") from error
        before = self._curves.get(order.tag, {}).get(order.quantity)
        if before is not None and _json(before) == _json(curve):  # as it is kept: JSON has no infinity
            return self.paired(self._tags)
        if before is not None and curve.version <= before.version:
            raise HighwallError(f"{order.quantity} of {order.tag} has version {before.version}; send a higher one")
        path = self._folder / "calibrations.json"
        kept = disk.load_state(path, _Kept) or _Kept()
        own = {**kept.curves, order.tag: {**kept.curves.get(order.tag, {}), order.quantity: curve}}
        disk.save_state(path, _Kept(own))
        return self.paired(self._tags)

    def paired(self, tags: Mapping[str, Tag]) -> "Judge":
        """The same for these tags."""
        return Judge(self._settings, self._site, self._folder, tags)

    def _moving(self, state: State, reading: Reading, kind: Literal["person", "machine"]) -> tuple[State, Reading]:
        before = state.moved.get(reading.tag)
        if before is not None and before.tag_boot == reading.tag_boot and 0 <= before.tag_seq - reading.tag_seq < AGAIN:
            return state, reading  # it comes late, and says nothing of now
        assert reading.window is not None
        try:
            span, after = _since(before, reading, motion.duration(reading.window))
            moved, seen = motion.judge(
                replace(self._motion, subject=kind),
                motion.State() if before is None else before.state,
                reading.window,
                span,
            )
        except ProtocolError:
            return state, reading  # it is kept as it came
        values = {"motion": float(MOTIONS.index(seen.kind))}
        if seen.kind != "unknown":  # what was not measured is no key
            values |= {
                "motion_level": round(seen.level, 4),
                "motion_still": round(seen.still, 1),
                "fall": float(seen.kind == "fall" or seen.fallen),
                "faint": float(seen.kind == "faint"),
            }
        added = {name: Measure(value, value) for name, value in values.items()}
        return replace(state, moved={**state.moved, reading.tag: replace(after, state=moved)}), replace(
            reading, values={**reading.values, **added}
        )


def _since(before: Moved | None, reading: Reading, duration: float) -> tuple[float | None, Moved]:
    """Seconds from the end of the last window to the end of this one, None: not known; and what is remembered for that.

    Frames may arrive together that were measured one after the other, so their stamps alone say nothing. The tag's
    numbers times its pace are the time that has passed, as long as no frame would arrive before its window's end, or
    more than `LATEST` after it; then the arrival tells.
    """
    at = reading.at
    after = Moved(motion.State(), at.boot, at.mono, reading.tag_boot, reading.tag_seq)
    if before is None:
        return None, after
    after = replace(after, state=before.state)
    if before.tag_boot != after.tag_boot or before.tag_seq > after.tag_seq:
        return None, after  # it began anew
    after = replace(after, pace=before.pace, known=before.known)
    if before.boot != at.boot:
        return None, after
    numbers, passed = after.tag_seq - before.tag_seq, max(0.0, (at.mono - before.mono) / 1e6)
    latest = before.late + passed  # from the last window's end to this arrival
    told = numbers * before.pace
    if latest - told > LATEST:
        return max(duration, latest), after
    overlap = duration / 2 <= passed < duration  # a frame that only came late comes at once behind the other
    span = max(min(latest, told) if before.known else latest, passed if overlap else duration)
    known = min(before.known + 1, SMOOTH)
    pace = before.pace + (passed / numbers - before.pace) / known
    return span, replace(after, pace=pace, known=known, late=max(0.0, latest - span))


def rules_in_force(site: Site, paired: Sequence[str], health: float = 0.0) -> Rules:
    """The rules of the site, and our own for people where it has none of the same names.

    Tags are waited for that the site's rules name, or else those that are paired here. health: seconds between two
    health records, which are all that comes when every tag is silent. Raises ProtocolError.
    """
    wanted = rules.rules_of(site.rules)
    names = {rule.name for rule in wanted.rules}
    own = tuple(rule for rule in OWN_RULES if rule.name not in names)
    silence = max(wanted.silence_s, HEALTHS * health)
    return replace(wanted, rules=(*own, *wanted.rules), paired=wanted.paired or tuple(paired), silence_s=silence)


def without_faulty(settings: dict[str, Any]) -> dict[str, Any]:
    """A site's settings without the rules that are faulty by themselves; all others go on."""
    there = settings.get("rules")
    return settings | {"rules": rules.sound(there)} if isinstance(there, dict) else settings


def faults_of(site: Site) -> list[str]:
    """What is wrong with rules and calibrations, which a Site holds in the form that only the rules' room reads."""
    found = faults(Calibrations, site.calibrations, "calibrations")
    try:
        rules.rules_of(site.rules)
    except ProtocolError as error:
        found.append(str(error))
    return found


def _newest(site: Calibrations, own: Calibrations) -> Calibrations:
    """Of each quantity the curve with the highest version, whoever has set it."""
    found: Calibrations = {tag: dict(curves) for tag, curves in site.items()}
    for tag, curves in own.items():
        for quantity, curve in curves.items():
            there = found.setdefault(tag, {}).get(quantity)
            if there is None or curve.version > there.version:
                found[tag][quantity] = curve
    return found
