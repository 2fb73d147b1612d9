"""Motion is judged on generated bodies whose truth is known, and on windows that no sensor should have sent."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.motion import Motion, Settings, State, judge
from twin_client.protocol.records import Window
from twin_client.simulation.body import ACTIVITIES, Body, Subject
from twin_client.simulation.motion import G, Sensor

SECONDS = 3.0
Told = list[tuple[str, Motion]]


def perform(script, seed, *, rate=50.0, seconds=SECONDS, fault=lambda sensor: sensor, **limits) -> Told:
    """What is said of each window of a script, beside what was done in it; the state goes through its bytes."""
    dice = np.random.default_rng(seed)
    track = Body(Subject.draw(dice), dice, rate).perform(script)
    sensor = fault(Sensor.draw(dice, rate))
    return follow(track.windows(sensor, dice, seconds), seconds, full_scale=sensor.range, **limits)


def follow(windows: Iterable[tuple[Window, str]], seconds: float, **limits) -> Told:
    state, told, chosen = State(), [], Settings(**limits)
    for window, doing in windows:
        state, motion = judge(chosen, state, window, seconds)
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=State)
        told.append((doing, motion))
    return told


def kinds(told: Told, doing: str | None = None) -> list[str]:
    return [motion.kind for done, motion in told if doing in (None, done)]


def window(force, rate=50.0, scale=0.005, axes=3) -> Window:
    """A window of given forces in g, without any noise."""
    counts = np.rint(np.asarray(force, float) * (G / scale)).clip(-32768, 32767)
    return Window(rate, scale, axes, counts.astype("<i2").tobytes())


def at_rest(seconds=SECONDS, rate=50.0, up=(0.0, 0.0, 1.0), seed=0) -> Window:
    force = np.tile(up, (round(seconds * rate), 1))
    return window(force + np.random.default_rng(seed).normal(0.0, 0.003, force.shape), rate)


# --- what is told of what was done ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("doing", "told", "least"),
    [
        ("stand", "still", 0.75),
        ("sit", "still", 0.75),
        ("walk", "walking", 0.95),
        ("run", "walking", 0.95),
        ("ride", "riding", 0.9),
        ("work", "moving", 0.85),
    ],
)
@pytest.mark.parametrize(("rate", "seconds"), [(50.0, 3.0), (25.0, 3.0), (104.0, 1.5)])
def test_what_a_person_does_is_told_whoever_it_is_and_however_the_tag_is_mounted(doing, told, least, rate, seconds):
    said = Counter()
    for seed in range(20):
        said.update(kinds(perform([(doing, 45.0)], seed, rate=rate, seconds=seconds)))
    assert said[told] >= least * said.total(), said
    assert not said["fall"] + said["faint"], said


def test_steps_are_counted_within_a_tenth():
    for pace in (1.5, 1.8, 2.1):
        dice = np.random.default_rng(3)
        track = Body(Subject(step=pace), dice).perform([("walk", 60.0)])
        steps = [motion.steps for _, motion in follow(track.windows(Sensor(), dice), SECONDS)]
        assert np.median([step for step in steps if step]) == pytest.approx(pace, rel=0.1)


def test_a_fall_is_told_within_twenty_seconds_and_once():
    found = falls = 0
    for seed in range(40):
        told = perform([("walk", 20.0), ("fall", 8.0), ("rise", 3.0), ("walk", 30.0)], seed)
        told = kinds(told)
        begin = int(20 / SECONDS)
        falls += told.count("fall")
        found += "fall" in told[begin : begin + 7]
    assert found >= 36
    assert falls <= 40


@pytest.mark.parametrize("harmless", ["jump", "run", "work", "ride", "slump", "rise"])
def test_what_only_resembles_a_fall_is_none(harmless):
    for seed in range(25):
        told = perform([("walk", 15.0), (harmless, 14.0), ("walk", 15.0)], seed)
        assert "fall" not in kinds(told), seed


def test_a_fall_that_straddles_two_windows_is_told_like_any_other():
    for cut in range(12):  # the strike moves through the window by quarter seconds
        subject = Subject()
        dice = np.random.default_rng(5)
        track = Body(subject, dice).perform([("walk", 18.0 + cut / 4), ("fall", 12.0)])
        assert "fall" in kinds(follow(track.windows(Sensor(), dice), SECONDS)), cut


def test_who_falls_and_writhes_on_the_ground_has_fallen_too():
    found = sum("fall" in kinds(perform([("walk", 20.0), ("fall", 1.2), ("work", 30.0)], seed)) for seed in range(30))
    assert found >= 26, found


# --- fainting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [30.0, 60.0, 120.0])
def test_a_faint_is_told_at_the_fainting_limit_and_not_before(limit):
    for seed in range(8):
        told = perform([("stand", 21.0), ("slump", 3.0), ("lie", limit + 12.0)], seed, faint_limit=limit)
        first = kinds(told).index("faint")
        lain = first * SECONDS + SECONDS - 24.0  # since the slump ended
        assert limit - SECONDS <= lain <= limit + 2 * SECONDS
        assert set(kinds(told)[first:]) == {"faint"}


def test_stillness_after_a_fall_is_a_faint_sooner():
    for seed in range(10):
        told = perform([("walk", 20.0), ("fall", 6.0), ("lie", 40.0)], seed)
        assert "faint" in kinds(told), seed
        assert told[-1][1].fallen


def test_who_rests_and_moves_a_little_now_and_then_has_not_fainted():
    said = Counter()
    for seed in range(10):
        said.update(kinds(perform([("sit", 600.0)], seed)))
    assert not said["faint"], said


def test_whoever_walks_again_has_neither_fallen_nor_fainted():
    told = perform([("walk", 20.0), ("fall", 6.0), ("lie", 60.0), ("rise", 3.0), ("walk", 40.0)], 1)
    assert "faint" in kinds(told)
    assert told[-1][1].kind == "walking"
    assert not told[-1][1].fallen


@pytest.mark.parametrize("activity", sorted(ACTIVITIES))
def test_a_machine_never_walks_falls_or_faints(activity):
    for seed in range(4):
        told = perform([("ride", 20.0), (activity, 20.0), ("aside", 200.0)], seed, subject="machine")
        assert set(kinds(told)) <= {"still", "riding"}


def test_a_machine_rides_under_way_and_is_still_when_parked():
    for seed in range(10):
        told = perform([("ride", 60.0), ("aside", 60.0)], seed, subject="machine")
        assert kinds(told, "ride").count("riding") >= 19
        assert kinds(told, "aside") == ["still"] * 20


# --- what is missing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("hole", [4.0, 12.0, 3600.0, None])
def test_missing_windows_alone_never_raise_a_faint(hole):
    limits, state = Settings(faint_limit=60.0), State()
    for i in range(19):  # 57 s are seen, over up to 19 hours
        state, motion = judge(limits, state, at_rest(seed=i), SECONDS if hole is None else SECONDS + hole)
        if hole is None:
            state, _ = judge(limits, state, Window(50.0, 0.005, 3, b""), 1e6)
        assert motion.kind == "still"


def test_a_short_hole_stops_the_clock_and_a_long_one_sets_it_back():
    limits, stilled = Settings(), State()
    for i in range(10):
        stilled, _ = judge(limits, stilled, at_rest(seed=i), SECONDS)
    assert judge(limits, stilled, at_rest(), SECONDS + 8.0)[1].still == pytest.approx(33.0)
    for span in (SECONDS + 11.0, None, float("nan"), -1.0, float("inf")):
        assert judge(limits, stilled, at_rest(), span)[1].still == pytest.approx(3.0)


def test_another_posture_begins_the_clock_anew():
    limits, stilled = Settings(), State()
    for i in range(10):
        stilled, _ = judge(limits, stilled, at_rest(seed=i), SECONDS)
    turned = at_rest(up=(0.5, 0.0, 0.866))
    assert judge(limits, stilled, turned, SECONDS + 5.0)[1].still == pytest.approx(3.0)


def test_a_missing_window_does_not_end_a_faint_but_movement_does():
    limits, fainted = Settings(faint_limit=21.0), State()
    for i in range(9):
        fainted, motion = judge(limits, fainted, at_rest(seed=i), SECONDS)
    assert motion.kind == "faint"
    assert judge(limits, fainted, at_rest(), SECONDS + 300.0)[1].kind == "faint"
    shaken = window(np.random.default_rng(0).normal((0.0, 0.0, 1.0), 0.2, (150, 3)))
    assert judge(limits, fainted, shaken, SECONDS)[1].kind not in ("faint", "still")


def test_a_window_handed_in_twice_counts_once():
    dice, limits, state = np.random.default_rng(0), Settings(), State()
    script = [("walk", 12.0), ("ride", 12.0), ("walk", 7.0), ("fall", 8.0), ("lie", 30.0)]
    for one, _ in Body(Subject(), dice).perform(script).windows(Sensor(), dice, 1.0):
        state, motion = judge(limits, state, one, 1.0)
        again, repeated = judge(limits, state, one, 0.0)
        assert again == state
        assert (repeated.kind, repeated.still) == (motion.kind, motion.still)


def test_one_window_in_ten_lost_hides_no_faint():
    dice = np.random.default_rng(8)
    for seed in range(10):
        body = Body(Subject.draw(dice), dice)
        track = body.perform([("walk", 20.0), ("slump", 2.0), ("lie", 90.0)])
        state, span, said = State(), 0.0, []
        for one, _ in track.windows(Sensor.draw(dice), dice):
            span += SECONDS
            if dice.uniform() >= 0.1:
                state, motion = judge(Settings(faint_limit=45.0), state, one, span)
                said.append(motion.kind)
                span = 0.0
        assert "faint" in said, seed


# --- faulty sensors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        lambda sensor: replace(sensor, dead=(0, 0.0)),
        lambda sensor: replace(sensor, dead=(1, sensor.range)),
        lambda sensor: replace(sensor, offset=(0.3, -0.3, 0.25)),
        lambda sensor: replace(sensor, range=2.0),
        lambda sensor: replace(sensor, noise=0.001, range=2.0, scale=4 * G / 256),  # 8 bits
    ],
    ids=["dead at 0", "dead at the rail", "offset", "clipped at 2 g", "8 bits"],
)
def test_a_faulty_sensor_still_tells_walking_and_fainting_and_makes_no_fall(fault):
    walked, fainted = Counter(), 0
    for seed in range(10):
        told = perform([("run", 10.0), ("walk", 40.0), ("slump", 3.0), ("lie", 80.0)], seed, fault=fault)
        assert "fall" not in kinds(told)
        walked.update(kinds(told, "walk"))
        fainted += "faint" in kinds(told, "lie")
    assert walked["walking"] >= 0.85 * walked.total(), walked
    assert fainted >= 9


def test_a_fall_is_told_by_a_sensor_that_clips_or_was_never_calibrated():
    for fault in (lambda s: replace(s, range=2.0), lambda s: replace(s, offset=(0.3, -0.3, 0.25))):
        found = sum("fall" in kinds(perform([("walk", 20.0), ("fall", 20.0)], seed, fault=fault)) for seed in range(20))
        assert found >= 18


def test_clipping_is_told():
    force = np.tile((0.0, 0.0, 1.0), (150, 1))
    force[70] = 9.0
    hard = window(force.clip(-4.0, 4.0))
    assert judge(Settings(full_scale=4.0), State(), hard, None)[1].clipped
    assert not judge(Settings(full_scale=16.0), State(), hard, None)[1].clipped


@pytest.mark.parametrize("rate", [1.0, 4.9, 10.0, 31.25, 400.0, 1666.0])
def test_any_rate_tells_rest_from_movement(rate):
    dice = np.random.default_rng(2)
    seconds = 8.0 if rate < 10 else 2.0
    walking = Body(Subject(), dice, rate).perform([("walk", 60.0)])
    told = follow(walking.windows(Sensor(rate=rate), dice, seconds), seconds)
    assert "still" not in kinds(told)
    if rate >= 10:
        assert kinds(told).count("walking") >= 0.9 * len(told)
    assert judge(Settings(), State(), at_rest(seconds, rate), None)[1].kind == "still"


@pytest.mark.parametrize("axes", [1, 2])
def test_fewer_than_three_axes_tell_rest_from_steps(axes):
    dice = np.random.default_rng(4)
    for one, doing in Body(Subject(), dice).perform([("stand", 30.0), ("walk", 30.0)]).windows(Sensor(), dice):
        counts = np.frombuffer(one.counts, "<i2").reshape(-1, 3)[:, -axes:]
        told = judge(Settings(), State(), Window(one.rate, one.scale, axes, counts.tobytes()), None)[1]
        assert doing != "walk" or told.kind == "walking"
        assert doing != "stand" or told.kind in ("still", "moving")


def test_windows_in_g_are_told_like_those_in_metres_a_second_squared():
    dice = np.random.default_rng(1)
    for one, _ in Body(Subject(), dice).perform([("walk", 9.0)]).windows(Sensor(), dice):
        in_g = Window(one.rate, one.scale / G, 3, one.counts)
        here, there = judge(Settings(), State(), one, None)[1], judge(Settings(unit=1.0), State(), in_g, None)[1]
        assert here.kind == there.kind == "walking"
        assert here.peak == pytest.approx(there.peak)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_window_too_short_to_judge_is_unknown_and_its_time_unseen(count):
    short = window(np.tile((0.0, 0.0, 1.0), (count, 1)))
    state, told = judge(Settings(), State(), short, SECONDS)
    assert told.kind == "unknown"
    assert state.blind == SECONDS


def test_a_dead_sensor_is_unknown_and_never_a_faint():
    for level in (0.0, 16.0):
        told = follow([(window(np.full((150, 3), level)), "dead")] * 40, SECONDS)
        assert set(kinds(told)) == {"unknown"}


@pytest.mark.parametrize(
    "bad",
    [
        Window(0.0, 0.005, 3, bytes(60)),
        Window(float("nan"), 0.005, 3, bytes(60)),
        Window(float("inf"), 0.005, 3, bytes(60)),
        Window(50.0, 0.0, 3, bytes(60)),
        Window(50.0, float("nan"), 3, bytes(60)),
        Window(50.0, 1e300, 3, bytes(60)),
        Window(50.0, 0.005, 0, bytes(60)),
        Window(50.0, 0.005, 4, bytes(64)),
        Window(50.0, 0.005, 3, bytes(61)),
    ],
)
def test_what_is_no_window_is_refused(bad):
    with pytest.raises(ProtocolError, match="window of"):
        judge(Settings(), State(), bad, None)


WINDOWS = st.builds(
    Window,
    rate=st.sampled_from([0.1, 3.0, 50.0, 1e5]) | st.floats(0.1, 1e5),
    scale=st.floats(1e-9, 1e3),
    axes=st.just(3),
    counts=st.binary(max_size=900).map(lambda data: data[: len(data) // 6 * 6]),
)
SPANS = st.none() | st.floats(0, 1e12) | st.sampled_from([0.0, 0.5, float("nan"), float("inf"), -3.0])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(WINDOWS, SPANS), max_size=6), st.sampled_from(["person", "machine"]))
@example([(Window(50.0, 1e3, 3, b"\xff\x7f" * 450), None)] * 3, "person")
def test_any_bytes_are_judged_and_the_state_stays_small_and_whole(stream: Sequence, subject):
    state = State()
    for one, span in stream:
        state, told = judge(Settings(subject=subject), state, one, span)
        packed = msgspec.msgpack.encode(state)
        assert len(packed) < 700
        assert msgspec.msgpack.decode(packed, type=State) == state
        assert np.isfinite([told.since, told.level, told.peak, told.jerk, told.still]).all()


def test_the_state_of_a_tag_with_ordinary_windows_packs_to_two_hundred_bytes():
    state = State()
    dice = np.random.default_rng(0)
    script = [("walk", 20.0), ("ride", 20.0), ("fall", 8.0), ("lie", 60.0)]
    for one, _ in Body(Subject(), dice).perform(script).windows(Sensor(), dice):
        state, _ = judge(Settings(), state, one, SECONDS)
        assert len(msgspec.msgpack.encode(state)) < 200


def test_a_window_is_judged_in_two_milliseconds():
    dice = np.random.default_rng(0)
    track = Body(Subject(), dice).perform([("walk", 60.0), ("ride", 60.0)])
    windows = [one for one, _ in track.windows(Sensor(), dice)]
    spent, state = [], State()
    for one in windows:
        begin = time.process_time()
        state, _ = judge(Settings(), state, one, SECONDS)
        spent.append(time.process_time() - begin)
    assert np.median(spent) < 0.002


@pytest.mark.parametrize(
    ("given_", "named"),
    [
        ({"slowest": 3.0, "fastest": 2.0}, "slowest"),
        ({"quiet": 0.2}, "walk_level"),
        ({"impact": 0.9}, "impact"),
        ({"faint_limit": 10.0}, "fall_faint_limit"),
        ({"bridge": 0.5}, "bridge"),
        ({"faint_limit": 0.0}, "faint_limit"),
        ({"subject": "dog"}, "subject"),
        ({"faint_limits": 30.0}, "faint_limits"),
    ],
)
def test_settings_that_contradict_themselves_are_refused_by_name(given_, named):
    with pytest.raises(msgspec.ValidationError, match=named):
        msgspec.convert(given_, Settings)
    assert msgspec.convert({}, Settings) == Settings()
