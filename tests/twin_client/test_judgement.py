"""What a gateway makes of a worn tag's windows, and that its own alarms stand and end when they should."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from twin_client.config import Settings
from twin_client.judgement import LATEST, MOTIONS, Judge, State, rules_in_force
from twin_client.pairing import Tag
from twin_client.protocol.records import ClockQuality, Entry, Health, Measure, Reading, Stamp, Window
from twin_client.protocol.rules import rules_of
from twin_client.protocol.site import Site
from twin_client.simulation.body import Body, Subject
from twin_client.simulation.motion import Sensor

WALL = 1_750_000_000_000_000
MEASURED = {"motion", "motion_level", "motion_still", "fall", "faint"}
SCALE = 9.80665 / 1000


def stamp(t: float, boot: str = "boot-1") -> Stamp:
    return Stamp(WALL + round(t * 1e6), round(t * 1e6), boot, ClockQuality.NETWORK)


def lying(seconds: float = 3.0, seed: int = 0, rate: float = 50.0) -> Window:
    """Whoever lies still, with a sensor's noise."""
    force = np.random.default_rng(seed).normal((0, 0, 1000), 3, (round(seconds * rate), 3))
    return Window(rate, SCALE, 3, force.round().astype("<i2").tobytes())


DEAD = Window(50.0, SCALE, 3, bytes(900))
SHORT = lying(0.1)


class Life:
    """A gateway's judgement, fed with one record after the other."""

    def __init__(self, folder: Path, *, site: Site | None = None, tags=("person-1",), **settings):
        self.tags = {name: Tag("person") for name in tags}
        self.judge = Judge(Settings("gw-1", **settings), site or Site(), folder, self.tags)
        self.state, self.told, self.count, self.kept = State(), [], 0, {}

    def feed(self, record) -> Reading:
        before = self.state
        state, record = self.judge.read(before, record)
        self.count += 1
        self.state, alarms = self.judge.judge(state, "e1", Entry(self.count, record))
        self.told += alarms
        self.kept |= self.judge.saved(before, self.state)
        return record

    def window(self, t: float, seq: int, window: Window | None = None, *, tag="person-1", tag_boot=1, boot="boot-1"):
        """What is said of a window that arrives at `t` seconds."""
        one = lying(seed=seq) if window is None else window
        return self.feed(Reading(stamp(t, boot), tag, tag_boot, seq, {}, one)).values

    def alarms(self, rule: str | None = None) -> list[int]:
        return [alarm.level for alarm in self.told if rule in (None, alarm.rule)]

    def again(self) -> None:
        """The agent starts anew from what is on the disk."""
        self.state = self.judge.begin(self.kept.get)


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path)


def fallen(life: Life, *, seed=1, lie=30.0) -> tuple[float, int]:
    """Somebody walks, falls and lies; when the last window came, and its number."""
    dice = np.random.default_rng(seed)
    body, sensor = Body(Subject.draw(dice), dice, 25.0), Sensor.draw(dice, 25.0)
    track = body.perform([("walk", 60.0), ("stand", 20.0), ("fall", 4.0), ("lie", lie)])
    seq = 0
    for seq, (one, _) in enumerate(track.windows(sensor, dice, 2.0), 1):
        life.window(2.0 * seq, seq, one)
    assert life.alarms("own:fall") == [3]
    return 2.0 * seq, seq


# --- what is not measured -------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [SHORT, DEAD, Window(50.0, SCALE, 3, b"")], ids=["short", "dead", "empty"])
def test_a_window_that_cannot_be_judged_says_nothing_of_its_wearer_and_ends_no_faint(life, window):
    for i in range(30):
        life.window(3.0 * i, i)
    assert life.alarms() == [4]
    said = life.window(90, 30, window)
    assert said == {"motion": Measure(float(MOTIONS.index("unknown")), 0.0)}
    for i in range(31, 40):
        life.window(3.0 * i, i)
    assert life.alarms() == [4], "one alarm, under one id"


def test_a_sensor_that_the_fall_has_broken_ends_neither_the_fall_nor_the_faint(life):
    t, seq = fallen(life)
    assert sorted(life.alarms()) == [3, 4]
    for i in range(1, 300):
        assert life.window(t + 2 * i, seq + i, DEAD).keys() == {"motion"}
    assert sorted(life.alarms()) == [3, 4]


