"""The suite: turns, the field without weights, what a killed or hostile run leaves, and the table of it."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

import highwall
from benchmarks.suite import field, run, table, turns
from benchmarks.suite.field import Absent, Member, filled, members, skeleton
from benchmarks.suite.roofline import Roof, place
from targets.runtime.engine import open_session
from targets.runtime.errors import HighwallError

# A player that takes so many milliseconds, or dies with its last words.
PLAYER = """
import sys, time
from benchmarks.suite.serve import serve
print("an engine greets")
milliseconds, how = float(sys.argv[1]), sys.argv[2]
calls = 0
def once():
    global calls
    calls += 1
    if how == "dies" and calls > 5:
        sys.exit("out of luck")
    time.sleep(milliseconds / 1000)
serve(lambda: None, lambda: once)
"""


def player(name: str, milliseconds: float, how: str = "lives") -> turns.Player:
    return turns.Player(name, [sys.executable, "-c", PLAYER, str(milliseconds), how])


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """One run of the smallest kind."""
    path = tmp_path_factory.mktemp("suite") / "machine.json"
    plan = run.Plan(("rnn",), (18,), (1,), 0.05)
    return path, run.run(plan, path, "the command", lambda line: None)


# --- turns --------------------------------------------------------------------------------------------------


def test_who_takes_three_times_as_long_is_found_to():
    with player("ours", 20) as ours, player("theirs", 60) as theirs:
        found = turns.take_turns([ours, theirs], 1.0, 1)
    against = found.ratio("theirs", "ours")
    assert 2 < against.ratio < 4
    assert against.interval[0] <= against.ratio <= against.interval[1]
    assert found.players["ours"].rounds == found.players["theirs"].rounds >= turns.FEWEST
    assert found.players["ours"].start_ms > found.players["ours"].load_ms


def test_a_starved_player_marks_the_run_as_noisy():
    with player("sleeper", 5) as sleeper:  # it sleeps, so it is seldom on a core: as one that shares it
        found = turns.take_turns([sleeper], 0.2, 1)
    assert any("sleeper had its core for" in noise for noise in found.noise)


def test_a_player_that_dies_is_named_with_its_last_words():
    with pytest.raises(HighwallError, match="theirs cannot run: out of luck"), player("theirs", 1, "dies") as theirs:
        turns.take_turns([theirs], 0.2, 1)


def test_a_player_that_never_starts_is_an_error_and_leaves_no_process():
    broken = turns.Player("broken", [sys.executable, "-c", "raise SystemExit('no engine')"])
    with pytest.raises(HighwallError, match="broken cannot run: no engine"), broken:
        pass
    assert broken._process.poll() is not None


@given(st.lists(st.floats(1e-4, 10), min_size=5, max_size=40), st.floats(0.1, 10))
def test_a_constant_ratio_has_no_spread(seconds, times):
    ours = np.array(seconds)
    found = turns.ratio(ours * times, ours)
    assert found.ratio == pytest.approx(times, rel=1e-3)
    assert found.interval == pytest.approx((found.ratio, found.ratio), abs=1.1e-3)  # each is rounded for itself


# --- the field ----------------------------------------------------------------------------------------------


def test_the_committed_field_holds_ours_every_cnn_the_rnn_and_unet():
    present, absent = members()
    at_48 = {one.network for one in present if (one.task, one.size, one.precision) == ("classify", 48, "fp32")}
    wanted = {"cracknet", "rnn", "alexnet", "vgg16", "vgg19", "googlenet", "resnet50", "densenet121", "mobilenetv2"}
    assert at_48 == wanted
    sizes = {one.size for one in present}
    assert min(sizes) == 18
    assert max(sizes) == 1024
    unet = next(one for one in present if (one.network, one.size, one.precision) == ("unet", 448, "fp32"))
    assert unet.parameters == 31_037_633
    assert unet.macs > 147e9
    assert {"ssd300"} == {one.network for one in present if one.task == "detect"}
    assert all(one.reason for one in absent)


def test_a_skeleton_runs_when_it_is_filled_and_twice_gives_the_same():
    one = next(one for one in members()[0] if one.name == "cracknet-classify-18-int8")
    model = filled(one)
    assert model == filled(one)
    answer = open_session("onnx", model, 1).run(np.zeros((18, 18, 3), np.uint8))
    assert np.isfinite(answer).all()


def test_a_skeleton_keeps_shapes_kinds_and_small_tensors_and_forgets_the_rest():
    kept = numpy_helper.from_array(np.arange(4, dtype=np.float32), "kept")
    shape = numpy_helper.from_array(np.arange(99, dtype=np.int64), "shape")
    large = numpy_helper.from_array(np.full((7, 13), -3, np.int8), "large")
    graph = onnx.helper.make_graph([], "g", [], [], [kept, shape, large])
    bare = onnx.ModelProto.FromString(skeleton(onnx.helper.make_model(graph).SerializeToString()))
    tensors = {tensor.name: tensor for tensor in bare.graph.initializer}
    assert numpy_helper.to_array(tensors["kept"]).tolist() == [0, 1, 2, 3]
    assert numpy_helper.to_array(tensors["shape"]).size == 99
    assert (list(tensors["large"].dims), tensors["large"].raw_data) == ([7, 13], b"")
    spread = json.loads(tensors["large"].doc_string)
    assert spread == {"mean": -3, "std": 0, "low": -3, "high": -3}
    drawn = field._drawn("large", (7, 13), np.dtype(np.int8), **spread)
    assert (drawn == -3).all()
    assert drawn.dtype == np.int8


def test_a_damaged_or_missing_field_is_one_line(tmp_path):
    for content in (None, b"", b"PK no zip", zipped({"index.json": b"[]"}), zipped({"index.json": b"{}"})):
        path = tmp_path / "field.zip"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(HighwallError, match="no field of networks"):
            members(path)


def zipped(entries: dict[str, bytes]) -> bytes:
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_the_suite_runs_without_torch(root):
    script = (
        "import sys\nfrom benchmarks.suite import run, table, turns, worker, roofline\nrun.members()\n"
        "bad = {'torch', 'toolkit', 'matplotlib', 'onnx'} & set(sys.modules)\nassert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- a run --------------------------------------------------------------------------------------------------


def test_a_run_writes_every_pair_with_ratio_memory_and_the_first_answer(smoke):
    path, result = smoke
    assert run.read(path) == json.loads(json.dumps(result))
    assert set(result["cells"]) == {f"cracknet-classify-18-{p}-1" for p in ("fp32", "int8")} | {
        "rnn-classify-18-fp32-1"
    }
    rnn = result["cells"]["rnn-classify-18-fp32-1"]
    assert rnn["of"] == "cracknet-classify-18-fp32"
    assert rnn["ratio"] > 0
    assert rnn["start_ms"] > rnn["load_ms"] + rnn["first_ms"]
    assert rnn["peak_mib"] > 0
    assert result["roofline"]["rnn-classify-18-fp32-1"]["share"] > 0
    assert [gap["precision"] for gap in result["absent"]] == ["int8"]
    assert result["machine"]["cores"] >= 1
    assert result["command"] == "the command"


def test_what_is_measured_is_not_measured_again_unless_it_was_noisy(smoke, monkeypatch):
    path, result = smoke
    before = json.loads(path.read_text())
    for cell in before["cells"].values():
        cell["noise"] = []
        if "of_p50_ms" in cell:
            cell["of_p50_ms"] = 1.0  # in so short a run ours may well stray from pair to pair
    rnn = before["cells"]["rnn-classify-18-fp32-1"]
    rnn["noise"] = ["others used 2 of 2 cores"]
    measured = []
    monkeypatch.setattr(
        run, "_cell", lambda one, other, count, seconds: measured.append((one.name, other.name)) or {"reason": "none"}
    )
    monkeypatch.setattr(run, "_keep", lambda path, result: None)

    def again():
        measured.clear()
        path.write_text(json.dumps(before))
        run.run(run.Plan(("rnn",), (18,), (1,), 0.05), path, "", lambda line: None)
        return measured

    pair = ("rnn-classify-18-fp32", "cracknet-classify-18-fp32")
    assert again() == [pair]
    rnn["noise"] = []
    assert again() == []
    rnn["of"] = rnn["network"]  # what an earlier run measured beside itself has no ratio to ours
    assert again() == [pair]
    path.write_text(json.dumps(result))


def test_ssd_is_measured_beside_ours_though_its_own_size_alone_is_asked_for(tmp_path, monkeypatch):
    beside = {}
    monkeypatch.setattr(
        run, "_cell", lambda one, other, count, seconds: beside.update({one.name: other.name}) or {"reason": "none"}
    )
    monkeypatch.setattr(run, "_keep", lambda path, result: None)
    monkeypatch.setattr(run, "roof", lambda count, seconds: Roof(count, 1.0, 1.0, 1.0))
    run.run(run.Plan((), (300,), (1,), 0.05), tmp_path / "x.json", "", lambda line: None)
    assert beside["ssd300-detect-300-fp32"] == "cracknet-classify-48-fp32"


def pairs(*times: float, alone: float = 1.0) -> dict[str, dict]:
    """Cells of networks beside ours, which took so long there, and ours alone."""
    made = {f"n{at}-1": {"of": "ours", "threads": 1, "of_p50_ms": ms, "noise": []} for at, ms in enumerate(times)}
    return made | {"ours-1": {"of": "ours", "threads": 1, "of_p50_ms": alone, "noise": []}}


def test_a_pair_in_which_ours_took_another_time_than_in_most_is_noisy():
    cells = pairs(1.03, 1.0, 1.69, 1.02, 0.7, 1.2)
    cells["n2-2"] = cells["n2-1"] | {"threads": 2, "noise": []}  # of other threads there is but one
    run.mark(cells)
    assert [name for name, cell in cells.items() if cell["noise"]] == ["n2-1", "n4-1"]
    assert cells["n2-1"]["noise"] == ["ours took 1.69 ms, 1.025 in most pairs"]
    run.mark(cells)
    assert len(cells["n2-1"]["noise"]) == 1
    cells["n2-1"]["of_p50_ms"] = 1.0  # measured anew
    run.mark(cells)
    assert cells["n2-1"]["noise"] == []


def test_ours_alone_has_no_ratio_that_could_be_wrong():
    cells = pairs(2.0, 2.1, 2.2, alone=1.0)
    run.mark(cells)
    assert not any(cell["noise"] for cell in cells.values())


def test_the_committed_results_own_up_to_ratios_that_contradict_the_times_beside_them():
    cells = run.read(run.RESULTS / "host.json")["cells"]
    for cell in cells.values():
        ours = cells.get(f"{cell.get('of')}-{cell['threads']}")
        if cell["threads"] == 1 and ours is not None and "ratio" in cell and not cell["noise"]:
            assert cell["ratio"] == pytest.approx(cell["p50_ms"] / ours["p50_ms"], rel=0.45), cell["title"]


def test_results_of_another_machine_are_never_mixed_in(smoke, tmp_path):
    _, result = smoke
    other = json.loads(json.dumps(result))
    other["machine"]["model"] = "another"
    there = tmp_path / "other.json"
    there.write_text(json.dumps(other))
    with pytest.raises(HighwallError, match="another machine"):
        run.run(run.Plan(("rnn",), (18,), (1,), 0.05), there, "", lambda line: None)


def test_a_model_that_finds_no_memory_says_so_and_the_others_go_on(smoke, monkeypatch):
    monkeypatch.setattr(run, "_free", lambda: 1 << 20)
    one = members()[0][0]
    assert "MiB" in run._cell(one, one, 1, 0.1)["reason"]


def test_an_engine_that_fails_is_a_reason_not_an_end(monkeypatch):
    one = next(one for one in members()[0] if one.name == "rnn-classify-18-fp32")
    monkeypatch.setattr(run, "filled", lambda member: b"no model")
    assert "cannot run" in run._cell(one, one, 1, 0.1)["reason"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99, "cells": {}}', '{"schema": 1, "cells": []}'])
def test_a_file_that_is_no_result_is_one_line(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(HighwallError, match=r"x\.json is no result"):
        run.read(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--network", "resnet51"], "no network resnet51; it has alexnet"),
        (["--size", "19"], "no size 19; it has 18, 48"),
        (["--threads", "0"], "0 threads cannot run"),
        (["--seconds", "-1"], "--seconds takes seconds"),
        (["--seconds", "nan"], "--seconds takes seconds"),
    ],
)
def test_a_mistake_is_one_line(options, told, capsys):
    assert highwall.main(["bench", "suite", *options]) == 1
    assert told in capsys.readouterr().err


def test_ours_is_measured_beside_its_own_float_self_and_ssd_beside_the_classifier_that_ships():
    present = members()[0]
    by_name = {one.name: one for one in present}
    assert run.partner(by_name["cracknet-classify-48-int8"], present).name == "cracknet-classify-48-fp32"
    assert run.partner(by_name["unet-segment-448-int8"], present).name == "cracknet-segment-448-int8"
    assert run.partner(by_name["ssd300-detect-300-fp32"], present).name == "cracknet-classify-48-fp32"


@given(st.integers(1, 10**12), st.integers(1, 10**10), st.floats(0.1, 1e4), st.floats(0.1, 1e3))
def test_nothing_is_faster_than_either_roof(macs, traffic, peak, bandwidth):
    least = place(macs, traffic, peak, bandwidth)
    assert least >= macs / peak / 1e6 * 0.999
    assert least >= traffic / bandwidth / 1e6 * 0.999


# --- the table ----------------------------------------------------------------------------------------------


def test_the_table_marks_noise_and_says_what_did_not_run():
    facts = {"title": "ours", "network": "cracknet", "task": "classify", "size": 48, "macs": 15_000_000}
    common = facts | {"threads": 1, "precision": "fp32"}
    timed = {
        "p50_ms": 1.25,
        "p95_ms": 2.5,
        "ratio": 1.0,
        "ratio_interval": [0.9, 1.1],
        "peak_mib": 3.0,
        "start_ms": 400.0,
    }
    gap = Absent("rnn", "RNN", "classify", 48, "int8", "no kernel").__dict__
    result = {
        "cells": {"a": common | timed | {"noise": ["busy"]}, "b": common | {"reason": "no memory", "noise": []}},
        "absent": [gap],
    }
    text = table.table(result)
    assert "1.25 (noisy)" in text
    assert "did not run: no memory" in text
    assert "not run: RNN at int8: no kernel" in text


def test_traffic_and_intensity_shrink_with_the_precision():
    facts = ("mine", "ours", "classify", 48, 3)
    whole, small = (Member(*facts, precision, 1_000_000, 1000, 8000) for precision in ("fp32", "int8"))
    assert whole.traffic == 4 * 1000 + 2 * 8000
    assert small.traffic == 1000 + 2 * 2000
    assert small.intensity > whole.intensity
