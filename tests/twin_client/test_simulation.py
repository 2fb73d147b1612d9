"""The simulated mine: the same seed is the same mine, and what it sends means what its truth says."""

import json
import os
import threading
import time
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest

import highwall
from targets.runtime.errors import HighwallError
from twin_client.protocol import motion
from twin_client.protocol.records import ClockQuality, Reading, Stamp
from twin_client.protocol.rules import Book, State, rules_of, step
from twin_client.protocol.tags import Decoder, reading_of
from twin_client.simulation.pictures import wall
from twin_client.simulation.pit import HOUR, Event, Mine
from twin_client.sources import replay, simulate


def happened(mine: Mine, seconds: float) -> list[Event]:
    return list(takewhile(lambda event: event.time <= seconds, mine.events()))


def stamp(seconds: float) -> Stamp:
    return Stamp(1_763_884_800_000_000 + round(seconds * 1e6), round(seconds * 1e6), "boot", ClockQuality.NETWORK)


@pytest.fixture(scope="module")
def hour() -> list[Event]:
    return happened(Mine(seed=3), 0.5 * HOUR)


def sent(events: list[Event]) -> bytes:
    return b"".join(event.frame.to_bytes() for event in events if event.frame is not None)


def test_the_same_seed_is_the_same_to_the_byte_and_another_is_not(hour: list[Event]) -> None:
    assert sent(happened(Mine(seed=3), 600)) == sent([event for event in hour if event.time <= 600])
    assert sent(happened(Mine(seed=4), 600)) != sent([event for event in hour if event.time <= 600])


def test_one_source_more_changes_nothing_of_the_others() -> None:
    few, many = happened(Mine(people=1, trucks=0), 120), happened(Mine(people=2, trucks=1), 120)
    assert sent(few) == sent([event for event in many if event.subject not in ("person-2", "truck-1")])


def test_events_come_in_order_and_every_frame_is_read_back(hour: list[Event]) -> None:
    times = [event.time for event in hour]
    assert times == sorted(times)
    decoder = Decoder()
    frames = decoder.feed(sent(hour))
    told = [event.frame for event in hour if event.frame is not None]
    assert [(one.tag, one.tag_seq, one.window and one.window.counts) for one in frames] == [
        (one.tag, one.tag_seq, one.window and one.window.counts) for one in told
    ]
    for one, other in zip(frames, told, strict=True):
        assert one.values.keys() == other.values.keys()
        for name, value in other.values.items():
            assert one.values[name] == (None if value is None else pytest.approx(value, rel=1e-6))
    assert decoder.counters["skipped_bytes"] == 0


def test_each_tag_counts_from_0_without_a_hole(hour: list[Event]) -> None:
    numbers: dict[str, list[int]] = {}
    for event in hour:
        if event.frame is not None:
            numbers.setdefault(event.subject, []).append(event.frame.tag_seq)
    assert all(found == list(range(len(found))) for found in numbers.values())
    assert len(numbers) == 13


def test_who_falls_and_lies_is_found_and_nobody_else(hour: list[Event]) -> None:
    found: dict[str, set[str]] = {}
    for name in ("person-1", "person-2", "person-3"):
        state = motion.State()
        for event in hour:
            if event.subject == name and event.frame is not None and event.frame.window is not None:
                state, seen = motion.judge(motion.Settings(), state, event.frame.window, 2.0)
                found.setdefault(name, set()).add(seen.kind)
    assert "faint" in found["person-2"]
    assert "faint" not in found["person-1"] | found["person-3"]


def test_the_failing_slope_is_foretold_and_the_creeping_ones_are_not() -> None:
    mine = Mine(seed=1, people=0, trucks=0, images=0)
    rule = {
        "kind": "forecast",
        "name": "failure",
        "quantity": "extensometer",
        "limits": [2.0, 1.0, 0.5],
        "hysteresis": 0.2,
        "window_s": 2 * HOUR,
        "floor": 0.5,
        "rise_count": 2,
    }
    book, state, alarms = Book(rules_of({"rules": [rule]})), State(), []
    for number, event in enumerate(happened(mine, 5.9 * HOUR), 1):
        assert event.frame is not None
        state, said = step(book, state, ("g", "e", number), reading_of(event.frame, stamp(event.time)))
        alarms += said
    assert {alarm.subject for alarm in alarms} == {"ext-4"}
    first = alarms[0]
    left = (mine.failure - first.at.mono / 1e6) / HOUR
    assert first.value == pytest.approx(left, rel=0.35)
    assert max(alarm.level for alarm in alarms) >= 2


def test_the_crack_grows_and_its_course_stays() -> None:
    masks = [wall(5, opened)[1] for opened in (0.0, 0.2, 0.5, 1.0)]
    areas = [int(mask.sum()) for mask in masks]
    assert areas[0] == 0
    assert areas == sorted(set(areas))
    assert (masks[1] & masks[3]).sum() > 0.9 * masks[1].sum()
    image, mask = wall(5, 0.8)
    assert image[mask].mean() < 0.6 * image[~mask].mean()
    assert wall(5, 0.8, daylight=0.1)[0].mean() < 0.4 * image.mean()


def test_nights_are_colder_and_darker() -> None:
    mine = Mine()
    assert mine.temperature(9 * HOUR) > mine.temperature(21 * HOUR) + 8  # begins at eight in the morning
    assert mine.daylight(4 * HOUR) == pytest.approx(1.0)
    assert mine.daylight(16 * HOUR) == 0