def test_whoever_gets_up_and_walks_ends_both(life):
    t, seq = fallen(life)
    dice = np.random.default_rng(1)
    body, sensor = Body(Subject.draw(dice), dice, 25.0), Sensor.draw(dice, 25.0)
    for i, (one, _) in enumerate(body.perform([("walk", 60.0)]).windows(sensor, dice, 2.0), 1):
        life.window(t + 2 * i, seq + i, one)
    assert (life.alarms("own:fall"), life.alarms("own:faint")) == ([3, 0], [4, 0])


def test_what_is_derived_of_a_window_reads_alike_raw_and_as_a_value(life):
    said = life.window(0, 0)
    assert said.keys() == MEASURED
    assert all(measure.value == measure.raw is not None and measure.calibration == 0 for measure in said.values())


# --- the tag's numbers and the time ---------------------------------------------------------------------


def test_a_tag_whose_numbers_begin_anew_is_judged_at_once_and_a_late_frame_is_not(life):
    for i in range(5):
        life.window(3.0 * i, 5000 + i)
    assert life.window(14, 5001) == {}
    assert life.window(14, 4500) == {}
    said = [life.window(15 + 3.0 * i, i) for i in range(30)]
    assert all(each.keys() == MEASURED for each in said)
    assert said[0]["motion_still"].value == pytest.approx(3.0), "how long that took nobody knows"
    assert life.alarms() == [4]


def burst(end: float, seq: int, every: float) -> float:
    """When a window arrives that ended at `end`, of a line that delivers what it holds every so many seconds."""
    return end if not every else float(np.ceil(end / every) * every) + 50e-6 * seq


@pytest.mark.parametrize("every", [0, 10, 20, 30, 60])
@pytest.mark.parametrize(("seconds", "numbers"), [(2.0, 1), (1.0, 1), (2.0, 3)])
def test_windows_that_arrive_together_tell_falls_and_faints_like_any_others(tmp_path, every, seconds, numbers):
    for seed in range(3):
        dice = np.random.default_rng(seed)
        body, sensor = Body(Subject.draw(dice), dice, 50.0), Sensor.draw(dice, 50.0)
        life, first = Life(tmp_path), {}
        track = body.perform([("walk", 60.0), ("stand", 20.0), ("fall", 4.0), ("lie", 60.0)])
        for seq, (one, _) in enumerate(track.windows(sensor, dice, seconds)):
            end = (seq + 1) * seconds
            life.window(burst(end, seq, every), numbers * seq, one)
            first |= {alarm.rule: end for alarm in life.told if alarm.rule not in first}
        assert first["own:fall"] <= 80 + 20
        assert 80 + 20 <= first["own:faint"] <= 80 + 20 + 10, "20 s of stillness since the fall were seen"


def test_a_line_that_stalls_once_hides_no_fall_within_the_stall(tmp_path):
    for stall in ((78, 88), (78, 108), (60, 120)):
        dice = np.random.default_rng(0)
        body, sensor = Body(Subject.draw(dice), dice, 25.0), Sensor.draw(dice, 25.0)
        life = Life(tmp_path)
        track = body.perform([("walk", 60.0), ("stand", 20.0), ("fall", 4.0), ("lie", 60.0)])
        for seq, (one, _) in enumerate(track.windows(sensor, dice, 2.0), 1):
            end = 2.0 * seq
            life.window(stall[1] + 50e-6 * seq if stall[0] < end <= stall[1] else end, seq, one)
        assert (life.alarms("own:fall"), life.alarms("own:faint")) == ([3], [4]), stall


def test_a_tag_that_sends_two_seconds_in_ten_is_watched_a_fifth_of_the_time(life):
    for i in range(60):
        said = life.window(10.0 * i, i, lying(2.0, seed=i))
        assert said["motion_still"].value == pytest.approx(2.0 * (i + 1))
    assert [alarm.at.mono / 1e6 for alarm in life.told] == [290]


def test_a_tag_that_sends_once_a_minute_is_never_still_for_long(life):
    for i in range(40):
        assert life.window(60.0 * i, i, lying(2.0, seed=i))["motion_still"].value <= 4.0
    assert life.told == []


def test_a_tag_that_slept_without_a_number_missing_begins_its_stillness_anew(life):
    t = 0.0
    for i in range(15):
        t += 3.0
        life.window(t, i)
    assert life.window(t + LATEST + 10, 15)["motion_still"].value == pytest.approx(3.0)
    for i in range(16, 30):  # and what it slept is no measure of how often it sends
        assert life.window(t + LATEST + 10 + 3.0 * (i - 15), i)["motion_still"].value == pytest.approx(3.0 * (i - 14))


