"""The frame of a tag: what goes in comes out, what is broken never does, and noise holds none."""

import random
import struct
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin_client.protocol import tags
from twin_client.protocol.cobs import stuff, unstuff
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.records import Measure, Position, Stamp, Window
from twin_client.protocol.tags import Decoder, Frame, reading_of

float32 = st.floats(width=32, allow_nan=False, allow_infinity=False).map(tags._plain)
positive = st.floats(min_value=2.0**-20, max_value=2.0**20, width=32).map(tags._plain)
names = st.sampled_from(sorted(tags.QUANTITIES.values())) | st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)
north, east = (st.integers(-most, most).map(lambda steps: steps / 1e7) for most in (900_000_000, 1_800_000_000))
positions = st.builds(Position, north, east, st.none() | float32, positive)
windows = st.integers(1, 9).flatmap(
    lambda axes: st.builds(
        Window, positive, positive, st.just(axes), st.binary(max_size=60).map(lambda data: data * (2 * axes))
    )
)
u32 = st.integers(0, 2**32 - 1)
frames = st.builds(
    Frame,
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,19}", fullmatch=True),
    u32,
    u32,
    st.dictionaries(names, st.none() | float32, max_size=12),
    st.none() | windows,
    st.none() | positions,
    st.none() | float32,
    st.none() | float32,
)
AT = Stamp(1_700_000_000_000_000, 5, "boot")
SMALL = Frame("BC-0007", 3, 70, {"strain": -12.5, "tilt_x": 0.0, "temperature": None}, battery=3.6)


def raw(body: bytes) -> bytes:
    """A frame of any body, its check right."""
    return b"\0" + stuff(body + struct.pack("<I", zlib.crc32(body))) + b"\0"


def head(tag: bytes = b"T", version: int = 1) -> bytes:
    return bytes((version, len(tag))) + tag + struct.pack("<II", 2, 9)


def item(code: int, data: bytes) -> bytes:
    return struct.pack("<BH", code, len(data)) + data


# --- coding -----------------------------------------------------------------------------------------------------


@given(frames)
def test_a_frame_comes_back_as_it_was(frame):
    data = frame.to_bytes()
    assert data[0] == data[-1] == 0
    assert 0 not in data[1:-1]
    assert Frame.from_bytes(data) == frame


def test_the_bytes_are_those_of_the_document():
    body = b"\x01\x02T1" + b"\x02\0\0\0" + b"\x09\0\0\0" + b"\x01\x04\0" + struct.pack("<f", 0.0) + b"\x05\0\0"
    body += b"\x7f\x05\0\x04flow" + b"\x80\x04\0" + struct.pack("<f", 3.5)
    frame = Frame("T1", 2, 9, {"strain": 0.0, "temperature": None, "flow": None}, battery=3.5)
    assert frame.to_bytes() == raw(body)


def test_zero_null_and_absent_are_three_things():
    zero, null, absent = (
        Frame.from_bytes(Frame("T", 0, 0, values).to_bytes()).values
        for values in ({"strain": 0.0}, {"strain": None}, {})
    )
    assert (zero, null, absent) == ({"strain": 0.0}, {"strain": None}, {})
    reading = reading_of(Frame("T", 0, 0, {"strain": 0.0, "tilt_x": None}), AT)
    assert reading.values == {"strain": Measure(0.0, 0.0), "tilt_x": Measure(None, None)}


def test_a_float32_reads_as_the_decimal_that_was_meant():
    values = {"strain": 0.1, "tilt_x": 123.456, "load": 1e-40, "rain": 3.4028235e38, "wind": 16777217.0}
    back = Frame.from_bytes(Frame("T", 0, 0, values).to_bytes()).values
    assert back == values | {"wind": 16777216.0, "load": back["load"]}
    assert back["load"] == pytest.approx(1e-40, rel=1e-4)


def test_position_battery_and_signal_become_the_readings_own():
    frame = Frame("T", 1, 2, {}, Window(50.0, 0.5, 3, bytes(12)), Position(-23.5, 119.25, None, 2.5), -81.0, 3.5)
    reading = reading_of(Frame.from_bytes(frame.to_bytes()), AT)
    assert (reading.position, reading.window) == (frame.position, frame.window)
    assert (reading.signal, reading.battery, reading.values) == (-81.0, 3.5, {})
    assert (reading.tag, reading.tag_boot, reading.tag_seq, reading.at) == ("T", 1, 2, AT)
    assert reading_of(frame, AT, signal=-60.0).signal == -60.0


