"""ThingsBoard over many batches: no record takes another's millisecond, and none is too long for the server."""

import base64
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_dialects import AT, Row, at_ms, reading

from twin_client.protocol.dialect import Voice, speaker
from twin_client.protocol.dialects import thingsboard
from twin_client.protocol.records import Alarm, Box, Prediction, Record, Window

MOMENT = 1_763_884_800_000 // 64 * 64


class Server:
    """What ThingsBoard keeps: one value per device, key and millisecond. `times` has those of each tag's numbers."""

    def __init__(self, most_message: int = 60_000) -> None:
        self.gateway = speaker("thingsboard", "gw-1", Voice(most_message=most_message))
        self.kept: dict[tuple[str, int, str], Any] = {}
        self.times: dict[tuple[str, int], set[int]] = {}
        self.longest = 0

    def take(self, rows: list[Row]) -> None:
        for message in self.gateway.batch(rows):
            self.longest = max(self.longest, len(message.payload))
            if message.topic == "v1/gateway/telemetry":
                for device, entries in json.loads(message.payload).items():
                    for entry in entries:
                        if (number := entry["values"].get("tag_seq")) is not None:
                            self.times.setdefault((device, number), set()).add(entry["ts"])
                        self.kept |= {(device, entry["ts"], key): value for key, value in entry["values"].items()}

    def numbers(self, device: str = "tag-7") -> list[int]:
        """The numbers of the frames that are still there."""
        return sorted(value for (whose, _, key), value in self.kept.items() if (whose, key) == (device, "tag_seq"))


def crowd(count: int, every_ms: int = 2, tag: str = "tag-7") -> list[Row]:
    """So many frames in so many milliseconds, each `every_ms`-th of them in the next."""
    return [Row(seq + 1, reading(seq, at_ms(MOMENT + seq // every_ms), tag)) for seq in range(count)]


@pytest.mark.parametrize("size", [1, 10, 50, 64, 100])
def test_none_of_a_crowd_is_lost_however_it_is_cut_into_batches(size: int) -> None:
    server, rows = Server(), crowd(200)
    for first in range(0, len(rows), size):
        server.take(rows[first : first + size])
    assert server.numbers() == list(range(200))


def test_what_is_sent_again_keeps_its_time_in_other_batches_and_on_another_connection() -> None:
    server, rows = Server(), crowd(300)
    for first in range(0, 300, 50):
        server.take(rows[first : first + 50])
    server.gateway.hello()
    for first in range(0, 300, 7):
        server.take(rows[first : first + 7])
    server.take(rows[::-1])
    assert server.numbers() == list(range(300))
    assert all(len(times) == 1 for times in server.times.values())


@given(st.lists(st.tuples(st.integers(0, 299), st.integers(1, 60)), max_size=20), st.integers(1, 40))
def test_in_any_order_and_with_any_repetition_each_keeps_one_time_of_its_own(
    parts: list[tuple[int, int]], every_ms: int
) -> None:
    server, rows = Server(), crowd(300, every_ms)
    for first, count in parts:
        server.take(rows[first : first + count])
    assert len(server.numbers()) == len(set(server.numbers())) == len(server.times)
    assert all(len(times) == 1 for times in server.times.values())


def test_devices_and_epochs_are_told_apart() -> None:
    server = Server()
    server.take(crowd(100))
    server.take(crowd(100, tag="tag-8"))
    server.take([Row(row.seq, reading(100 + at, row.record.at), "e2") for at, row in enumerate(crowd(100))])
    assert server.numbers() == list(range(200))
    assert server.numbers("tag-8") == list(range(100))


def test_what_is_remembered_is_bounded_and_a_crowd_takes_no_longer_for_it() -> None:
    server, begun = Server(), time.process_time()
    rows = [Row(seq + 1, reading(seq, at_ms(MOMENT))) for seq in range(3 * thingsboard._REMEMBERED)]  # at one moment
    for first in range(0, len(rows), 500):
        server.take(rows[first : first + 500])
    times = server.gateway._times
    assert len(times._given) == len(times._next) == thingsboard._REMEMBERED
    latest = server.numbers()[-thingsboard._REMEMBERED :]
    assert latest == [row.record.tag_seq for row in rows[-thingsboard._REMEMBERED :]]
    assert time.process_time() - begun < 10  # two seconds, and a multiple where each walks through all the others


# --- too long -----------------------------------------------------------------------------------------------------


def judged(**more: Any) -> Prediction:
    return Prediction(AT, "east", 8, "ab" * 32, 0.9, 0.5, 640, 480, 77, **more)


def values(server: Server, device: str) -> dict[str, Any]:
    return {key: value for (whose, _, key), value in server.kept.items() if whose == device}


BOXES = tuple(Box(1001, 1002, 1003, 1004, 0.123456789) for _ in range(1000))  # as many as a camera may have
WINDOW = Window(100.0, 0.5, 3, bytes(16_000))


@pytest.mark.parametrize(
    ("record", "most", "gone", "there"),
    [
        (judged(thumbnail=bytes(65_536), boxes=BOXES[:20]), 60_000, {"thumbnail"}, {"boxes", "probability"}),
        (judged(thumbnail=bytes(65_536), boxes=BOXES), 60_000, {"thumbnail", "boxes"}, {"probability", "threshold"}),
        (judged(thumbnail=bytes(9_000)), 4096, {"thumbnail"}, {"boxes"}),
        (judged(thumbnail=bytes(40_000), boxes=BOXES[:20]), 60_000, set(), {"thumbnail", "boxes"}),
        (reading(1, window=WINDOW), 60_000, set(), {"window", "window_rms", "strain"}),
        (reading(1, window=WINDOW), 4096, {"window"}, {"window_rms", "window_peak", "strain"}),
    ],
)
def test_a_record_too_long_for_a_message_goes_without_what_is_long_in_it(
    record: Record, most: int, gone: set[str], there: set[str]
) -> None:
    server = Server(most)
    server.take([Row(1, record)])
    said = values(server, "tag-7" if record.__struct_config__.tag == "reading" else "east")
    assert server.longest <= most
    assert {key for key in said if key.endswith("_left_out")} == {f"{name}_left_out" for name in gone}
    assert not gone & said.keys()
    assert there <= said.keys()


def test_others_of_the_same_batch_lose_nothing_by_it() -> None:
    small = Prediction(AT, "west", 8, "ab" * 32, 0.9, 0.5, 640, 480, 77, (), b"jpeg")
    alarm = Alarm(AT, "gw-1/e1/1/creep@2", "tag-7", "creep", 2, 3, "velocity", 4.5, 4.0, "evacuate")
    server = Server()
    server.take([Row(1, small), Row(2, judged(thumbnail=bytes(65_536))), Row(3, alarm), Row(4, reading(1))])
    assert server.longest <= 60_000
    assert base64.b64decode(values(server, "west")["thumbnail"]) == b"jpeg"
    assert "thumbnail" not in values(server, "east")
    assert {"alarm_creep", "strain"} <= values(server, "tag-7").keys()