def test_windows_that_are_lost_stop_the_clock_and_set_it_back_whenever_the_others_come(tmp_path):
    for every in (0, 30):
        for lost, still in ((2, 60.0), (20, 3.0)):
            life, seq, end = Life(tmp_path), 0, 120.0
            for seq in range(19):
                end += 3.0
                life.window(burst(end, seq, every), seq)
            seq, end = seq + lost + 1, end + 3.0 * (lost + 1)
            said = life.window(burst(end, seq, every), seq)
            assert said["motion_still"].value == pytest.approx(still, abs=3.1)


def test_windows_that_overlap_count_once(life):
    for i in range(40):
        said = life.window(1.5 * i, i)
        assert said["motion_still"].value == pytest.approx(3.0 + 1.5 * i, abs=0.1)


def test_what_is_remembered_of_a_wearer_outlives_a_restart_and_an_older_version(life, tmp_path):
    for i in range(15):
        life.window(3.0 * i, i)
    whole = life.state.moved["person-1"]
    life.again()
    assert life.state.moved["person-1"] == whole
    old = msgspec.msgpack.decode(life.kept["moved/person-1"])[:5]  # it had no pace
    life.kept["moved/person-1"] = msgspec.msgpack.encode(old)
    life.again()
    assert life.state.moved["person-1"] == msgspec.structs.replace(whole, pace=0.0, known=0, late=0.0)
    assert life.window(45, 15)["motion_still"].value == pytest.approx(48.0)
    assert life.window(20, 16, boot="boot-2")["motion_still"].value == pytest.approx(3.0)


@pytest.mark.parametrize("bad", [Window(0.0, 1.0, 3, bytes(60)), Window(50.0, 1.0, 0, bytes(60))])
def test_what_is_no_window_is_kept_as_it_came(life, bad):
    life.window(0, 0)
    assert life.window(3, 1, bad) == {}
    assert life.window(6, 2).keys() == MEASURED


# --- the rules in force ---------------------------------------------------------------------------------


def test_alarms_of_a_tag_that_is_unpaired_end_its_own_fall_and_faint_too(tmp_path):
    level = {"kind": "level", "name": "deep", "quantity": "motion_still", "limits": [20.0], "hysteresis": 1.0}
    for paired in ([], ["person-1"]):  # whether or not the site names those that are waited for
        life = Life(tmp_path, site=Site(rules={"rules": [level], "paired": paired}), tags=("person-1", "person-2"))
        t, _ = fallen(life)
        standing = {alarm.rule: alarm.id for alarm in life.told}
        assert standing.keys() == {"own:fall", "own:faint", "deep"}
        life.told.clear()
        life.judge = life.judge.paired({"person-2": Tag("person")})
        life.again()
        life.feed(Health(stamp(t + 1)))
        assert {alarm.rule: (alarm.id, alarm.level) for alarm in life.told} == {
            rule: (name, 0) for rule, name in standing.items()
        }
        life.told.clear()
        life.feed(Health(stamp(t + 2)))
        assert life.told == []


@pytest.mark.parametrize("period", [60.0, 301.0, 600.0, 3600.0])
def test_a_tag_is_missed_however_seldom_the_gateway_says_how_it_fares(tmp_path, period):
    missing = {"kind": "missing", "name": "silent", "seconds": 120.0}
    life = Life(tmp_path, site=Site(rules={"rules": [missing]}), tags=("person-1",), health=period)
    for i in range(60):
        life.window(10.0 * i, i, lying(1.0))
    life.told.clear()
    for i in range(1, 5):
        life.feed(Health(stamp(590 + period * i)))
    assert [(alarm.rule, alarm.level) for alarm in life.told] == [("silent", 1)]
    assert life.told[0].at.mono / 1e6 <= 590 + max(2 * 120, period)


def test_a_gateway_that_was_off_for_long_misses_nobody_for_that(tmp_path):
    missing = {"kind": "missing", "name": "silent", "seconds": 120.0}
    life = Life(tmp_path, site=Site(rules={"rules": [missing]}), health=600.0)
    life.window(0, 0)
    life.feed(Health(stamp(1510)))
    assert life.told == []


def test_the_silence_of_a_site_holds_where_it_is_the_longer_one():
    site = Site(rules={"silence_s": 2000.0})
    assert rules_in_force(site, []).silence_s == 2000.0
    assert rules_in_force(site, [], 60.0).silence_s == 2000.0
    assert rules_in_force(site, [], 1000.0).silence_s == 2500.0
    assert rules_in_force(Site(), [], 60.0).silence_s == rules_of({}).silence_s
