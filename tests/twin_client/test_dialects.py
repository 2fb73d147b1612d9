"""Dialects: what a gateway says reads the same to a decoder that shares no code with ours."""

import base64
import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin_client.protocol import dialect, orders
from twin_client.protocol.dialect import Voice, speaker
from twin_client.protocol.dialects.highwall import MOST_BYTES, batch_in
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.records import (
    Acknowledgement,
    Alarm,
    Batch,
    Box,
    ClockQuality,
    Gap,
    Health,
    Lost,
    Measure,
    Position,
    Prediction,
    Reading,
    Record,
    Stamp,
    Window,
    pack,
)

AT = Stamp(1_763_884_800_123_456, 77_000_000, "boot-1", ClockQuality.NETWORK)
COMMAND = orders.Command(1, "gw-1", "c-9", "ann", 10, 20, "capture_now", {"camera": "east"})
DESIRED = orders.Desired(1, "gw-1", 4, {"name": "gw-1"})
ANSWER = orders.Answer(1, "gw-1", "c-9", "done", "captured 1", AT, {"images": 1.0})


@dataclass(frozen=True)
class Row:
    seq: int
    record: Record
    epoch: str = "e1"
    kind: str = "reading"

    @property
    def body(self) -> bytes:
        return pack(self.record)


def reading(seq: int, at: Stamp = AT, tag: str = "tag-7", **more: Any) -> Reading:
    return Reading(at, tag, 3, seq, **({"values": {"strain": Measure(1.5)}} | more))


def at_ms(milliseconds: int) -> Stamp:
    return msgspec.structs.replace(AT, wall=milliseconds * 1000)


def read_messagepack(data: bytes) -> Any:
    """MessagePack after its specification, by hand: a mistake in the library's use cannot hide behind itself."""
    value, end = _item(data, 0)
    assert end == len(data)
    return value


def _item(data: bytes, at: int) -> tuple[Any, int]:
    first, at = data[at], at + 1
    if first < 0x80 or first >= 0xE0:
        found: Any = first if first < 0x80 else first - 256
    elif first < 0xA0 or 0xDC <= first <= 0xDF:
        width = 0 if first < 0xA0 else 2 << (first & 1)
        count = int.from_bytes(data[at : at + width], "big") if width else first & 15
        of_pairs = first < 0x90 or first >= 0xDE
        return (_map if of_pairs else _array)(data, at + width, count)
    elif first in (0xC0, 0xC2, 0xC3):
        found = {0xC0: None, 0xC2: False, 0xC3: True}[first]
    elif first in (0xCA, 0xCB):
        width = 4 << (first & 1 if first == 0xCB else 0)
        found, at = struct.unpack(">f" if width == 4 else ">d", data[at : at + width])[0], at + width
    elif 0xCC <= first <= 0xD3:
        width = 1 << (first & 3)
        found, at = int.from_bytes(data[at : at + width], "big", signed=first >= 0xD0), at + width
    else:
        text = first < 0xC0 or first >= 0xD9
        width = 0 if first < 0xC0 else 1 << (first - (0xD9 if text else 0xC4))
        size = int.from_bytes(data[at : at + width], "big") if width else first & 31
        body = data[at + width : at + width + size]
        found, at = body.decode() if text else body, at + width + size
    return found, at


def _array(data: bytes, at: int, count: int) -> tuple[list[Any], int]:
    found = []
    for _ in range(count):
        value, at = _item(data, at)
        found.append(value)
    return found, at


def _map(data: bytes, at: int, count: int) -> tuple[dict[Any, Any], int]:
    found = {}
    for _ in range(count):
        key, at = _item(data, at)
        found[key], at = _item(data, at)
    return found, at


