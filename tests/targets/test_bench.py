"""The runner: what it measures, when it refuses a headline, and what it refuses to measure."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from sshd import PI4, StandIn

from targets.runtime import artifact, bench, machine, timing
from targets.runtime.errors import HighwallError
from targets.runtime.machine import State, throttling
from targets.runtime.measurement import Bench, lines

FEW = bench.FEWEST_RUNS


@pytest.fixture
def board(tmp_path, monkeypatch):
    """This process sees a quiet Raspberry Pi 4B."""
    stand_in = StandIn(tmp_path / "board")
    monkeypatch.setenv("HIGHWALL_SYSROOT", str(stand_in.root))
    monkeypatch.setenv("PATH", f"{stand_in.bin}{os.pathsep}{os.environ['PATH']}")
    return stand_in


@pytest.fixture
def file(tmp_path, classifier):
    return classifier.write(tmp_path / "tiny.highwall")


def run(path, sustained=0.0, tree="", part="", threads=1) -> Bench:
    return bench.run(path, FEW, sustained, threads, tree, part, lambda line: None)


# --- a quiet board ----------------------------------------------------------------------------------------


def test_a_quiet_board_gives_a_headline_and_every_fact_of_it(board, file, classifier):
    found = run(file, tree="Raspberry Pi 4 Model B", part="0xd08")
    assert found.reasons == ()
    assert found.as_dict()["headline"] == {"p50_ms": found.timed.p50_ms, "p95_ms": found.timed.p95_ms}
    here = found.machine
    assert (here.model, here.device_tree, here.cpu_implementer, here.cpu_part) == (PI4, PI4, "0x41", "0xd08")
    assert here.vectors == "asimd"
    assert {"numpy", "onnxruntime"} <= set(here.packages)
    for state in (found.before, found.after):
        assert (state.governor, state.clock_mhz, state.temperature_c) == ("performance", 1800, 48.312)
        assert (state.load, state.throttled_now, state.throttled_since_boot) == (0.25, (), ())
    assert (found.name, found.board, found.runtime, found.model_version) == ("tiny", "rpi4b", "onnx", 3)
    assert found.model_sha256 == classifier.artifact().digests["model.onnx"]


def test_figures_hang_together(board, file):
    found = run(file)
    timed = found.timed
    assert timed.runs == FEW
    assert 0 < timed.min_ms <= timed.p50_ms <= timed.p95_ms
    assert timed.p50_interval_ms[0] <= timed.p50_ms <= timed.p50_interval_ms[1]
    assert timed.p95_interval_ms[0] <= timed.p95_interval_ms[1]
    assert 0 < timed.cpu_use < 2
    assert found.warm_up.runs >= timing.BLOCK * (timing.PATIENCE + 1)
    assert found.warm_up.settled
    assert min(found.cold.engine_ms, found.cold.load_ms, found.cold.first_ms) >= 0
    assert found.peak_mib is None or found.peak_mib >= 0
    assert found.sustained is None


def test_the_name_of_the_machine_in_its_network_is_left_out(board, file):
    values = json.dumps(run(file).as_dict())
    assert f'"{platform.node()}"' not in values


def test_a_stand_in_for_the_system_is_owned_up_to(board, file):
    assert any("HIGHWALL_SYSROOT" in note for note in run(file).notes)


def test_sensors_and_maps_are_measured_too(board, tmp_path, make_parts, segmenter):
    joined = make_parts("classify", artifact.InputSpec(5, 3, 1, "uint16", sensors=4))
    for number, parts in enumerate((joined, segmenter)):
        assert run(parts.write(tmp_path / f"{number}.highwall")).timed.runs == FEW


def test_sustained_load_compares_its_first_tenth_with_its_last(board, file):
    hot = run(file, sustained=0.2).sustained
    assert hot.runs >= 10
    assert hot.seconds >= 0.2
    assert hot.slowdown == pytest.approx(hot.last_p50_ms / hot.first_p50_ms, rel=0.05)
    assert [state.temperature_c for state in hot.samples] == [48.312, 48.312]
    assert hot.samples[0].second <= hot.samples[-1].second


def test_throttling_under_sustained_load_is_reported_and_leaves_the_headline_of_the_runs_before(board, file):
    # Looks: before, begin and end of the timed runs, begin and end of the load.
    board.answers("get_throttled", *["throttled=0x0"] * 4, "throttled=0x80008")
    found = run(file, sustained=0.1)
    assert found.reasons == ()
    assert found.sustained.throttled == ("soft temperature limit",)
    assert any("under that load the board was throttled: soft temperature limit" in line for line in lines(found))


# --- no headline ------------------------------------------------------------------------------------------


def refused_headline(found: Bench) -> str:
    assert found.as_dict()["headline"] is None
    shown = lines(found)
    assert not any(line.startswith("p50") for line in shown)
    assert any(line.strip().startswith("not to be quoted: p50") for line in shown)
    return " | ".join(line for line in shown if line.startswith("no headline: "))


def test_a_board_throttled_while_it_is_timed_gives_no_headline(board, file):
    board.answers("get_throttled", "throttled=0x0", "throttled=0x50005")
    said = refused_headline(run(file))
    assert "under-voltage" in said
    assert "throttled" in said


def test_a_drop_of_voltage_between_two_looks_is_noticed_by_what_the_firmware_remembers(board, file):
    board.answers("get_throttled", "throttled=0x0", "throttled=0x0", "throttled=0x10000")
    assert "under-voltage" in refused_headline(run(file))


def test_throttling_before_the_run_is_a_note_only(board, file):
    board.answers("get_throttled", "throttled=0x50000")
    found = run(file)
    assert found.reasons == ()
    assert "under-voltage was seen since boot, before this run" in found.notes


def test_a_clock_that_falls_gives_no_headline(board, file):
    board.answers("measure_clock", *["frequency(48)=1800000000"] * 2, "frequency(48)=600117184")
    assert "clock fell from 1800 to 600 MHz" in refused_headline(run(file))


def test_a_busy_machine_gives_no_headline(file):
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range((os.cpu_count() or 1) // 4 + 1)]
    try:
        assert "busy" in refused_headline(run(file))
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_our_own_work_does_not_count_as_the_work_of_others(monkeypatch):
    ticks = os.sysconf("SC_CLK_TCK")
    clock, busy, own = iter([0.0, 10.0]), iter([0, 12 * ticks]), iter([3.0, 11.0])
    monkeypatch.setattr(machine.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(machine, "_busy_ticks", lambda: next(busy))
    monkeypatch.setattr(machine, "_own_seconds", lambda: next(own))
    assert machine.Busy().others() == pytest.approx(0.4)  # (12 - 8) s of 10


def test_a_governor_that_wanders_is_a_note_only(board, file):
    board.file("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "ondemand\n")
    found = run(file)
    assert found.reasons == ()
    assert any("governor is ondemand" in note for note in found.notes)


def test_a_pi_whose_firmware_does_not_answer_is_noted(board, file):
    board.program("vcgencmd", "echo 'VCHI initialization failed' >&2; exit 255")
    found = run(file)
    assert found.before.throttled_now is None
    assert found.reasons == ()
    assert any("vcgencmd" in note for note in found.notes)


@pytest.mark.parametrize("said", ["", "throttled=", "throttled=zz", "error=1", "VCHI initialization failed"])
def test_a_garbled_answer_of_the_firmware_means_nothing_is_known(said):
    assert throttling(said) is None


def test_throttling_in_words():
    assert throttling("throttled=0x0\n") == ((), ())
    assert throttling("throttled=0x50005") == (("under-voltage", "throttled"),) * 2
    assert throttling("throttled=0xa0000") == ((), ("clock capped", "soft temperature limit"))
    assert throttling("throttled=0xf") == (machine.THROTTLING, ())


def test_a_machine_that_says_nothing_of_itself_is_measured_all_the_same(file, tmp_path, monkeypatch):
    monkeypatch.setenv("HIGHWALL_SYSROOT", str(tmp_path / "nothing"))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = run(file)
    nothing = State(0.0, None, None, None, None, None, None)
    assert (found.before, found.timed.others_use) == (nothing, None)
    assert any("says nothing of its state" in line for line in lines(found))


# --- refusals ---------------------------------------------------------------------------------------------


def refusal(*arguments, **options) -> str:
    with pytest.raises(HighwallError) as caught:
        run(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_board_than_the_one_wanted_is_refused(board, file):
    said = refusal(file, tree="Raspberry Pi 5", part="0xd0b")
    assert "made for rpi4b" in said
    assert f"this is a {PI4}, not a Raspberry Pi 5" in said
    assert "--any-board" in said
    assert "CPU part is 0xd08" in refusal(file, tree="Raspberry Pi 4 Model B", part="0xd0b")


def test_a_machine_without_a_device_tree_is_no_board(file, tmp_path, monkeypatch):
    monkeypatch.setenv("HIGHWALL_SYSROOT", str(tmp_path))
    assert "machine without a device tree" in refusal(file, tree="Raspberry Pi 4 Model B", part="0xd08")


def test_a_damaged_artifact_and_one_that_answers_otherwise_here_are_not_timed(board, tmp_path, file, classifier):
    other = replace(classifier.golden, expected=classifier.golden.expected + np.float32(0.25))
    artifact.write(tmp_path / "wrong.highwall", classifier.manifest, classifier.model, other, {})
    assert "differ from its golden vectors by 0.25" in refusal(tmp_path / "wrong.highwall")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert str(file) in refusal(file)
    assert "does not exist" in refusal(tmp_path / "none.highwall")


@pytest.mark.parametrize("wrong", [(FEW - 1, 0.0, 1), (FEW, -1.0, 1), (FEW, float("nan"), 1), (FEW, 0.0, 0)])
def test_settings_that_measure_nothing_are_refused(wrong):
    with pytest.raises(HighwallError, match="take"):
        bench.options(*wrong)


# --- a fresh process --------------------------------------------------------------------------------------


def test_a_measurement_runs_in_a_fresh_process_and_tells_what_it_does(board, file):
    said = []
    found = bench.measure(file, runs=FEW, device_tree="Raspberry Pi 4 Model B", cpu_part="0xd08", say=said.append)
    assert found.reasons == ()
    assert found.cold.engine_ms > 1  # milliseconds: it was imported there, whatever this process has done
    assert any("golden vectors agree" in line for line in said)


def test_a_refusal_in_the_fresh_process_arrives_as_one_line(board, file):
    said = []
    with pytest.raises(HighwallError, match=r"not a Raspberry Pi 5; measure it all the same") as caught:
        bench.measure(file, runs=FEW, device_tree="Raspberry Pi 5", say=said.append)
    assert "error" not in str(caught.value)
    assert said == []


def test_the_runner_prints_one_json_object_and_says_the_rest_on_stderr(board, file):
    command = [sys.executable, "-m", "targets.runtime.bench", file, "--runs", str(FEW)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    found = Bench.from_dict(json.loads(done.stdout))
    assert found.timed.runs == FEW
    assert done.stderr
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"tiny version 3, onnx, 1 thread, on {PI4}\n")


def test_the_runner_needs_numpy_and_the_engine_and_nothing_else(board, file):
    absent = ("PIL", "cryptography", "msgspec", "torch", "onnx", "targets.board")
    script = (
        f"import sys\nfrom targets.runtime import bench\ncode = bench.main([{str(file)!r}, '--runs', '{FEW}'])\n"
        f"print(code, [name for name in {absent!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_a_runner_that_dies_is_told_from_one_that_refuses():
    with pytest.raises(HighwallError, match="want of memory"):
        bench.result(-9, "", "warming up", "pi")
    with pytest.raises(HighwallError, match="illegal instruction"):
        bench.result(-4, "", "", "pi")
    with pytest.raises(HighwallError, match="ended with code 1: ModuleNotFoundError"):
        bench.result(1, "", "ModuleNotFoundError: no numpy", "pi")
    with pytest.raises(HighwallError, match="not JSON"):
        bench.result(0, "Welcome", "", "pi")
    with pytest.raises(HighwallError, match="not JSON"):
        bench.result(0, "[" * 100_000, "", "pi")


# --- what was measured, as data ---------------------------------------------------------------------------


@pytest.fixture
def measured(board, file):
    board.answers("get_throttled", "throttled=0x0", "throttled=0x50005")
    return run(file, sustained=0.05)


def test_a_measurement_survives_json(measured):
    assert Bench.from_dict(json.loads(json.dumps(measured.as_dict()))) == measured


def test_a_result_that_is_not_a_runners_is_refused_by_name(measured):
    good = measured.as_dict()
    timed = good["timed"]
    wrong = {
        "bench.timed.p50_ms": {**good, "timed": {**timed, "p50_ms": float("nan")}},
        "bench.timed.runs": {**good, "timed": {**timed, "runs": "20"}},
        "bench.timed.p50_interval_ms": {**good, "timed": {**timed, "p50_interval_ms": [1.0]}},
        r"bench.notes\[0\]": {**good, "notes": [3]},
        "bench.threads": {**good, "threads": True},
        "bench.cold": {**good, "cold": {}},
        "bench.peak_mib": {**good, "peak_mib": 10**400},  # JSON has no largest number
    }
    for where, raw in wrong.items():
        with pytest.raises(HighwallError, match=rf"^{where} is "):
            Bench.from_dict(raw)
    for raw in ({**good, "more": 1}, {}, [], None):
        with pytest.raises(HighwallError, match=r"^bench is "):
            Bench.from_dict(raw)


def test_a_hostile_board_cannot_steer_the_terminal(measured):
    evil = replace(measured, machine=replace(measured.machine, model="\x1b[2J\nno headline", kernel="\r\x07"))
    for line in lines(evil):
        assert line.isprintable()


def test_intervals_repeat_and_hold_the_middle_of_what_was_measured():
    seconds = np.random.RandomState(4).gamma(9.0, 1e-3, 211)
    first, again = timing.intervals(seconds), timing.intervals(seconds)
    np.testing.assert_array_equal(first, again)
    for (low, high), value in zip(first, np.percentile(seconds, (50, 95)), strict=True):
        assert low < value < high
    np.testing.assert_array_equal(timing.intervals(np.full(20, 0.5)), np.full((2, 2), 0.5))


def test_intervals_are_wider_where_slow_runs_come_together():
    random = np.random.RandomState(0)
    together = np.repeat(random.gamma(9.0, 1.0, 30), 10)
    wide, narrow = (np.diff(timing.intervals(seconds)[0])[0] for seconds in (together, random.permutation(together)))
    assert wide > narrow


def test_warm_up_ends_when_medians_fall_no_more():
    falling = [10.0 * 0.9**step for step in range(20)]
    assert not any(timing.settled(falling[:length]) for length in range(1, 20))
    assert not timing.settled([10.0] * timing.PATIENCE)  # nothing before them to compare with
    assert timing.settled([10.0, 8.0, 8.0, 7.9, 8.1])
    assert timing.settled([8.0, 12.0, 9.0, 8.5])  # a machine that became slower is warm too


def test_a_warm_up_that_never_settles_ends_at_its_bound_and_says_so(board, file, monkeypatch):
    monkeypatch.setattr(timing, "MOST_S", 0.05)
    monkeypatch.setattr(timing, "settled", lambda medians: False)
    found = run(file)
    assert not found.warm_up.settled
    assert any("still falling" in note for note in found.notes)
