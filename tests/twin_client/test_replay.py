"""The simulated mine and replays as a person types them: numbers out of bounds, files that are none, second runs."""

import json
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

import highwall
from targets.runtime.errors import HighwallError
from twin_client.drain import drain
from twin_client.outbox import Outbox
from twin_client.protocol.records import ClockQuality, Health, Measure, Reading, Stamp
from twin_client.protocol.tags import Decoder
from twin_client.simulation.pit import Mine
from twin_client.sources import replay
from twin_client.sources.heard import Heard

PIECE = {"time": 1.0, "data": "00"}


def stamp(seconds: float) -> Stamp:
    return Stamp(round(seconds * 1e6), 1, "boot", ClockQuality.NETWORK)


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """The exit code, and what was said on standard error."""
    code = highwall.main(["gateway", *map(str, words)])
    return code, capsys.readouterr().err


# --- simulate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *(("seed", text) for text in ("-5", str(2**63), "9" * 400)),
        *(("seconds", text) for text in ("nan", "inf", "-1", "1e12")),
        *(("unplug", text) for text in ("nan", "inf", "-1")),
        *(("speed", text) for text in ("nan", "inf", "0", "-1")),
        *(("failure", text) for text in ("nan", "0")),
        *(("lost", text) for text in ("nan", "-0.1", "1.1")),
        *(("noise", text) for text in ("nan", "2")),
        *(("boot", text) for text in ("-1", str(2**32))),
    ],
)
def test_a_number_out_of_its_bounds_is_named_with_them(tmp_path: Path, capsys, name: str, given: str) -> None:
    words = ["simulate", "--port", tmp_path / "tty", *(() if name == "seconds" else ("--seconds", "0"))]
    code, err = call(capsys, *words, f"--{name}", given)
    assert code == 1
    assert f"--{name} " in err
    assert "is not between" in err
    assert err.count("\n") == 1
    assert len(err) < 200


def test_a_folder_for_images_that_cannot_be_is_said(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("x")
    words = ("simulate", "--port", tmp_path / "tty", "--seconds", "0", "--images", tmp_path / "file")
    code, err = call(capsys, *words)
    assert code == 1
    assert "cannot make" in err
    assert err.count("\n") == 1


def captured(tmp_path: Path, *words: str) -> bytes:
    """What a run in a process of its own has said over its line."""
    path = tmp_path / "line.jsonl"
    # What is said in so short a time the kernel's buffer holds, so nobody has to read.
    given = ("--port", str(tmp_path / "tty"), "--seconds", "4", "--speed", "1000", "--capture", str(path), *words)
    subprocess.run([sys.executable, "-m", "highwall", "gateway", "simulate", *given], check=True, capture_output=True)
    return b"".join(bytes.fromhex(json.loads(line)["data"]) for line in path.read_text().splitlines())


def test_a_second_run_is_heard_and_the_same_boot_gives_the_same_bytes(tmp_path: Path) -> None:
    heard = Heard()

    def new(data: bytes) -> list[str]:
        frames = Decoder().feed(data)
        return [heard.hear(frame.tag, frame.tag_boot, frame.tag_seq, 1).kind for frame in frames]

    first, second = captured(tmp_path), captured(tmp_path)
    for data in (first, second):
        assert set(new(data)) == {"new"}
    again = captured(tmp_path, "--boot", "7"), captured(tmp_path, "--boot", "7")
    assert again[0] == again[1]
    assert {frame.tag_boot for frame in Decoder().feed(again[0])} == {7}


def test_the_mine_itself_knows_no_clock() -> None:
    first, second = (list(takewhile(lambda event: event.time < 60, Mine().events())) for _ in range(2))
    frames = [[event.frame.to_bytes() for event in events if event.frame] for events in (first, second)]
    assert frames[0] == frames[1]


# --- replay -------------------------------------------------------------------------------------------------------


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


@pytest.mark.parametrize(
    "line",
    [
        '{"time": Infinity, "data": "00"}',
        '{"time": -Infinity, "data": "00"}',
        '{"time": NaN, "data": "00"}',
        f'{{"time": {"9" * 400}, "data": "00"}}',
        f'{{"time": {"9" * 5000}, "data": "00"}}',
        '{"time": 1e999, "data": "00"}',
        '{"time": "soon", "data": "00"}',
        '{"time": 1, "data": "0"}',
        '{"time": 1, "data": 5}',
        "[" * 100_000,
        "7",
        "null",
    ],
)
def test_a_damaged_line_is_said_and_the_others_are_played(tmp_path: Path, line: str) -> None:
    bad: list[str] = []
    said = list(replay.chunks(written(tmp_path / "line.jsonl", PIECE, line, PIECE), bad.append))
    assert said == [(1.0, b"\0")] * 2
    assert len(bad) == 1
    assert "line.jsonl:2: no piece of a capture" in bad[0]


def test_what_is_bad_before_the_first_piece_is_said_too(tmp_path: Path) -> None:
    bad: list[str] = []
    list(replay.chunks(written(tmp_path / "line.jsonl", "x", PIECE, "y"), bad.append))
    assert [text.split(":")[1] for text in bad] == ["1", "3"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"hello\nworld\n", bytes(range(256)) * 40, b'{"a": 1}\n' * 100])