# --- highwall -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True])
def test_a_batch_reads_the_same_by_hand(compress: bool) -> None:
    rows = [
        Row(5, reading(11, values={"strain": Measure(0.0), "tilt_x": Measure(None), "load": Measure(-2.5, 7.25, 3)})),
        Row(9, Gap(AT, "evicted", "e0", ((1, 70_000),), (Lost("tag-7", 3, None, 10),))),
    ]
    (message,) = speaker("highwall", "gw-1", Voice(compress=compress)).batch(rows)
    payload = zlib.decompress(message.payload) if compress else message.payload
    at = [1_763_884_800_123_456, 77_000_000, "boot-1", 2]
    assert message.topic == "mine/gw-1/up"
    assert read_messagepack(payload) == {
        "version": 1,
        "gateway": "gw-1",
        "epoch": "e1",
        "entries": [
            [
                5,
                {
                    "kind": "reading",
                    "at": at,
                    "tag": "tag-7",
                    "tag_boot": 3,
                    "tag_seq": 11,
                    "values": {"strain": [0.0, None, 0], "tilt_x": [None, None, 0], "load": [-2.5, 7.25, 3]},
                },
            ],
            [
                9,
                {
                    "kind": "gap",
                    "at": at,
                    "reason": "evicted",
                    "epoch": "e0",
                    "seqs": [[1, 70_000]],
                    "lost": [["tag-7", 3, None, 10]],
                },
            ],
        ],
    }


def test_a_golden_payload_has_not_changed_by_a_byte() -> None:
    (message,) = speaker("highwall", "gw-1").batch([Row(1, Health(AT, counters={"frames": 300}))])
    assert message.payload.hex() == (
        "84a776657273696f6e01a767617465776179a467772d31a565706f6368a26531a7656e74726965739192"
        "0183a46b696e64a66865616c7468a2617494cf0006443e6eefa240ce0496ed40a6626f6f742d3102a8636f756e74657273"
        "81a66672616d6573cd012c"
    )


@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=20, unique=True), st.booleans())
def test_the_twin_reads_what_the_gateway_packed(seqs: list[int], compress: bool) -> None:
    rows = [Row(seq, reading(seq)) for seq in sorted(seqs)]
    (message,) = speaker("highwall", "gw-1", Voice(compress=compress)).batch(rows)
    batch = batch_in(message.payload)
    assert isinstance(batch, Batch)
    assert [(entry.seq, entry.record) for entry in batch.entries] == [(row.seq, row.record) for row in rows]


@given(st.binary(max_size=300))
def test_any_bytes_at_all_are_refused_in_one_line(data: bytes) -> None:
    for payload in (data, b"\x78" + data, zlib.compress(data)):
        with pytest.raises(ProtocolError) as caught:
            batch_in(payload)
        assert "\n" not in str(caught.value)


def test_a_compressed_batch_cannot_fill_the_memory() -> None:
    with pytest.raises(ProtocolError, match=str(MOST_BYTES)):
        batch_in(zlib.compress(bytes(MOST_BYTES + 1)))


def test_acknowledgements_commands_and_desired_state_are_heard() -> None:
    ours = speaker("highwall", "gw-1")
    acknowledgement = Acknowledgement(1, "gw-1", "e1", ((1, 5), (9, 9)))
    assert ours.subscriptions() == ("mine/gw-1/ack", "mine/gw-1/command", "mine/gw-1/desired")
    assert ours.hear("mine/gw-1/ack", pack(acknowledgement)) == acknowledgement
    assert ours.hear("mine/gw-1/command", orders.pack(COMMAND)) == COMMAND
    assert ours.hear("mine/gw-1/desired", orders.pack(DESIRED)) == DESIRED
    assert ours.hear("mine/gw-1/desired", b"") is None
    assert ours.hear("mine/gw-1/other", b"?") is None


def test_what_is_meant_for_another_gateway_is_refused() -> None:
    with pytest.raises(ProtocolError, match="gw-2"):
        speaker("highwall", "gw-1").hear("mine/gw-1/ack", pack(Acknowledgement(1, "gw-2", "e1", ((1, 5),))))


