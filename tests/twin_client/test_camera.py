"""Cameras behind a command: images on time, by the site's hours, and no command that can hold anything up."""

import asyncio
import contextlib
import os
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.runtime.errors import HighwallError
from twin_client.protocol.records import ClockQuality, Stamp
from twin_client.protocol.site import TimeWindow
from twin_client.sources.camera import CommandSettings, CommandSource, Hours, unpacked

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


def at(when: datetime, clock=ClockQuality.NETWORK) -> Stamp:
    return Stamp(int(when.timestamp() * 1e6), 0, "boot-1", clock)


def noon() -> Stamp:
    return at(MONDAY + timedelta(hours=12))


@dataclass
class Bench:
    """A camera in a folder of its own, and what it says."""

    folder: Path
    said: list[str] = field(default_factory=list)

    def source(self, *command, mark=b"", now=noon, **options) -> CommandSource:
        options = {"limit": 20.0, "folder": str(self.folder)} | options
        return CommandSource(CommandSettings("face", command, **options), now, self.said.append, mark)

    def python(self, script, **options) -> CommandSource:
        """A camera that is a Python script, whose `out` is where the image goes."""
        return self.source(sys.executable, "-c", f"import sys; out = sys.argv[1]\n{script}", "{out}", **options)

    @property
    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("highwall-*"))


@pytest.fixture
def bench(tmp_path):
    (tmp_path / "images").mkdir()
    return Bench(tmp_path / "images")


def cat(bench, tmp_path, **options) -> CommandSource:
    """A camera that copies one file."""
    (tmp_path / "one.jpg").write_bytes(b"an image")
    return bench.source("cp", str(tmp_path / "one.jpg"), "{out}", **options)


def refused(source) -> str:
    with pytest.raises(HighwallError) as caught:
        asyncio.run(source.capture())
    assert str(caught.value).isprintable()
    return str(caught.value)


# --- hours ------------------------------------------------------------------------------------------------------------


def test_a_window_may_cross_midnight_and_belongs_to_the_day_on_which_it_begins():
    night = Hours((TimeWindow("22:30", "05:15", ("mon",)),))
    for hours, minutes, opened in (
        (22, 29, False),
        (22, 30, True),
        (23, 59, True),
        (24, 0, True),
        (29, 14, True),
        (29, 15, False),
        (46, 30, False),
        (2, 0, False),
    ):
        assert night.open(at(MONDAY + timedelta(hours=hours, minutes=minutes))) is opened, (hours, minutes)


def test_a_window_whose_ends_are_one_lasts_a_day_and_none_at_all_is_always():
    always, once = Hours(), Hours((TimeWindow("06:00", "06:00", ("sun",)),))
    for hours in range(48):
        when = at(MONDAY - timedelta(days=1) + timedelta(hours=hours))
        assert always.open(when)
        assert once.open(when) is (6 <= hours < 30)


def test_hours_are_by_the_site_s_clock():
    day = (TimeWindow("08:00", "16:00"),)
    assert not Hours(day).open(at(MONDAY + timedelta(hours=23)))
    assert Hours(day, 600).open(at(MONDAY + timedelta(hours=23)))
    assert Hours(day, -600).open(at(MONDAY + timedelta(hours=23)))
    assert not Hours(day, -360).open(at(MONDAY + timedelta(hours=23)))


def test_while_nothing_has_set_the_clock_images_are_taken_whatever_it_says():
    never = Hours((TimeWindow("03:00", "03:01"),))
    assert not never.open(noon())
    assert never.open(at(MONDAY, ClockQuality.LOST))


CLOCKS = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59))
DAYS = st.lists(st.sampled_from(("mon", "tue", "wed", "thu", "fri", "sat", "sun")), unique=True).map(tuple)


@given(CLOCKS, CLOCKS, DAYS, st.integers(-840, 840), st.integers(0, 20_000 * 1440))
def test_hours_agree_with_the_calendar(begin, end, days, offset, minute):
    when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    local = when + timedelta(minutes=offset)
    inside = False
    for back in (0, 1):
        midnight = local.replace(hour=0, minute=0) - timedelta(days=back)
        first = midnight + timedelta(hours=int(begin[:2]), minutes=int(begin[3:]))
        last = midnight + timedelta(hours=int(end[:2]), minutes=int(end[3:]), days=end <= begin)
        named = not days or midnight.strftime("%a").lower() in days
        inside = inside or (named and first <= local < last)
    assert Hours((TimeWindow(begin, end, days),), offset).open(at(when)) is inside


# --- a command --------------------------------------------------------------------------------------------------------


def test_a_capture_is_the_file_that_the_command_wrote_and_goes_when_its_record_is_kept(bench, tmp_path):
    source = cat(bench, tmp_path)
    capture = asyncio.run(source.capture())
    assert (capture.camera, capture.number, capture.at) == ("face", 0, noon())
    assert capture.path.read_bytes() == b"an image"
    assert capture.path.suffix == ".jpg"
    source.done(capture)
    source.tidy(capture)
    assert bench.left == []


def test_numbers_go_up_over_restarts_and_those_without_a_record_are_owned_up_to(bench, tmp_path):
    source = cat(bench, tmp_path)

    async def take(count):
        return [await source.capture() for _ in range(count)]

    first = asyncio.run(take(4))
    source.done(first[0])
    mark = source.done(first[2])
    source = cat(bench, tmp_path, mark=mark)
    assert source.lost == (1, 3)
    assert [capture.number for capture in asyncio.run(take(2))] == [4, 5]