@pytest.mark.parametrize(
    "frame",
    [
        Frame("", 0, 0),
        Frame("A" * 21, 0, 0),
        Frame("Ü", 0, 0),
        Frame("a b", 0, 0),
        Frame("T", -1, 0),
        Frame("T", 0, 2**32),
        Frame("T", 0, 0, {"strain": float("nan")}),
        Frame("T", 0, 0, {"strain": 1e39}),
        Frame("T", 0, 0, {"Strain": 1.0}),
        Frame("T", 0, 0, battery=float("inf")),
        Frame("T", 0, 0, position=Position(91.0, 0.0, None, 1.0)),
        Frame("T", 0, 0, position=Position(float("nan"), 0.0, None, 1.0)),
        Frame("T", 0, 0, window=Window(50.0, 1.0, 3, bytes(7))),
        Frame("T", 0, 0, window=Window(0.0, 1.0, 3, bytes(6))),
        Frame("T", 0, 0, window=Window(50.0, 1.0, 1, bytes(tags.LARGEST))),
        Frame("T", 0, 0, window=Window(50.0, 1.0, 1, bytes(70_000))),
    ],
)
def test_what_no_frame_can_hold_is_refused_by_name(frame):
    with pytest.raises(ProtocolError, match=r"^frame -?\d+ of tag "):
        frame.to_bytes()


