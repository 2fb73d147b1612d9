"""`highwall paper`: every experiment runs, resumes, is shared, and is never mixed with another."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import highwall
from benchmarks.paper import data
from benchmarks.paper.budgets import BUDGETS, OPTIMIZERS
from benchmarks.paper.cells import Cell, Store, work
from benchmarks.paper.experiments import EXPERIMENTS, cells
from benchmarks.paper.render import Report
from benchmarks.paper.run import Bench
from targets.runtime.errors import HighwallError

SMOKE = BUDGETS["smoke"]
CELL = Cell("slices", "rnn", 18)


def command(out: Path, *arguments: str) -> list[str]:
    return ["paper", *arguments, "--budget", "smoke", "--out", str(out), "--weights", str(out / "weights")]


def process(root: Path, out: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "highwall", *command(out, *arguments)],
        cwd=root,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def written(out: Path) -> dict[str, int]:
    """Every result under `out` and when it was written."""
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*.json")}


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """All experiments on the smallest budget, run and rendered: the proof that each of them works."""
    out = tmp_path_factory.mktemp("paper")
    started = time.perf_counter()
    assert highwall.main(command(out, "all", "--render")) == 0
    print(f"all of `smoke` took {time.perf_counter() - started:.0f} s")
    return out


@pytest.fixture(scope="session")
def sources():
    return data.load(SMOKE, None)


@pytest.fixture
def bench(sources, tmp_path):
    """A bench of its own folder; its budget can be replaced."""

    def make(**changes):
        budget = replace(SMOKE, **changes)
        store = Store(tmp_path / "out", budget, sources.digests)
        return Bench(sources, budget, store, tmp_path / "weights", "in a test")

    return make


# --- every experiment ----------------------------------------------------------------------------------------------


def test_every_cell_of_every_experiment_is_done_or_says_why_it_cannot_be(smoke, sources):
    store = Store(smoke, SMOKE, sources.digests)
    folds = {task: data.folds_of(sources.of(task), SMOKE) for task in ("chips", "photographs")}
    found = {cell: store.read(cell) for cell in cells(list(EXPERIMENTS), SMOKE, folds)}
    assert {cell.network for cell, result in found.items() if result["status"] == "cannot"} == {"ssd300"}
    assert all(result["status"] in ("done", "cannot") for result in found.values())
    for cell, result in found.items():
        if result["status"] == "done" and cell.task != "patches":
            assert len(result["tried"]) == len(SMOKE.rates_of(cell.optimizer))
            assert result["lr"] in SMOKE.rates_of(cell.optimizer)
    for cell, result in found.items():
        if cell.task in ("chips", "slices") and result["status"] == "done":
            assert (result["samples"], result["searched"]) == (SMOKE.samples, 2 * SMOKE.search)


def test_the_document_names_every_network_experiment_and_reason(smoke):
    text = (smoke / "results.md").read_text()
    assert "The paper's own digits cannot be right" in text[:400]
    for heading in ("Table 3", "Table 4", "Table 5", "Figure 4", "Figure 5"):
        assert f"### {heading}" in text
    for name in ("AlexNet", "VGG-16", "VGG-19", "GoogLeNet", "ResNet-50", "SSD300", "DenseNet-121", "MobileNetV2"):
        assert text.count(f"| {name}") >= 3, name
    assert "| SSD300 | cannot |" in text
    assert "ssd300 cannot classify" in text
    assert "times 0.0625" in text  # a narrowed network is never passed off as the published one


def test_every_row_of_a_table_has_as_many_cells_as_its_head(smoke):
    rows = 0
    for table in re.findall(r"(?:^\|.*\n)+", (smoke / "results.md").read_text(), re.M):
        widths = {line.count("|") for line in table.splitlines()}
        assert len(widths) == 1, table
        rows += len(table.splitlines()) - 2
    assert rows == 12 + 9 + 18 + 11 + 4


@pytest.mark.parametrize("name", ["figure4", "figure5"])
def test_figures_are_pictures_small_enough_to_commit(smoke, name):
    path = smoke / "images" / f"paper-{name}.png"
    assert path.stat().st_size < 300_000
    with Image.open(path) as picture:
        assert min(picture.size) > 100
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 5


def test_tables_are_rendered_from_the_results_alone(smoke, tmp_path):
    out = tmp_path / "copy.md"
    report = Report(Store(smoke, SMOKE, None), None)
    assert out not in report.write(tmp_path / "other" / "copy.md")
    there = re.findall(r"^\|.*$", (smoke / "results.md").read_text(), re.M)
    assert re.findall(r"^\|.*$", (tmp_path / "other" / "copy.md").read_text(), re.M) == there


def test_results_are_printed_as_json_without_being_run_again(smoke, capsys):
    before = written(smoke)
    assert highwall.main(command(smoke, "table4", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert [set(one["scores"]) for one in found] == [{"0.5", "0.7", "0.8", "0.9"}] * 9
    assert all("f1" in one["scores"]["0.8"] and "kappa" in one["scores"]["0.5"] for one in found)
    assert written(smoke) == before


def test_our_latency_beside_our_own_is_about_one_and_costs_are_counted(smoke):
    (path,) = (smoke / "smoke" / "chips").glob("cracknet-48-*.json")
    found = json.loads(path.read_text())
    assert 0.2 < found["latency"]["ratio"] < 5  # the same network twice, on a machine that may be busy
    assert found["parameters"] > 1000
    assert found["macs"] > found["parameters"]


def test_timing_anew_changes_times_alone(smoke, tmp_path):
    shutil.copytree(smoke, tmp_path / "out")
    before = {path: json.loads(path.read_text()) for path in (tmp_path / "out").rglob("*.json")}
    assert highwall.main(command(tmp_path / "out", "figure4", "--retime")) == 0
    after = {path: json.loads(path.read_text()) for path in before}
    timed = [path for path in after if "timed" in after[path]]
    assert {path.parent.name for path in timed} == {"photographs", "patches", "slices"}
    for path, found in after.items():
        unlike = {key for key in found if found[key] != before[path].get(key)}
        assert unlike <= {"latency", "timed"}
        assert ("timed" in unlike) == (path in timed)


# --- resuming, sharing ----------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_where_it_was(root, tmp_path):
    run = process(root, tmp_path, "table4")
    patience = time.monotonic() + 120
    while not written(tmp_path):
        assert time.monotonic() < patience
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    before = written(tmp_path)
    assert 0 < len(before) < 9
    assert highwall.main(command(tmp_path, "table4")) == 0
    after = written(tmp_path)
    assert len(after) == 9
    assert {name: after[name] for name in before} == before
    assert not list(tmp_path.rglob("*.claim"))


def test_two_processes_share_the_cells_and_run_none_twice(root, tmp_path):
    both = [process(root, tmp_path, "table4") for _ in range(2)]
    ends = [run.communicate(timeout=240) for run in both]
    assert [run.returncode for run in both] == [0, 0], ends
    ran = [name for _, said in ends for name in re.findall(r"^- (slices/\S+):", said, re.M)]
    assert len(ran) == len(set(ran)) == 9
    assert ends[0][0] == ends[1][0]  # both report the whole table


def test_a_claim_keeps_others_out_until_its_process_is_gone(tmp_path):
    store = Store(tmp_path, SMOKE, {})
    ready, leave = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with store.claim(CELL) as mine:
            os.write(ready[1], b"1" if mine else b"0")
            os.read(leave[0], 1)  # killed here, so nothing is cleaned up
        os._exit(0)
    assert os.read(ready[0], 1) == b"1"
    with store.claim(CELL) as mine:
        assert not mine
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with store.claim(CELL) as mine:
        assert mine


def test_a_cell_waits_for_the_one_it_needs(tmp_path):
    store = Store(tmp_path, SMOKE, {"photographs": "x", "chips": "x"})
    patches = Cell("patches", "rnn", 48)
    order = []

    def run(cell):
        order.append(cell.task)
        return {"status": "cannot", "reason": "in a test"}

    work([patches, patches.needs], store, run, lambda _: None)
    assert order == ["slices", "patches"]


def test_a_network_whose_weights_are_gone_is_trained_again_to_the_same_maps(bench):
    maps = []
    here = bench()
    cell = Cell("patches", "cracknet", 48, fold=3)
    here.store.write(cell.needs, here.run(cell.needs))
    kept = here._weights(cell.needs)
    for gone in (False, True):
        assert kept.exists() is not gone  # a network that was slid is not kept
        maps.append(here.run(cell)["scores"])
    assert maps[0] == maps[1]


# --- what may not be mixed, what may not be hidden ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda there: there["budget"].update(samples=99), "samples 99"),
        (lambda there: there["budget"]["rates"].pop(), "rates"),
        (lambda there: there.update(data="0" * 64), "other data"),
        (lambda there: there.update(code=-1), "version of this code"),
        (lambda there: there["cell"].update(network="unet"), "network unet"),
        (lambda there: there.pop("budget"), "damaged"),
    ],
    ids=["budget", "grid", "data", "code", "cell", "damaged"],
)
def test_a_foreign_result_is_refused_by_name_before_anything_runs(smoke, tmp_path, capsys, change, says):
    (source,) = (smoke / "smoke" / "slices").glob("rnn-18-sgd-*.json")
    there = json.loads(source.read_text())
    change(there["identity"])
    planted = tmp_path / "smoke" / "slices" / source.name
    planted.parent.mkdir(parents=True)
    planted.write_text(json.dumps(there))
    assert highwall.main(command(tmp_path, "table4")) == 1
    said = capsys.readouterr().err
    assert says in said
    assert str(planted) in said
    assert said.count("\n") == 1
    assert len(written(tmp_path)) == 1


def test_results_of_two_data_sets_are_not_rendered_into_one_table(smoke, tmp_path):
    for source in (smoke / "smoke" / "slices").glob("rnn-18-*.json"):
        there = json.loads(source.read_text())
        there["identity"]["data"] = ("1" if "sgd" in source.name else "2") * 64
        (tmp_path / "smoke" / "slices").mkdir(parents=True, exist_ok=True)
        (tmp_path / "smoke" / "slices" / source.name).write_text(json.dumps(there))
    with pytest.raises(HighwallError, match="other data"):
        Report(Store(tmp_path, SMOKE, None), None).section("table4")


def test_a_diverging_run_is_recorded_and_shown(bench):
    here = bench(rates=tuple((name, (1e30, 1e31)) for name in OPTIMIZERS))
    cell = Cell("slices", "cracknet", 18, fold=3)
    result = here.run(cell)
    assert result["status"] == "diverged"
    here.store.write(cell, result)
    text = Report(here.store, None).section("table4")
    assert "| ours + adam | diverged |" in text
    assert "every learning rate of 1e+30, 1e+31 diverged" in text


def test_a_rate_that_diverges_in_the_search_is_recorded_and_another_one_taken(bench):
    result = bench(rates=(("adam", (1e30, 1e-3)),)).run(replace(CELL, network="cracknet", fold=3))
    assert result["status"] == "done"
    assert [one["score"] is None for one in result["tried"]] == [True, False]
    assert result["lr"] == 1e-3


@pytest.mark.parametrize(("network", "size"), [("vgg16", 3), ("vgg19", 6), ("unet", 0)])
def test_a_size_that_a_network_cannot_take_is_a_result(bench, network, size):
    result = bench().run(Cell("slices", network, size, fold=3))
    assert result["status"] == "cannot"
    assert "give at least" in result["reason"] or "at least 1" in result["reason"]


def test_other_parts_of_the_document_stay(smoke, tmp_path):
    document = tmp_path / "results.md"
    report = Report(Store(smoke, SMOKE, None), None)
    document.write_text("# Results\n\nBefore.\n")
    report.write(document)
    document.write_text(document.read_text() + "\nAfter.\n")
    once = document.read_text()
    report.write(document)
    assert document.read_text() == once
    assert once.startswith("# Results\n\nBefore.\n")
    assert once.endswith("\nAfter.\n")
    document.write_text(once.replace("<!-- paper: end -->", ""))
    with pytest.raises(HighwallError, match="one of the two marks"):
        report.write(document)


def test_a_table_of_which_nothing_is_done_says_so(tmp_path, capsys):
    assert highwall.main(command(tmp_path, "table3", "--no-run")) == 0
    assert capsys.readouterr().out.count("| not run yet |") == 12


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--threads", "0"], "--threads"),
        (["--retime", "--no-run"], "--retime"),
        (["--batch", "1"], "--batch 1"),
        (["--batch", "9"], "the 8 samples"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, capsys, arguments, says):
    assert highwall.main(command(tmp_path, "table4", *arguments)) == 1
    assert says in capsys.readouterr().err


def test_real_budgets_ask_for_real_data(tmp_path, capsys):
    arguments = ["paper", "table3", "--budget", "cpu", "--data", str(tmp_path / "none"), "--out", str(tmp_path)]
    assert highwall.main(arguments) == 1
    assert "mine_chips" in capsys.readouterr().err