# --- on a real pty ------------------------------------------------------------------------------------------------


def listen(link: Path, heard: list[bytes], stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            device = os.open(link, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.01)
            continue
        try:
            while not stop.is_set():
                try:
                    if not (data := os.read(device, 65536)):
                        break
                    heard.append(data)
                except BlockingIOError:
                    time.sleep(0.005)
        except OSError:
            pass
        finally:
            os.close(device)


def simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, int], bytes]:
    """What the command counted, and what went over its line."""
    link, heard, stop = tmp_path / "tty", [], threading.Event()
    ear = threading.Thread(target=listen, args=(link, heard, stop))
    ear.start()
    try:
        code = highwall.main(["gateway", "simulate", "--port", str(link), "--json", *words])
        time.sleep(0.2)
    finally:
        stop.set()
        ear.join()
    assert code == 0
    assert not link.is_symlink()
    return json.loads(capsys.readouterr().out), b"".join(heard)


def test_every_number_arrives_through_a_real_line(tmp_path: Path, capsys) -> None:
    truth = tmp_path / "truth.jsonl"
    counts, heard = simulated(tmp_path, capsys, "--seconds", "40", "--speed", "40", "--truth", str(truth))
    decoder = Decoder()
    frames = {(frame.tag, frame.tag_seq) for frame in decoder.feed(heard)}
    said = [json.loads(line) for line in truth.read_text().splitlines()]
    assert frames == {(one["subject"], one["seq"]) for one in said if one["kind"] == "frame" and not one["fate"]}
    assert len(frames) == counts["frames"] - counts["unread"]
    assert counts["unread"] <= 3  # the ear was not yet there


def test_what_is_lost_and_what_is_noise_is_as_was_asked(tmp_path: Path, capsys) -> None:
    words = ("--seconds", "60", "--speed", "60", "--lost", "0.3", "--noise", "0.5")
    counts, heard = simulated(tmp_path, capsys, *words)
    assert 0.15 < counts["lost"] / counts["frames"] < 0.45
    decoder = Decoder()
    frames = decoder.feed(heard)
    assert len(frames) == counts["frames"] - counts["lost"] - counts["unread"]
    assert decoder.counters["skipped_bytes"] > 0


def test_a_port_that_is_pulled_comes_back_under_its_name(tmp_path: Path, capsys) -> None:
    counts, heard = simulated(tmp_path, capsys, "--seconds", "20", "--speed", "10", "--unplug", "8")
    assert counts["unplugged"] == 2
    assert len(Decoder().feed(heard)) > 10


def test_images_are_whole_files(tmp_path: Path, capsys) -> None:
    from PIL import Image

    images = tmp_path / "images"
    words = ("--seconds", "100", "--speed", "400", "--images", str(images))
    counts, _ = simulated(tmp_path, capsys, *words)
    assert counts["images"] == 2
    assert sorted(path.name for path in images.iterdir()) == ["east-000000.png", "east-000001.png"]
    assert np.asarray(Image.open(images / "east-000001.png")).shape == (448, 448, 3)


def test_a_capture_says_the_same_again(tmp_path: Path, capsys) -> None:
    capture = tmp_path / "line.jsonl"
    _, heard = simulated(tmp_path, capsys, "--seconds", "30", "--speed", "60", "--capture", str(capture))
    with capture.open("a") as file:
        file.write('not json\n{"time": 1}\n')
    bad: list[str] = []
    said = list(replay.chunks(capture, bad.append))
    assert len(bad) == 2
    assert f"{capture}:" in bad[0]
    assert [frame.tag_seq for frame in Decoder().feed(b"".join(data for _, data in said))] == [
        frame.tag_seq for frame in Decoder().feed(heard)
    ]


@pytest.mark.parametrize("words", [("--speed", "0"), ("--lost", "2"), ("--truth", "/nonexistent/x")])
def test_what_cannot_be_simulated_is_said_in_one_line(tmp_path: Path, capsys, words: tuple[str, str]) -> None:
    assert highwall.main(["gateway", "simulate", "--port", str(tmp_path / "tty"), "--seconds", "1", *words]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_name_that_is_taken_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "tty").write_text("mine")
    with pytest.raises(HighwallError, match="is no link"), simulate.port(tmp_path / "tty"):
        pass
    assert (tmp_path / "tty").read_text() == "mine"


def test_the_readings_of_a_drained_outbox_can_be_replayed(tmp_path: Path) -> None:
    from twin_client.drain import drain
    from twin_client.outbox import Outbox

    events = [event for event in happened(Mine(people=0, trucks=0, images=0), 120) if event.frame is not None]
    outbox = Outbox.open(tmp_path / "box", "gw", stamp=lambda: stamp(0))
    outbox.write(lambda t: t.append(reading_of(event.frame, stamp(event.time)) for event in events))
    drain(outbox, "gw", tmp_path)
    outbox.close()
    said = list(replay.chunks(tmp_path / "gw", pytest.fail))
    frames = Decoder().feed(b"".join(data for _, data in said))
    assert [(frame.tag, frame.tag_seq) for frame in frames] == [
        (event.frame.tag, event.frame.tag_seq) for event in events if event.frame is not None
    ]
    assert isinstance(reading_of(frames[0], stamp(0)), Reading)