def test_a_file_that_is_no_capture_is_an_error_of_one_line(tmp_path: Path, capsys, content: bytes) -> None:
    (tmp_path / "line.jsonl").write_bytes(content)
    code, err = call(capsys, "replay", tmp_path / "line.jsonl", "--port", tmp_path / "tty")
    assert code == 1
    assert "there is nothing in" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "tty").is_symlink()


@pytest.mark.parametrize("speed", ["0", "nan", "inf", "1e-300", "-1"])
def test_a_speed_out_of_its_bounds_is_named_with_them(tmp_path: Path, capsys, speed: str) -> None:
    code, err = call(capsys, "replay", written(tmp_path / "line.jsonl", PIECE), "--speed", speed)
    assert code == 1
    assert "--speed" in err
    assert err.count("\n") == 1


def test_a_wait_that_no_clock_can_sleep_through_is_begun_and_not_an_error() -> None:
    class Enough(Exception):
        pass

    class Line:
        written = 0

        def write(self, data: bytes) -> bool:
            self.written += 1
            return True

    line, naps = Line(), []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) > 3:
            raise Enough

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", nap)
        with pytest.raises(Enough):
            replay.replay(iter([(0.0, b"a"), (1e300, b"b")]), line, 1.0, pytest.fail)  # type: ignore[arg-type]
    assert line.written == 1
    assert max(naps) < 1


def drained(box: Path, stick: Path, begun: float, count: int, readings: bool = True) -> None:
    """One epoch of an outbox, on the stick."""
    outbox = Outbox.open(box, "gw", stamp=lambda: stamp(begun))
    outbox.acknowledge(outbox.epochs()[-1], [(1, 2**40)])
    for number in range(count):
        at = stamp(begun + number)
        record = Reading(at, "t", 1, number, {"x": Measure(1.0)}) if readings else Health(at)
        outbox.write(lambda t, record=record: t.append([record]))
    drain(outbox, "gw", stick)
    outbox.close()


def test_the_epochs_of_a_stick_are_played_in_the_order_of_their_time(tmp_path: Path) -> None:
    for number in range(6):  # their names are drawn by chance: in the order of those 1 time in 720
        drained(tmp_path / f"box-{number}", tmp_path, 1000.0 * (number + 1), 3)
    (tmp_path / "gw" / "x-1-1.batch").write_bytes(b"none")
    bad: list[str] = []
    times = [at for at, _ in replay.chunks(tmp_path / "gw", bad.append)]
    assert times == [1000.0 * (number + 1) + second for number in range(6) for second in range(3)]
    assert len(bad) == 1


def test_within_an_epoch_the_numbers_are_the_order_though_the_clock_was_set_back(tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()
    outbox = Outbox.open(tmp_path / "box", "gw", stamp=lambda: stamp(9000))
    for first, at in ((0, 9000.0), (1000, 5000.0)):
        records = [Reading(stamp(at), "t", 1, first + number, {"x": Measure(1.0)}) for number in range(1000)]
        outbox.write(lambda t, records=records: t.append(records))
    drain(outbox, "gw", tmp_path)
    outbox.close()
    frames = Decoder().feed(b"".join(data for _, data in replay.chunks(tmp_path / "gw", pytest.fail)))
    assert [frame.tag_seq for frame in frames] == list(range(2000))


def test_a_stick_without_readings_has_nothing_to_say(tmp_path: Path) -> None:
    drained(tmp_path / "box", tmp_path, 1000.0, 2, readings=False)
    with pytest.raises(HighwallError, match="holds no readings"):
        list(replay.chunks(tmp_path / "gw", pytest.fail))
