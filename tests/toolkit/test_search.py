"""The contract search: the cheapest that meets it, said why; nothing written where nothing does."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import highwall
from targets.board import load_board
from targets.runtime import artifact, footprint
from targets.runtime.engine import open_session
from targets.runtime.errors import HighwallError
from targets.runtime.golden import check
from toolkit import checkpoint, search
from toolkit.build import NoCandidate, Order, carry_out
from toolkit.cache import Cache
from toolkit.calibration import Calibration
from toolkit.compiler import Compiler
from toolkit.contract import parse
from toolkit.data.folder import read
from toolkit.network import NetworkConfig
from toolkit.quantize.recipes import RECIPES, Recipe, choose, recipe
from toolkit.receipt import table as receipt_table

ONNX = tuple(choose("onnx", None))


@pytest.fixture(scope="module")
def compiler(run_folder: Path, chips_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    model, network = checkpoint.load(run_folder)
    data = Calibration.of(read(chips_folder), model)
    return Compiler(model, network, data, Cache(tmp_path_factory.mktemp("cache")))


def order(out: Path, limits: dict[str, object], board: str = "rpi4b") -> Order:
    return Order(board, out, ONNX, parse({board: limits}, "contract.toml").of(board, "classify"))


def test_every_recipe_of_an_engine_is_made_and_named_by_what_it_is(compiler: Compiler) -> None:
    made = [compiler.candidate(one) for one in ONNX]
    sizes = {one.recipe.precision: len(one.model) for one in made}
    assert sizes["int8w"] < sizes["int8"] < sizes["mixed"]
    for one in made:
        assert one.complaint is None
        assert bool(one.float_layers) == (one.recipe.precision == "mixed")
        assert recipe(one.recipe.name) == one.recipe


def test_the_cheapest_that_meets_the_contract_is_kept_with_the_reason_each_other_lost(
    compiler: Compiler, tmp_path: Path
) -> None:
    out = tmp_path / "small.highwall"
    receipt = carry_out(compiler, order(out, {"max_drop": 1.0, "max_macs": 1e9}))
    found = artifact.read(out)
    assert json.loads(json.dumps(receipt)) == found.receipt
    rows = receipt["candidates"]
    assert [row["work"] for row in rows] == sorted(row["work"] for row in rows)
    assert rows[0]["verdict"] == "chosen"
    assert rows[0]["recipe"] == found.manifest.recipe["name"] == receipt["recipe"]["name"]
    assert {row["recipe"] for row in rows} == {one.name for one in ONNX}
    assert all(row["verdict"].startswith("meets the contract, ") for row in rows[1:])
    assert check(found, open_session("onnx", found.model)).passed


def test_a_limit_on_parity_pushes_the_choice_to_a_dearer_recipe(compiler: Compiler, tmp_path: Path) -> None:
    receipt = carry_out(compiler, order(tmp_path / "a.highwall", {"max_parity_error": 1e-6}))
    assert receipt["recipe"]["name"] == "onnx-fp32"
    lost = [row["verdict"] for row in receipt["candidates"] if row["recipe"] != "onnx-fp32"]
    assert all("parity error" in verdict for verdict in lost)


def test_no_candidate_leaves_nothing_and_says_what_was_missed_and_by_how_much(
    compiler: Compiler, tmp_path: Path
) -> None:
    with pytest.raises(NoCandidate, match=r"none of 10 recipes.*KiB, allowed 1.*\(by ") as caught:
        carry_out(compiler, order(tmp_path / "a.highwall", {"max_size_kib": 1}))
    assert len(caught.value.table.splitlines()) == 11
    assert list(tmp_path.iterdir()) == []


def test_the_order_depends_on_the_board_and_on_no_stopwatch(compiler: Compiler) -> None:
    works = {}
    for name in ("rpi4b", "rpi5"):
        tried = search.search(compiler, load_board(name), ONNX, None)
        works[name] = {one.recipe.name: one.work for one in tried}
        assert [one.order for one in tried] == sorted(one.order for one in tried)
    assert works["rpi5"]["onnx-fp32"] == works["rpi4b"]["onnx-fp32"] == works["rpi4b"]["onnx-int8w"]
    five, four = works["rpi5"], works["rpi4b"]
    assert five["onnx-int8-mse"] < five["onnx-mixed-mse"] < five["onnx-fp32"]  # it has a dot product
    assert four["onnx-int8-mse"] > four["onnx-mixed-mse"] > four["onnx-fp32"]  # it has none


@pytest.mark.arm
def test_instructions_decide_where_they_are_counted_and_are_in_the_table(
    arm, compiler: Compiler, tmp_path: Path
) -> None:
    arm("rpi4b")
    two = replace(order(tmp_path / "a.highwall", {"max_instructions": 1e12}), recipes=(ONNX[0], ONNX[-1]))
    rows = carry_out(compiler, two)["candidates"]
    assert rows[0]["instructions"] < rows[1]["instructions"]
    assert rows[0]["verdict"] == "chosen"
    assert rows[1]["verdict"] == "meets the contract, more instructions"
    assert "M instr" in receipt_table(rows)
    least = rows[0]["instructions"]
    with pytest.raises(NoCandidate, match=rf"it takes {least:,} ARM instructions, allowed {least - 1:,} \(by 1\)"):
        carry_out(compiler, replace(two, contract=order(tmp_path, {"max_instructions": least - 1}).contract))


@pytest.mark.arm
def test_what_another_limit_rules_out_is_not_counted(arm, compiler: Compiler, tmp_path: Path) -> None:
    arm("rpi4b")
    limits = {"max_size_kib": 1, "max_instructions": 1e12}
    tried = search.search(compiler, load_board("rpi4b"), ONNX[:1], order(tmp_path, limits).contract)
    assert tried[0].instructions is None
    assert [miss.key for miss in tried[0].misses] == ["max_size_kib"]


def test_instructions_without_an_emulator_are_refused_before_anything_is_built(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    with pytest.raises(HighwallError, match="highwall emulator setup"):
        search.check_possible(compiler, load_board("rpi4b"), order(tmp_path, {"max_instructions": 1e12}).contract)
    with pytest.raises(HighwallError, match="highwall emulator setup"):
        search.check_possible(compiler, load_board("rpi4b"), None, emulate=True)
    with pytest.raises(HighwallError, match="this very machine"):
        search.check_possible(compiler, load_board("host"), None, emulate=True)


def test_a_second_search_finds_its_candidates_in_the_cache_and_a_damaged_one_is_made_anew(
    compiler: Compiler, tmp_path: Path
) -> None:
    compiler.candidate(recipe("onnx-int8-minmax"))
    assert compiler.cache.folder is not None
    said: list[str] = []
    again = replace(compiler, say=said.append)
    assert again.candidate(recipe("onnx-int8-minmax")) == compiler.candidate(recipe("onnx-int8-minmax"))
    assert said == []
    for entry in compiler.cache.folder.iterdir():
        entry.write_bytes(entry.read_bytes()[:-3])
    fresh = replace(compiler, say=said.append)
    assert fresh.candidate(recipe("onnx-int8-minmax")) == compiler.candidate(recipe("onnx-int8-minmax"))
    assert "export to onnx" in said


def test_another_threshold_or_data_is_another_candidate(compiler: Compiler) -> None:
    one = recipe("onnx-fp32")
    other = replace(compiler, model=replace(compiler.model, threshold=0.123))
    assert compiler._identity(one) != other._identity(one)
    assert compiler.data is not None
    elsewhere = replace(compiler, data=replace(compiler.data, digest="0" * 64))
    assert compiler._identity(one) != elsewhere._identity(one)


def test_somebody_elses_network_is_never_taken_from_the_cache(tmp_path: Path) -> None:
    """Its weights may be the same while its code is not."""
    model = checkpoint.Model("m", NetworkConfig("classify", 3, 0, 0, slice_size=8), (0.0,) * 3, (255.0,) * 3)
    answers = []
    for activation in (nn.ReLU(), nn.SiLU()):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), activation, nn.Linear(4, 1)).eval()
        made = Compiler(model, network, None, Cache(tmp_path)).candidate(Recipe("onnx", "fp32"))
        assert made.parity < 1e-5
        answers.append(made.model)
    assert answers[0] != answers[1]


def test_data_of_one_class_cannot_judge(compiler: Compiler, chips_folder: Path, tmp_path: Path) -> None:
    samples = read(chips_folder)
    negatives = samples.take(np.flatnonzero(~samples.positive))
    assert Calibration.of(negatives, compiler.model).judged is None
    one_sided = replace(compiler, data=Calibration.of(negatives, compiler.model))
    with pytest.raises(HighwallError, match="both classes"):
        carry_out(one_sided, order(tmp_path / "a.highwall", {"max_drop": 0.5}))


def test_the_nearest_is_the_one_that_misses_by_the_least_share(compiler: Compiler, tmp_path: Path) -> None:
    smallest = len(compiler.candidate(recipe("onnx-int8w")).model) / 1024
    with pytest.raises(NoCandidate, match="nearest is onnx-int8w"):
        carry_out(compiler, order(tmp_path / "a.highwall", {"max_size_kib": smallest * 0.99}))


def test_what_one_board_makes_impossible_is_refused_before_any_board_is_built(
    home: Path, run_folder: Path, chips_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "contract.toml").write_text("[default]\nmax_p95_ms = 1000\n")
    words = ("--board", "host", "--board", "rpi4b", "--contract", home / "contract.toml", "--data", chips_folder)
    assert run("build", run_folder, *words, "--out", home / "two.highwall") == 1
    assert "max_p95_ms of rpi4b" in capsys.readouterr().err
    assert not list(home.glob("two*"))


def test_an_artifact_that_cannot_be_written_leaves_no_timings(compiler: Compiler, tmp_path: Path) -> None:
    out = tmp_path / "a.highwall"
    out.mkdir()
    with pytest.raises(HighwallError, match=r"a\.highwall"):
        carry_out(compiler, replace(order(out, {"max_macs": 1e9}), recipes=(recipe("onnx-int8w"),)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.highwall"]


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "cache")
    cache.put("k", {"model": b"x"})
    assert cache.get("k") is None


def test_memory_is_measured_in_a_process_of_its_own_and_stays_out_of_the_receipt(
    compiler: Compiler, tmp_path: Path
) -> None:
    out = tmp_path / "a.highwall"
    one = replace(order(out, {"max_peak_mib": 500.0}), recipes=(recipe("onnx-int8w"),))
    receipt = carry_out(compiler, one)
    timings = json.loads(out.with_suffix(".timings.json").read_text())
    assert 0 < timings["measured"]["onnx-int8w"]["peak_mib"] < 500
    assert "peak" not in json.dumps(receipt["candidates"])
    with pytest.raises(NoCandidate, match="peak memory is"):
        carry_out(compiler, replace(order(out, {"max_peak_mib": 0.001}), recipes=one.recipes))


def test_latency_is_refused_for_a_board_that_is_not_at_hand_and_measured_on_the_host(
    compiler: Compiler, tmp_path: Path
) -> None:
    with pytest.raises(HighwallError, match="max_p95_ms of rpi4b can be measured only on one"):
        carry_out(compiler, order(tmp_path / "a.highwall", {"max_p95_ms": 5.0}))
    one = replace(order(tmp_path / "b.highwall", {"max_p95_ms": 1e6}, "host"), recipes=(recipe("onnx-fp32"),))
    carry_out(compiler, one)
    assert json.loads((tmp_path / "b.timings.json").read_text())["measured"]["onnx-fp32"]["p95_ms"] > 0


def test_a_limit_on_accuracy_needs_labels(compiler: Compiler, tmp_path: Path) -> None:
    assert compiler.data is not None
    blind = replace(compiler, data=replace(compiler.data, judged=None))
    with pytest.raises(HighwallError, match="needs --data with labels"):
        carry_out(blind, order(tmp_path / "a.highwall", {"min_auc": 0.5}))


def test_a_model_that_crashes_its_process_is_reported_in_one_line(compiler: Compiler) -> None:
    with pytest.raises(HighwallError, match="does not run in a process of its own") as caught:
        footprint.measure("onnx", b"no model", compiler.spec)
    assert "\n" not in str(caught.value)


def test_weights_only_int8_computes_in_float_close_to_the_original(compiler: Compiler) -> None:
    whole, weights = (compiler.candidate(Recipe("onnx", precision)) for precision in ("fp32", "int8w"))
    assert len(weights.model) < len(whole.model)
    assert weights.parity < 0.05
    assert compiler.images is not None
    answers = [open_session("onnx", one.model).run(compiler.images[0]) for one in (whole, weights)]
    assert not np.array_equal(*answers)


def run(*words: object) -> int:
    return highwall.main([str(word) for word in words])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_two_boards_give_two_artifacts_one_table_and_rebuild_to_the_same_bytes(
    home: Path, run_folder: Path, chips_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "contract.toml").write_text("[default]\nmax_drop = 0.9\n[rpi5]\nmax_size_kib = 900\n")
    out = home / "both.highwall"
    words = ("--board", "rpi4b", "--board", "rpi5", "--contract", home / "contract.toml", "--data", chips_folder)
    assert run("build", run_folder, *words, "--out", out, "--runtime", "onnx", "--precision", "int8", "--fold", 1) == 0
    printed = capsys.readouterr().out
    assert "drop" in printed
    assert "both-rpi4b" in printed
    paths = [home / f"both-{board}.highwall" for board in ("rpi4b", "rpi5")]
    assert [artifact.read(path).manifest.board for path in paths] == ["rpi4b", "rpi5"]
    assert not out.exists()
    assert run("rebuild", paths[1], "--checkpoint", run_folder, "--data", chips_folder) == 0
    assert "identical" in capsys.readouterr().out


def test_rebuild_refuses_other_weights_and_other_data_and_sees_a_changed_receipt(
    home: Path, run_folder: Path, chips_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = home / "one.highwall"
    assert (
        run("build", run_folder, "--board", "host", "--recipe", "onnx-fp32", "--data", chips_folder, "--out", out) == 0
    )
    assert run("rebuild", out, "--checkpoint", "mine", "--data", chips_folder) == 1
    assert run("rebuild", out, "--checkpoint", run_folder) == 1
    assert run("rebuild", out, "--checkpoint", run_folder, "--data", chips_folder / "..") == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "--data" in errors[1]
    old = artifact.read(out)
    artifact.write(out, replace(old.manifest, threshold=0.111), old.model, old.golden, old.receipt)
    assert run("rebuild", out, "--checkpoint", run_folder, "--data", chips_folder, "--json") == 1
    assert json.loads(capsys.readouterr().out)["different"] == ["manifest.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--recipe", "onnx-int8-entropi"), "onnx-int8-entropy"),
        (("--recipe", "onnx-fp32", "--precision", "int8"), "contradict"),
        (("--recipe", "onnx-int8-mse"), "--calibration"),
        (("--contract", "nowhere.toml"), "nowhere.toml"),
        (("--sign", "nowhere.key"), "nowhere.key"),
        (("--model-version", "-1"), "counts up"),
    ],
)
def test_bad_words_are_refused_in_one_line(
    words: tuple[str, ...], message: str, home: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("build", run_folder, "--board", "rpi4b", "--out", home / "x.highwall", *words) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not (home / "x.highwall").exists()


def test_every_recipe_has_one_name_and_is_found_by_it() -> None:
    assert len({one.name for one in RECIPES.values()}) == len(RECIPES)
    for name, one in RECIPES.items():
        assert recipe(name) is one
        assert one.as_dict()["name"] == name
