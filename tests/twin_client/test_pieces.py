"""A stream is cut at its ends, however it arrives, and a stretch without an end fills no memory."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from twin_client.protocol.pieces import Pieces

LONGEST = 5

streams = st.lists(st.sampled_from((b"\0", b"a", b"bc", b"defgh", b"ijklmno")), max_size=40).map(b"".join)


def _cut(parts: list[bytes], headless: bool) -> tuple[list[bytes], dict[str, int], Pieces]:
    counters = {"too_long": 0, "skipped_bytes": 0}
    pieces = Pieces(b"\0", LONGEST, counters, headless=headless)
    return [piece for part in parts for piece in pieces.cut(part)], counters, pieces


@given(streams, st.lists(st.integers(0, 80), max_size=9), st.booleans())
def test_how_a_stream_is_cut_makes_no_difference(stream: bytes, at: list[int], headless: bool) -> None:
    places = [0, *sorted(min(each, len(stream)) for each in at), len(stream)]
    parts = [stream[first:last] for first, last in pairwise(places)]
    assert _cut(parts, headless)[:2] == _cut([stream], headless)[:2]


@given(streams, st.booleans())
def test_every_byte_is_an_end_in_a_piece_or_counted(stream: bytes, headless: bool) -> None:
    found, counters, pieces = _cut([stream], headless)
    pieces.reset()
    assert stream.count(b"\0") + sum(map(len, found)) + counters["skipped_bytes"] == len(stream)
    *ended, rest = stream.split(b"\0")
    heard = ended[1:] if headless else ended
    assert found == [each for each in heard if 0 < len(each) <= LONGEST]
    deaf = headless and not ended
    assert counters["too_long"] == sum(len(each) > LONGEST for each in (*heard, *(() if deaf else (rest,))))


def test_after_a_reset_nothing_before_it_is_part_of_a_piece() -> None:
    for headless, expected in ((False, [b"cd", b"ef"]), (True, [b"ef"])):
        counters = {"too_long": 0, "skipped_bytes": 0}
        pieces = Pieces(b"\0", LONGEST, counters, headless=headless)
        assert pieces.cut(b"\0ab") == []
        pieces.reset()
        assert pieces.cut(b"cd\0ef\0") == expected, headless