def test_the_largest_frame_passes_and_one_byte_more_does_not():
    room = tags.LARGEST - len(Frame("T", 0, 0, window=Window(50.0, 1.0, 1, b"")).to_bytes()) + 3
    frame = Frame("T", 0, 0, window=Window(50.0, 1.0, 1, b"\x01\x02" * (room // 2)))
    assert Frame.from_bytes(frame.to_bytes()) == frame
    with pytest.raises(ProtocolError, match="over 16384"):
        Frame("T" * (3 + room % 2), 0, 0, window=frame.window).to_bytes()


# --- COBS -------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=40) | st.lists(st.sampled_from([b"\0", b"\1", b"\xff" * 253, b"a" * 254])).map(b"".join))
def test_cobs_holds_no_zero_and_comes_back(data):
    coded = stuff(data)
    assert 0 not in coded
    assert len(coded) <= len(data) + len(data) // 254 + 1
    assert unstuff(coded) == data


@pytest.mark.parametrize(
    ("data", "coded"),  # from the paper and the field
    [
        ("", "01"),
        ("00", "0101"),
        ("0000", "010101"),
        ("11220033", "0311220233"),
        ("11223344", "0511223344"),
        ("11000000", "0211010101"),
        ("01" * 253 + "00", "fe" + "01" * 253 + "01"),
        ("01" * 254 + "02", "ff" + "01" * 254 + "0202"),
    ],
)
def test_cobs_is_everybodys_cobs(data, coded):
    assert stuff(bytes.fromhex(data)).hex() == coded
    assert unstuff(bytes.fromhex(coded)).hex() == data


def test_a_block_of_254_at_the_very_end_is_read_in_both_customs():
    data = b"\x01" * 254
    assert unstuff(b"\xff" + data) == unstuff(b"\xff" + data + b"\x01") == data


# --- finding frames ---------------------------------------------------------------------------------------------


@given(st.lists(frames, max_size=4), st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_frames_are_found_however_the_stream_is_cut(sent, cuts):
    stream = b"".join(frame.to_bytes() for frame in sent)
    decoder, found, at = Decoder(), [], 0
    while at < len(stream):
        length = cuts[at % len(cuts)]
        found += decoder.feed(stream[at : at + length])
        at += length
    assert found == sent
    assert decoder.counters["skipped_bytes"] == 0
    assert decoder.counters["frames"] == len(sent)


def test_half_frames_at_every_split():
    stream = SMALL.to_bytes() + SMALL.to_bytes()
    for split in range(len(stream) + 1):
        decoder = Decoder()
        assert decoder.feed(stream[:split]) + decoder.feed(stream[split:]) == [SMALL, SMALL]
        assert decoder.counters["skipped_bytes"] == 0


@given(st.binary(max_size=300), frames, st.binary(max_size=300))
def test_a_frame_is_found_whatever_lies_before_and_behind_it(before, frame, behind):
    decoder = Decoder()
    found = decoder.feed(before + frame.to_bytes() + behind + b"\0")
    assert found == [frame]
    assert decoder.counters["skipped_bytes"] == sum(byte != 0 for byte in before + behind)


def test_every_flipped_bit_costs_the_frame_and_never_makes_another():
    good = SMALL.to_bytes()
    for bit in range(8 * len(good)):
        broken = bytearray(good)
        broken[bit // 8] ^= 1 << bit % 8
        decoder = Decoder()
        found = decoder.feed(bytes(broken) + good)
        assert found == [SMALL]
        assert decoder.counters["skipped_bytes"] > 0


def test_truncated_and_doubled_bytes_never_make_a_wrong_frame():
    good = SMALL.to_bytes()
    for at in range(1, len(good) - 1):
        for broken in (
            good[:at] + b"\0",
            good[:at] + good[at + 1 :],
            good[:at] + good[at : at + 1] * 2 + good[at + 1 :],
        ):
            decoder = Decoder()
            assert decoder.feed(broken) == []
            assert decoder.feed(good) == [SMALL]


@given(st.lists(frames, min_size=1, max_size=3), st.data())
def test_mangled_streams_give_only_frames_that_were_sent(sent, data):
    stream = bytearray(b"".join(frame.to_bytes() for frame in sent))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(stream) - 1))
        stream[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        stream = stream or bytearray(b"\0")
    found = Decoder().feed(bytes(stream) + b"\0")
    assert all(frame in sent for frame in found)


def test_1000_frames_in_10_mb_of_noise_are_all_found_and_none_is_false():
    dice = random.Random(20261123)
    noise = dice.randbytes(10_000_000)
    hidden = [
        Frame(f"BC-{number % 7:04}", 1, number, {"strain": dice.gauss(0, 300), "temperature": None}, battery=3.6)
        for number in range(1000)
    ]
    stream, last = bytearray(), 0
    for cut, frame in zip(sorted(dice.sample(range(len(noise)), 1000)), hidden, strict=True):
        stream += noise[last:cut] + frame.to_bytes()
        last = cut
    stream += noise[last:]
    decoder, found, began = Decoder(), [], time.process_time()
    for at in range(0, len(stream), 4093):
        found += decoder.feed(bytes(stream[at : at + 4093]))
    spent = time.process_time() - began
    decoder.feed(b"\0")  # ends what the noise left open
    assert [frame.tag_seq for frame in found] == list(range(1000))
    assert decoder.counters["frames"] == 1000
    assert decoder.counters["skipped_bytes"] == len(noise) - noise.count(0)
    assert spent < 10


def test_small_frames_are_read_faster_than_any_line_brings_them():
    stream = b"".join(Frame("BC-0001", 1, number, {"strain": 1.5}).to_bytes() for number in range(5000))
    best = min(_seconds(stream) for _ in range(3))
    assert best < 1.0  # 5,000 a second


def _seconds(stream: bytes) -> float:
    began = time.process_time()
    assert len(Decoder().feed(stream)) == 5000
    return time.process_time() - began


def test_memory_stays_bounded_without_a_single_zero():
    decoder = Decoder()
    for _ in range(200):
        assert decoder.feed(b"\x55" * 1000) == []
        assert len(decoder._pieces._begun) <= tags.LONGEST
    assert decoder.counters["too_long"] == 1
    assert decoder.feed(SMALL.to_bytes()) == [SMALL]
    assert decoder.counters["skipped_bytes"] == 200_000
    assert decoder.feed(b"\0" + b"\x55" * 30_000 + SMALL.to_bytes()) == [SMALL]
    assert decoder.counters["too_long"] == 2
    assert decoder.feed(b"\x55" * 30_000 + SMALL.to_bytes()[:9]) + decoder.feed(SMALL.to_bytes()[9:]) == [SMALL]


def test_after_a_cut_line_the_next_frame_is_not_glued_to_the_half_before():
    good = SMALL.to_bytes()
    decoder = Decoder()
    decoder.feed(good[:20])
    decoder.reset()
    assert decoder.feed(good[1:]) == [SMALL]  # as it comes from a sender that leaves its first zero out
    assert decoder.counters["skipped_bytes"] == 19


# --- what a newer or a faulty tag says --------------------------------------------------------------------------


def test_an_older_gateway_skips_and_counts_what_it_does_not_know():
    known = item(1, struct.pack("<f", 2.5))
    body = head() + item(0x33, b"new") + item(0xFE, b"") + item(5, bytes(8)) + known + item(0x7F, b"")
    decoder = Decoder()
    assert decoder.feed(raw(body)) == [Frame("T", 2, 9, {"strain": 2.5})]
    assert (decoder.counters["unknown_items"], decoder.counters["bad_items"]) == (4, 0)


@pytest.mark.parametrize(
    "bad",
    [
        item(2, struct.pack("<f", 1.0)),  # a second one
        item(0x7F, b"\x03A b" + bytes(4)),
        item(0x7F, b"\x06strain" + bytes(4)),
        item(0x82, struct.pack("<iif", 910_000_000, 0, 1.0)),
        item(0x82, struct.pack("<iif", 0, 0, float("nan"))),
        item(0x83, struct.pack("<ffB", 50.0, 1.0, 3) + bytes(7)),
        item(0x83, struct.pack("<ffB", 50.0, 1.0, 0)),
        item(0x83, struct.pack("<ffB", float("inf"), 1.0, 3)),
        item(0x80, struct.pack("<f", float("nan"))),
    ],
)
def test_an_item_that_cannot_be_does_not_cost_the_rest_of_the_frame(bad):
    body = head() + item(2, struct.pack("<f", 7.5)) + bad
    decoder = Decoder()
    assert decoder.feed(raw(body)) == [Frame("T", 2, 9, {"extensometer": 7.5})]
    assert (decoder.counters["frames"], decoder.counters["bad_items"]) == (1, 1)


def test_a_nan_is_read_as_null_and_counted():
    decoder = Decoder()
    (frame,) = decoder.feed(raw(head() + item(1, struct.pack("<f", float("nan")))))
    assert frame.values == {"strain": None}
    assert decoder.counters["bad_items"] == 1


@pytest.mark.parametrize(
    ("body", "counter"),
    [
        (head(version=2), "newer_version"),
        (head(version=0) + bytes(4), "malformed"),
        (head(b""), "bad_crc"),  # too short to be one
        (head(b"") + bytes(4), "malformed"),
        (head(b"a b"), "malformed"),
        (head(b"\xff"), "malformed"),
        (b"\x01\xc8T" + bytes(20), "malformed"),
        (head() + b"\x01", "malformed"),
        (head() + item(1, bytes(4))[:-1], "malformed"),
        (head(b"T" * 20)[:-5], "malformed"),
    ],
)
def test_a_sound_check_around_nonsense_is_counted_as_what_it_is(body, counter):
    decoder = Decoder()
    assert decoder.feed(raw(body)) == []
    assert decoder.counters[counter] == 1
    assert decoder.feed(SMALL.to_bytes()) == [SMALL]


@given(st.binary(max_size=80))
def test_no_body_whatever_makes_the_decoder_raise(body):
    decoder = Decoder()
    decoder.feed(raw(b"\x01\x01T" + body))
    decoder.feed(raw(head() + body))
    decoder.feed(raw(body))
    counted = decoder.counters
    assert counted["frames"] + counted["malformed"] + counted["newer_version"] + counted["bad_crc"] == 3


@pytest.mark.parametrize(
    "data", [b"", b"\0\0", b"\x05ab", SMALL.to_bytes() * 2, SMALL.to_bytes()[:-3], b"\x07" * 40_000]
)
def test_bytes_that_are_not_one_frame_are_refused(data):
    with pytest.raises(ProtocolError, match=f"^{len(data)} bytes are not one frame"):
        Frame.from_bytes(data)