def test_the_twin_sees_who_is_there_and_who_went_without_a_word() -> None:
    ours = speaker("highwall", "gw-1")
    will = ours.will()
    assert will is not None
    assert [json.loads(message.payload)["online"] for message in (*ours.hello(), *ours.goodbye(), will)] == [
        True,
        False,
        False,
    ]
    assert all(message.retain and message.topic == "mine/gw-1/status" for message in (*ours.hello(), will))


# --- ThingsBoard --------------------------------------------------------------------------------------------------


def telemetry(rows: list[Row], voice: Voice | None = None) -> dict[str, list[dict[str, Any]]]:
    told: dict[str, list[dict[str, Any]]] = {}
    for message in speaker("thingsboard", "gw-1", voice).batch(rows):
        if message.topic == "v1/gateway/telemetry":
            for device, entries in json.loads(message.payload).items():
                told.setdefault(device, []).extend(entries)
        elif message.topic == "v1/devices/me/telemetry":
            told.setdefault("", []).extend(json.loads(message.payload))
    return told


def test_zero_null_and_absent_are_three_things() -> None:
    values = {
        "strain": Measure(0.0),
        "tilt_x": Measure(None),
        "load": Measure(-2.5, 7.25, 3),
        "rain": Measure(9, None, 2),
    }
    (entry,) = telemetry([Row(5, reading(11, values=values))])["tag-7"]
    assert entry["values"] == {
        "tag_boot": 3,
        "tag_seq": 11,
        "strain": 0.0,
        "tilt_x_null": True,
        "load": 7.25,
        "load_raw": -2.5,
        "load_calibration": 3,
        "rain_null": True,
        "rain_raw": 9.0,
        "rain_calibration": 2,
    }


