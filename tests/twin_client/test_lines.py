"""Loggers that speak text: strict about numbers, patient with the rest, and never a wrong value from half a line."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin_client.protocol import lines
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.lines import LineDecoder, Text
from twin_client.protocol.records import Position
from twin_client.protocol.tags import Frame

numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53).map(float)
values = st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True), numbers, max_size=6)
tag_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}", fullmatch=True)
said = st.builds(Frame, tag_names, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), values)
CSV = Text(tag="L-1", columns=("seq", "-", "strain", "temperature"))
BOOT = 77


def json_line(frame: Frame) -> bytes:
    line = {"tag": frame.tag, "boot": frame.tag_boot, "seq": frame.tag_seq, "values": frame.values}
    return json.dumps(line).encode() + b"\n"


def csv_of(text: Text, *rows: str) -> tuple[list[Frame], dict[str, int]]:
    decoder = LineDecoder("csv", text, BOOT)
    return decoder.feed("".join(f"{row}\r\n" for row in ("the rest of a line", *rows)).encode()), decoder.counters


# --- JSON -------------------------------------------------------------------------------------------------------


@given(st.lists(said, max_size=4), st.integers(1, 60), st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"]))
def test_json_lines_come_back_however_they_are_cut_and_ended(frames, step, end):
    stream = b"".join(json_line(frame).replace(b"\n", end) for frame in frames)
    decoder, found = LineDecoder("json", Text(), BOOT), []
    for at in range(0, len(stream), step):
        found += decoder.feed(stream[at : at + step])
    assert found == frames
    assert decoder.counters["lines"] == len(frames)
    assert decoder.counters["skipped_bytes"] == 0


def test_json_null_is_null_zero_is_zero_and_a_missing_key_is_absent():
    decoder = LineDecoder("json", Text(tag="L-1"), BOOT)
    (frame,) = decoder.feed(b'{"values": {"strain": 0, "tilt_x": null}}\n')
    assert frame == Frame("L-1", BOOT, 0, {"strain": 0.0, "tilt_x": None})


def test_json_says_all_that_a_reading_can_hold_and_ignores_the_rest():
    line = {
        "tag": "L-9",
        "boot": 4,
        "seq": 17,
        "signal": -80,
        "battery": 3.6,
        "values": {},
        "position": {"latitude": -23.5, "longitude": 119.25, "error": 2, "height": 410.5, "satellites": 7},
        "firmware": "2.1",
    }
    (frame,) = LineDecoder("json", Text(), BOOT).feed(json.dumps(line).encode() + b"\n")
    assert frame == Frame("L-9", 4, 17, {}, None, Position(-23.5, 119.25, 410.5, 2.0), -80.0, 3.6)


def test_the_nan_of_a_careless_logger_is_null():
    decoder = LineDecoder("json", Text(tag="L-1"), BOOT)
    (frame,) = decoder.feed(b'{"values": {"strain": NaN, "tilt_x":nan , "load": -Infinity, "rain": 1.5}}\n')
    assert frame.values == {"strain": None, "tilt_x": None, "load": None, "rain": 1.5}


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[]",
        b"17",
        b'{"values": [1]}',
        b'{"values": {"strain": "1.5"}}',
        b'{"values": {"strain": true}}',
        b'{"values": {"strain": 1e999}}',
        b'{"values": {"Strain": 1}}',
        b'{"values": {}, "seq": -1}',
        b'{"values": {}, "seq": 1.5}',
        b'{"values": {}, "boot": 4294967296}',
        b'{"values": {}, "tag": "a b"}',
        b'{"values": {}, "position": {"latitude": 91, "longitude": 0, "error": 1}}',
        b'{"values": {}} {"values": {}}',
        b'{"values": {"strain": 1',
        b'"strain": 1}}',
        b"[" * 5000,
        b"\xff\xfe\x00",
        b"GPS fix lost",
    ],
)
def test_a_bad_json_line_is_counted_and_the_next_is_read(line):
    decoder = LineDecoder("json", Text(tag="L-1"), BOOT)
    assert len(decoder.feed(line + b'\n{"values": {}}\n')) == 1
    assert (decoder.counters["lines"], decoder.counters["bad_lines"]) == (1, 1)
    assert decoder.counters["skipped_bytes"] == len(line)


def test_a_line_that_says_no_tag_where_the_settings_say_none_is_bad():
    decoder = LineDecoder("json", Text(), BOOT)
    assert decoder.feed(b'{"values": {}}\n') == []
    assert decoder.counters["bad_lines"] == 1


# --- CSV --------------------------------------------------------------------------------------------------------


def test_csv_empty_is_absent_null_and_nan_are_null_zero_is_zero():
    found, counters = csv_of(CSV, "1,x,0,", "2,,nan,1.5", "3,,NULL, none ", "4,,,")
    assert [frame.values for frame in found] == [
        {"strain": 0.0},
        {"strain": None, "temperature": 1.5},
        {"strain": None, "temperature": None},
        {},
    ]
    assert [(frame.tag, frame.tag_boot, frame.tag_seq) for frame in found] == [("L-1", BOOT, n) for n in (1, 2, 3, 4)]
    assert counters["bad_lines"] == 0


@given(st.lists(st.tuples(numbers, numbers), max_size=5))
def test_csv_numbers_come_back_exactly(rows):
    def field(value: float | None) -> str:
        return "null" if value is None else repr(value)

    found, counters = csv_of(CSV, *(f"{n},,{field(a)},{field(b)}" for n, (a, b) in enumerate(rows)))
    assert [frame.values for frame in found] == [{"strain": a, "temperature": b} for a, b in rows]
    assert counters["bad_lines"] == 0


@pytest.mark.parametrize(
    "row",
    [
        "1,,2",
        "1,,2,3,4",
        "1,,1_0,3",
        "1,,0x10,3",
        "1,,inf,3",
        "1,,1e999,3",
        "1,,--1,3",
        "1,,١,3",  # a digit to Python, but no logger's
        "-1,,1,3",
        "1.0,,1,3",
        "1e2,,1,3",
        "99999999999,,1,3",
        '1,,"1,3',
        "Err,,1,3",
    ],
)
def test_a_bad_csv_line_is_counted_and_never_half_believed(row):
    found, counters = csv_of(CSV, row, "7,,1,2")
    assert [frame.tag_seq for frame in found] == [7]
    assert (counters["lines"], counters["bad_lines"]) == (1, 1)


def test_the_first_line_after_opening_is_thrown_away_for_it_may_lack_its_beginning():
    decoder = LineDecoder("csv", Text(tag="L-1", columns=("strain",)), BOOT)
    assert decoder.feed(b"2.5\n112.5\n11") == [Frame("L-1", BOOT, 0, {"strain": 112.5})]
    decoder.reset()  # the port was lost in the middle of 112.7
    assert decoder.feed(b"2.7\n112.9\n") == [Frame("L-1", BOOT, 1, {"strain": 112.9})]
    assert decoder.counters["skipped_bytes"] == len("2.5") + len("11") + len("2.7")


def test_a_heading_is_no_bad_line():
    found, counters = csv_of(CSV, "seq,-,strain,temperature", "1,,2,3")
    assert len(found) == 1
    assert counters["bad_lines"] == 0


def test_a_decimal_comma_is_read_and_a_point_beside_it_is_not_guessed_at():
    text = Text(tag="L-1", columns=("strain", "load"), separator=";", decimal=",")
    found, counters = csv_of(text, "1,5;-,5", '"2,5";3', "1.234;1", "1.234,5;1")
    assert [frame.values for frame in found] == [{"strain": 1.5, "load": -0.5}, {"strain": 2.5, "load": 3.0}]
    assert counters["bad_lines"] == 2


def test_csv_places_need_latitude_longitude_and_error():
    text = Text(columns=("tag", "latitude", "longitude", "error", "height", "battery", "signal"))
    found, _ = csv_of(text, "L-1,-23.5,119.25,2.5,,3.6,-80", "L-1,,,,,,", "L-1,-23.5,119.25,2.5,400,null,")
    assert [frame.position for frame in found] == [
        Position(-23.5, 119.25, None, 2.5),
        None,
        Position(-23.5, 119.25, 400.0, 2.5),
    ]
    assert (found[0].battery, found[0].signal, found[1].battery, found[2].battery) == (3.6, -80.0, None, None)


# --- numbers ----------------------------------------------------------------------------------------------------


def bare(*fields: str, marks: dict | None = None, boot: int = BOOT) -> list[tuple[str, int, int]]:
    decoder = LineDecoder("json", Text(tag="L-1"), boot, marks)
    frames = decoder.feed("".join(f'{{"values": {{}}{field}}}\n' for field in fields).encode())
    return [(frame.tag, frame.tag_boot, frame.tag_seq) for frame in frames]


def test_lines_without_a_number_are_counted_here_each_tag_for_itself():
    other = ', "tag": "L-2"'
    assert bare("", other, "", other, "") == [
        ("L-1", BOOT, 0),
        ("L-2", BOOT, 0),
        ("L-1", BOOT, 1),
        ("L-2", BOOT, 1),
        ("L-1", BOOT, 2),
    ]


def test_the_count_goes_on_from_before_a_restart():
    assert bare("", "", marks={"L-1": (3, 40)}) == [("L-1", 3, 41), ("L-1", 3, 42)]


def test_a_logger_whose_numbers_fall_has_started_anew():
    seqs = [', "seq": 8', ', "seq": 9', ', "seq": 9', ', "seq": 0', ', "seq": 1']
    assert bare(*seqs) == [
        ("L-1", BOOT, 8),
        ("L-1", BOOT, 9),
        ("L-1", BOOT, 9),
        ("L-1", BOOT + 1, 0),
        ("L-1", BOOT + 1, 1),
    ]
    assert bare(', "seq": 2', marks={"L-1": (3, 40)}) == [("L-1", 4, 2)]


def test_a_logger_that_counts_its_starts_but_not_its_lines_has_them_counted_anew():
    assert bare(', "boot": 5', ', "boot": 5', ', "boot": 6') == [("L-1", 5, 0), ("L-1", 5, 1), ("L-1", 6, 0)]


def test_garbage_that_makes_up_tags_does_not_fill_the_memory():
    decoder = LineDecoder("json", Text(), BOOT)
    stream = "".join(f'{{"tag": "T{number}", "values": {{}}}}\n' for number in range(lines.MOST_TAGS + 10))
    assert len(decoder.feed(stream.encode())) == lines.MOST_TAGS
    assert decoder.counters["bad_lines"] == 10
    assert len(decoder.feed(b'{"tag": "T5", "values": {}}\n')) == 1


# --- garbage ----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=400), st.sampled_from(["json", "csv"]))
def test_no_bytes_whatever_make_the_decoder_raise(data, kind):
    decoder = LineDecoder(kind, Text(tag="L-1", columns=("strain", "load")), BOOT)
    decoder.feed(data + b"\n")
    decoder.feed(data)
    assert len(decoder._pieces._begun) <= lines.LONGEST


def test_memory_stays_bounded_without_a_single_line_end():
    decoder = LineDecoder("json", Text(tag="L-1"), BOOT)
    for _ in range(100):
        assert decoder.feed(b"x" * 1000) == []
        assert len(decoder._pieces._begun) <= lines.LONGEST
    assert decoder.counters["too_long"] == 1
    assert len(decoder.feed(b'\n{"values": {}}\n')) == 1
    assert decoder.counters["skipped_bytes"] == 100_000


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"columns": ["strain", "strain"], "tag": "L"}, "columns"),
        ({"columns": ["strain"]}, "tag"),
        ({"columns": ["Strain"], "tag": "L"}, "columns"),
        ({"columns": ["latitude", "longitude"], "tag": "L"}, "columns"),
        ({"columns": ["height"], "tag": "L"}, "columns"),
        ({"decimal": ","}, "decimal"),
        ({"separator": "x"}, "separator"),
        ({"tag": "a b"}, "tag"),
        ({"colums": []}, "colums"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(settings, word):
    with pytest.raises(msgspec.ValidationError, match=word):
        msgspec.convert(settings, Text)


def test_csv_without_columns_is_refused():
    with pytest.raises(ProtocolError, match="columns"):
        LineDecoder("csv", Text(tag="L-1"), BOOT)