def test_a_mark_that_is_damaged_is_refused():
    for data in (b"\xc1", b"\x91\xa1x", b"{"):
        with pytest.raises(HighwallError, match="mark is damaged"):
            unpacked(data)
    assert unpacked(b"").next == 0


def test_a_command_that_hangs_is_killed_with_all_that_it_started(bench, tmp_path):
    child = tmp_path / "child"
    source = bench.python(
        f"""
import signal, subprocess, time
for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
started = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
open({str(child)!r}, 'w').write(str(started.pid))
time.sleep(600)""",
        limit=2.0,
    )
    begun = time.monotonic()
    assert "did not end within 2 s" in refused(source)
    assert time.monotonic() - begun < 10
    assert source.counters == {"captured": 0, "failed": 1, "killed": 1}
    until = time.monotonic() + 5
    while _runs(int(child.read_text())) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(int(child.read_text()))
    assert bench.left == []


def _runs(pid: int) -> bool:
    """Whether a process runs; one that is dead and not buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_capture_that_is_given_up_leaves_no_process_and_no_file(bench, tmp_path):
    pid = tmp_path / "pid"
    source = bench.python(f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)")

    async def go():
        taking = asyncio.create_task(source.capture())
        while not pid.exists() or not pid.read_text():
            await asyncio.sleep(0.02)
        taking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await taking

    asyncio.run(asyncio.wait_for(go(), 20))
    assert not _runs(int(pid.read_text()))
    assert bench.left == []


def test_what_goes_wrong_is_said_with_the_command_s_last_words_in_one_line(bench):
    cases = {
        "ended with 3: no camera?": "print('hello\\nno camera\\x1b', file=sys.stderr); sys.exit(3)",
        "ended with 1: it said nothing": "sys.exit(1)",
        "wrote no image": "pass",
        "wrote no image ": "open(out, 'w')",
    }
    for says, script in cases.items():
        assert says.strip() in refused(bench.python(script))
    assert "cannot run" in refused(bench.source("no-such-program", "{out}"))
    assert "no place for its image" in refused(bench.source("true", "{out}", folder=str(bench.folder / "gone")))
    assert bench.left == []


def test_a_camera_that_fails_is_said_once_and_once_more_when_it_is_back(bench, tmp_path):
    source = bench.source("cp", str(tmp_path / "one.jpg"), "{out}")
    for _ in range(3):
        refused(source)
    (tmp_path / "one.jpg").write_bytes(b"an image")
    for _ in range(2):
        asyncio.run(source.capture())
    assert [said.split(":")[0] for said in bench.said] == ["camera face"] * 2
    assert "tried again" in bench.said[0]
    assert "works again" in bench.said[1]
    assert source.counters == {"captured": 2, "failed": 3, "killed": 0}


def test_a_command_that_takes_long_and_talks_much_holds_up_nothing(bench):
    source = bench.python("import time; sys.stderr.write('x' * 3_000_000); time.sleep(0.5); open(out, 'w').write('i')")

    async def go():
        taking = asyncio.create_task(source.capture())
        late = []
        while not taking.done():
            begun = time.monotonic()
            await asyncio.sleep(0.01)
            late.append(time.monotonic() - begun - 0.01)
        return await taking, late

    capture, late = asyncio.run(go())
    assert capture.path.read_text() == "i"
    assert len(late) > 20
    assert sorted(late)[len(late) // 2] < 0.05


def test_images_come_each_period_within_the_hours_and_by_request_outside_of_them(bench, tmp_path):
    day = Hours((TimeWindow("08:00", "16:00"),))
    clock = [noon()]
    source = cat(bench, tmp_path, period=1.0, hours=day, now=lambda: clock[0])

    async def go():
        captures, times = source.captures(), []
        for _ in range(2):
            await anext(captures)
            times.append(time.monotonic())
        clock[0] = at(MONDAY + timedelta(hours=20))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(captures), 1.5)
        await captures.aclose()
        assert (await source.capture()).number == 2
        return times

    first, second = asyncio.run(go())
    assert 0.7 < second - first < 3


def test_one_image_is_taken_at_a_time(bench):
    script = "import os, time; os.mkdir(out + '/../../busy'); time.sleep(0.2); open(out, 'w').write('i')\n"
    source = bench.python(script.replace("out + '/../../busy'", f"{str(bench.folder / 'busy')!r}") + _remove(bench))

    async def go():
        return await asyncio.gather(*(source.capture() for _ in range(3)))

    assert [capture.number for capture in asyncio.run(go())] == [0, 1, 2]


def _remove(bench) -> str:
    return f"os.rmdir({str(bench.folder / 'busy')!r})"


def test_what_a_killed_agent_left_behind_goes_and_what_a_living_one_works_on_stays(bench, tmp_path):
    gone = 2**22 + 1  # above any process's number
    for name in (f"highwall-face-{gone}-x", f"highwall-face-{os.getpid()}-x", f"highwall-rear-{gone}-x"):
        (bench.folder / name).mkdir()
    cat(bench, tmp_path)
    assert bench.left == sorted([f"highwall-face-{os.getpid()}-x", f"highwall-rear-{gone}-x"])


@pytest.mark.parametrize("command", [["rpicam-still"], ["", "{out}"], ["a\0b", "{out}"], []])
def test_a_command_that_cannot_work_is_refused_with_the_settings(command):
    with pytest.raises(msgspec.ValidationError, match="command"):
        msgspec.convert({"name": "face", "command": command}, CommandSettings)
