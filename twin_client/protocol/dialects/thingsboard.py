"""ThingsBoard's gateway API: tags and cameras are devices, everything is JSON, and the PUBACK is the server's word.

ThingsBoard keeps one value per device, key and millisecond, and a second one in the same millisecond replaces the
first. A time is therefore taken in steps of 64 ms, and the record's own number, modulo 64, is added: records of one
device stay apart, and the same record sent twice has the same time both times, so that it is still one. Where more than
64 of one device come in 64 ms, those whose time is taken are moved to the next free one. The times of the latest 4096
records are remembered, whatever batch or connection they went with, so that none of them takes another's time, and one
that is sent again keeps its own. Beyond those, or after the agent was started anew, a moved one may come twice, and
share its time with one that is in its place.

A record that is too long for a message by itself goes without its thumbnail, then its boxes, then its window's samples:
`thumbnail_left_out: true`, and so on. The server hangs up on longer ones, and would never get any further.

It has no null: a quantity that its sensor sent as null becomes `QUANTITY_null: true`, one that was not sent has no
key. A value read by a sensor calibration stands beside `QUANTITY_raw` and `QUANTITY_calibration`. A person who sends a
command (an RPC to the gateway's own device) gives our command as its parameters, all but name and gateway.
"""

import base64
import math
import sys
from array import array
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from twin_client.protocol import orders
from twin_client.protocol.delivery import Stored
from twin_client.protocol.dialect import Heard, Message, Voice
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.orders import Answer, Command, Desired, Reported
from twin_client.protocol.records import Alarm, Gap, Health, Position, Prediction, Reading, Record, Window, record_of

STEP: Final = 64  # milliseconds
ITSELF: Final = ""  # the gateway's own device
_REMEMBERED: Final = 4096  # times given to records: twice what is on its way at once by default
_SPARED: Final = ("thumbnail", "boxes", "window")  # of a record that is too long, what the server gets last
_ANSWERED: Final = 256  # RPCs that wait for an answer, at most; the oldest are forgotten
_RPC, _ATTRIBUTES = "v1/devices/me/rpc/request/", "v1/devices/me/attributes"
_json = msgspec.json.Encoder()