def test_every_kind_of_record_has_its_place() -> None:
    window = Window(100.0, 0.5, 3, struct.pack("<6h", 2, -4, 0, 0, 0, 0))
    position = Position(50.5, 7.25, None, 3.0)
    rows = [
        Row(1, reading(1, window=window, position=position, signal=-70.0, battery=3.6)),
        Row(2, Prediction(AT, "east", 8, "ab" * 32, 0.9, 0.5, 640, 480, 77, (Box(1, 2, 3, 4, 0.9),), b"jpeg")),
        Row(3, Alarm(AT, "gw-1/e1/1/creep@2", "tag-7", "creep", 2, 3, "velocity", 4.5, 4.0, "evacuate")),
        Row(4, Health(AT, {"queue_rows": 3.0}, {"frames": 5}, {"version": "1"})),
        Row(5, Gap(AT, "radio", lost=(Lost("tag-7", 3, 5, 9),))),
    ]
    told = telemetry(rows)
    shaken, alarm = (entry["values"] for entry in told["tag-7"])
    assert shaken["window_peak"] == 2.0
    assert shaken["window_rms"] == pytest.approx((20 / 6) ** 0.5 * 0.5)
    assert base64.b64decode(shaken["window"]["counts"]) == window.counts
    assert (shaken["latitude"], shaken["position_error"], shaken["signal"]) == (50.5, 3.0, -70.0)
    assert "height" not in shaken
    assert alarm["alarm_creep"]["level"] == 3
    assert alarm["alarm_creep"]["id"] == "gw-1/e1/1/creep@2"
    assert base64.b64decode(told["east"][0]["values"]["thumbnail"]) == b"jpeg"
    assert told["east"][0]["values"]["boxes"] == [{"left": 1, "top": 2, "right": 3, "bottom": 4, "score": 0.9}]
    assert [list(entry["values"]) for entry in told[""]] == [["queue_rows", "frames", "version"], ["gap"]]


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=64, unique=True), st.integers(0, 2**31), st.integers(1, 9))
def test_times_are_unique_and_the_same_whatever_else_is_in_the_batch(
    moments: list[int], first: int, parts: int
) -> None:
    """64 frames of a tag with numbers in a row, however close together."""
    rows = [
        Row(seq, reading(first + seq, at_ms(1_763_884_800_000 + moment)))
        for seq, moment in enumerate(sorted(moments), 1)
    ]
    whole = [entry["ts"] for entry in telemetry(rows)["tag-7"]]
    assert len(set(whole)) == len(whole)
    assert all(abs(ts - row.record.at.wall // 1000) < 64 for ts, row in zip(whole, rows, strict=True))
    apart = [entry["ts"] for at in range(0, len(rows), parts) for entry in telemetry(rows[at : at + parts])["tag-7"]]
    assert apart == whole


def test_more_of_one_tag_than_have_room_are_moved_and_not_lost() -> None:
    told = telemetry([Row(seq, reading(seq)) for seq in range(1, 301)])["tag-7"]
    assert len({entry["ts"] for entry in told}) == 300
    assert [entry["values"]["tag_seq"] for entry in told] == list(range(1, 301))


def test_messages_stay_below_what_the_server_takes() -> None:
    window = Window(100.0, 0.001, 3, bytes(9000))
    rows = [Row(seq, reading(seq, window=window)) for seq in range(1, 30)]
    messages = speaker("thingsboard", "gw-1").batch(rows)
    assert max(len(message.payload) for message in messages) <= 60_000
    assert len(telemetry(rows)["tag-7"]) == 29


def test_a_device_is_introduced_once_on_every_connection() -> None:
    ours = speaker("thingsboard", "gw-1")
    for _ in range(2):
        ours.hello()
        first = ours.batch([Row(1, reading(1)), Row(2, reading(1, tag="tag-8"))])
        assert [json.loads(message.payload)["device"] for message in first[:2]] == ["tag-7", "tag-8"]
        assert [message.topic for message in ours.batch([Row(3, reading(2))])] == ["v1/gateway/telemetry"]


def test_a_command_comes_as_an_rpc_and_its_answer_goes_back_to_it() -> None:
    ours = speaker("thingsboard", "gw-1")
    params = {"id": "c-9", "issuer": "ann", "issued": 10, "expires": 20, "arguments": {"camera": "east"}}
    for form in (params, json.dumps(params)):
        said = json.dumps({"method": "capture_now", "params": form}).encode()
        assert ours.hear("v1/devices/me/rpc/request/17", said) == COMMAND
    messages = ours.answer(ANSWER)
    assert [message.topic for message in messages] == ["v1/devices/me/telemetry", "v1/devices/me/rpc/response/17"]
    assert json.loads(messages[1].payload)["outcome"] == "done"
    assert [message.topic for message in ours.answer(ANSWER)] == ["v1/devices/me/telemetry"]


def test_the_desired_state_is_a_shared_attribute() -> None:
    ours = speaker("thingsboard", "gw-1")
    said = {"number": 4, "settings": {"name": "gw-1"}}
    assert ours.hear("v1/devices/me/attributes", json.dumps({"desired": said}).encode()) == DESIRED
    assert (
        ours.hear("v1/devices/me/attributes/response/1", json.dumps({"shared": {"desired": said}}).encode()) == DESIRED
    )
    assert ours.hear("v1/devices/me/attributes/response/1", b"{}") is None
    assert ours.hear("v1/devices/me/attributes", b'{"other": 1}') is None


@given(
    st.one_of(
        st.binary(max_size=60),
        st.recursive(st.none() | st.text(max_size=5) | st.integers(), st.lists).map(
            lambda value: json.dumps(value).encode()
        ),
    )
)
def test_what_cannot_be_understood_is_refused_in_one_line(payload: bytes) -> None:
    ours = speaker("thingsboard", "gw-1")
    for topic in ("v1/devices/me/rpc/request/1", "v1/devices/me/attributes"):
        try:
            ours.hear(topic, payload)
        except ProtocolError as error:
            assert "\n" not in str(error)


def test_an_unknown_dialect_is_refused_with_the_names_there_are() -> None:
    assert dialect.names() == ["highwall", "thingsboard"]
    with pytest.raises(ProtocolError, match="there are highwall, thingsboard"):
        speaker("sparkplug", "gw-1")