class Speaker:
    """See the module."""

    puback = True

    def __init__(self, gateway: str, voice: Voice):
        self._gateway, self._voice = gateway, voice
        self._introduced: set[str] = set()
        self._asked: OrderedDict[str, str] = OrderedDict()  # RPC number by command
        self._times = _Times()

    def subscriptions(self) -> tuple[str, ...]:
        return (f"{_RPC}+", _ATTRIBUTES, f"{_ATTRIBUTES}/response/+")

    def will(self) -> Message | None:
        return None  # ThingsBoard sees by itself who is connected

    def hello(self) -> list[Message]:
        self._introduced.clear()
        return [Message(f"{_ATTRIBUTES}/request/1", _json.encode({"sharedKeys": "desired"}))]

    def goodbye(self) -> list[Message]:
        return []

    def batch(self, rows: Sequence[Stored]) -> list[Message]:
        messages: list[Message] = []
        told: dict[str, list[dict[str, Any]]] = defaultdict(list)
        size = 0
        for row in rows:
            record = record_of(row.body)
            device, number, values = _values(record, row)
            if device != ITSELF and device not in self._introduced:
                self._introduced.add(device)
                kind = "camera" if isinstance(record, Prediction) else "tag"
                messages.append(Message("v1/gateway/connect", _json.encode({"device": device, "type": kind})))
            at = self._times.of(row, device, record.at.wall // 1000 // STEP * STEP + number % STEP)
            entry, length = self._entry(device, at, values)
            if told and size + length > self._voice.most_message:
                messages += self._telemetry(told)
                told, size = defaultdict(list), 0
            told[device].append(entry)
            size += length
        return [*messages, *self._telemetry(told)]

    def hear(self, topic: str, payload: bytes) -> Heard | None:
        said = _object(payload)
        if topic.startswith(_RPC):
            return self._command(topic.removeprefix(_RPC), said)
        if topic.startswith(_ATTRIBUTES):
            shared = said.get("shared", said)
            desired = shared.get("desired") if isinstance(shared, dict) else None
            return None if desired is None else self._made(Desired, _as_object(desired))
        return None

    def answer(self, answer: Answer) -> list[Message]:
        said = msgspec.to_builtins(answer)
        messages = [_own({"ts": answer.at.wall // 1000, "values": {"answer": said}})]
        number = self._asked.pop(answer.id, None)
        if number is not None:
            messages.append(Message(f"v1/devices/me/rpc/response/{number}", _json.encode(said)))
        return messages

    def reported(self, reported: Reported) -> list[Message]:
        return [Message(_ATTRIBUTES, _json.encode({"reported": msgspec.to_builtins(reported)}))]

    def _command(self, number: str, said: dict[str, Any]) -> Command:
        params = _as_object(said.get("params"))
        command = self._made(Command, {"name": said.get("method"), **params})
        self._asked[command.id] = number
        while len(self._asked) > _ANSWERED:
            self._asked.popitem(last=False)
        return command

    def _made(self, kind: type[orders.Kind], said: dict[str, Any]) -> orders.Kind:
        return orders.from_json(kind, _json.encode({"version": orders.VERSION, "gateway": self._gateway, **said}))

    def _entry(self, device: str, at: int, values: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """What is said of a record, and how long it makes a message at most."""
        spared = [name for name in _SPARED if name in values]
        while True:
            entry = {"ts": at, "values": values}
            length = len(_json.encode(entry)) + len(device) + 8
            if length <= self._voice.most_message or not spared:
                return entry, length
            name = spared.pop(0)
            values = {key: value for key, value in values.items() if key != name} | {f"{name}_left_out": True}

    @staticmethod
    def _telemetry(told: dict[str, list[dict[str, Any]]]) -> Iterator[Message]:
        if itself := told.pop(ITSELF, None):
            yield Message("v1/devices/me/telemetry", _json.encode(itself))
        if told:
            yield Message("v1/gateway/telemetry", _json.encode(told))


class _Times:
    """Which millisecond each of the latest records was given, so that no two of a device have the same."""

    def __init__(self) -> None:
        self._given: OrderedDict[tuple[str, int], tuple[str, int]] = OrderedDict()  # by epoch and number
        self._next: dict[tuple[str, int], int] = {}  # of a device and a time that is taken: the next that may be free

    def of(self, row: Stored, device: str, wanted: int) -> int:
        """The time of this record: the one it has, or the first free one from `wanted` on."""
        given = self._given.get((row.epoch, row.seq))
        if given is not None:
            return given[1]
        at, passed = wanted, []
        while (later := self._next.get((device, at))) is not None:
            passed.append(at)
            at = later
        for each in (*passed, at):  # so that a crowd at one moment is not walked through again by each of it
            self._next[device, each] = at + 1
        self._given[row.epoch, row.seq] = device, at
        if len(self._given) > _REMEMBERED:
            del self._next[self._given.popitem(last=False)[1]]
        return at


def _own(entry: dict[str, Any]) -> Message:
    return Message("v1/devices/me/telemetry", _json.encode(entry))


def _object(payload: bytes) -> dict[str, Any]:
    if len(payload) > orders.MOST_BYTES:
        raise ProtocolError(f"{len(payload)} bytes, at most {orders.MOST_BYTES} are read")
    try:
        said = msgspec.json.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from error
    return _as_object(said)


def _as_object(said: object) -> dict[str, Any]:
    if isinstance(said, str):  # ThingsBoard's forms hand parameters on as text
        return _object(said.encode())
    if not isinstance(said, dict):
        raise ProtocolError(f"an object is wanted, not {ascii(said)[:60]}")
    return said


def _device(record: Record) -> str:
    if isinstance(record, Reading):
        return record.tag
    if isinstance(record, Prediction):
        return record.camera
    return record.subject if isinstance(record, Alarm) else ITSELF


def _values(record: Record, row: Stored) -> tuple[str, int, dict[str, Any]]:
    """Whose it is, what tells it from others of the same moment, and its values by key."""
    device = _device(record)
    if isinstance(record, Reading):
        return device, record.tag_seq, _reading(record)
    if isinstance(record, Prediction):
        return device, record.capture, _prediction(record)
    if isinstance(record, Alarm):
        return device, row.seq, {f"alarm_{record.rule}": _plain(record, "at", "subject", "rule")}
    if isinstance(record, Gap):
        return device, row.seq, {"gap": _plain(record, "at")}
    assert isinstance(record, Health)
    return device, row.seq, {**record.gauges, **record.counters, **record.words}


def _reading(record: Reading) -> dict[str, Any]:
    values: dict[str, Any] = {"tag_boot": record.tag_boot, "tag_seq": record.tag_seq}
    for name, measure in record.values.items():
        value = measure.value if measure.calibration else measure.raw
        if value is None:
            values[f"{name}_null"] = True
        else:
            values[name] = value
        if measure.calibration:
            values[f"{name}_calibration"] = measure.calibration
            if measure.raw is not None:
                values[f"{name}_raw"] = measure.raw
    if record.window is not None:
        values |= _window(record.window)
    if record.position is not None:
        values |= _position(record.position)
    for name in ("signal", "battery"):
        if (value := getattr(record, name)) is not None:
            values[name] = value
    return values


def _prediction(record: Prediction) -> dict[str, Any]:
    values = _plain(record, "at", "camera", "boxes", "thumbnail", "joined", "position")
    values["boxes"] = [msgspec.structs.asdict(box) for box in record.boxes]
    if record.thumbnail:
        values["thumbnail"] = base64.b64encode(record.thumbnail).decode()
    if record.joined is not None:
        values["joined"] = list(record.joined)
    if record.position is not None:
        values |= _position(record.position)
    return values


def _window(window: Window) -> dict[str, Any]:
    """The samples themselves, and what can be drawn of them: the root mean square and the largest, in their unit."""
    counts = array("h")
    counts.frombytes(window.counts[: len(window.counts) // 2 * 2])
    if sys.byteorder == "big":
        counts.byteswap()
    peak = max((abs(count) for count in counts), default=0) * window.scale
    rms = math.sqrt(sum(count * count for count in counts) / max(1, len(counts))) * window.scale
    samples = base64.b64encode(window.counts).decode()
    whole = {"rate": window.rate, "scale": window.scale, "axes": window.axes, "counts": samples}
    return {"window_rms": rms, "window_peak": peak, "window": whole}


def _position(position: Position) -> dict[str, Any]:
    values = {"latitude": position.latitude, "longitude": position.longitude, "position_error": position.error}
    if position.height is not None:
        values["height"] = position.height
    return {**values, "position_source": position.source}


def _plain(record: msgspec.Struct, *without: str) -> dict[str, Any]:
    told = {name: value for name, value in msgspec.structs.asdict(record).items() if name not in without}
    plain: dict[str, Any] = msgspec.to_builtins(told)
    return {name: value for name, value in plain.items() if value is not None}
