"""Each fold is scored by a network that never saw it, and networks are compared on the same folds alone."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import folds
from targets.runtime.errors import HighwallError
from toolkit.data.folder import read
from toolkit.data.synthetic import mine_chips
from toolkit.data.write import write
from toolkit.runs import Request, plan


def result(network: str, fold: int, auc: float, optimizer: str = "adam", **more: Any) -> dict[str, Any]:
    request = Request("classify", Path("out"), architecture=network, held=str(fold), optimizer=optimizer, **more)
    scores = dict.fromkeys(folds.COLUMNS, 0.5) | {"auc": auc}
    return {"fold": fold, "request": folds.settings(request), "fp32": scores}


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")][
        2:
    ]


def test_networks_are_compared_on_the_folds_asked_for_best_first() -> None:
    results = [result("rnn", 0, 0.6), result("rnn", 1, 0.9), result("rnn", 4, 0.0)]
    results += [result("cracknet", fold, auc) for fold, auc in ((0, 0.7), (1, 0.9), (2, 0.1))]
    table = rows(folds.compared(results, [0, 1]))
    assert [(row[0], row[6], row[7]) for row in table] == [("cracknet", "0.800", "0.700"), ("rnn", "0.750", "0.600")]
    assert table[0][4] == "14.8", "MACs of the preset's slice"


def test_a_network_trained_in_two_ways_has_two_rows() -> None:
    table = folds.compared([result("rnn", 0, 0.6), result("rnn", 0, 0.7, optimizer="muon")], [0])
    assert [row[2] for row in rows(table)] == ["muon", "adam"]


@pytest.mark.parametrize(
    ("setting", "value"), [("epochs", 24), ("lr", 0.1), ("loss", "focal"), ("width", 8), ("growth", 4), ("seed", 3)]
)
def test_ways_that_no_column_tells_apart_are_told_in_words(setting: str, value: object) -> None:
    usual = folds.settings(Request("classify", Path("out")))[setting]
    results = [result("cracknet", 0, 0.6), result("cracknet", 1, 0.6)]
    results += [result("cracknet", fold, 0.7, **{setting: value}) for fold in (0, 1)]
    del results[0]["request"]["harsh"]  # as before there were harsh images
    table = rows(folds.compared(results, [0, 1]))
    assert [row[3] for row in table] == [f"plain, {setting} {value}", f"plain, {setting} {usual}"]
    assert [row[6] for row in table] == ["0.700", "0.600"]


def test_a_table_of_nothing_and_data_without_folds_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["folds", "--task", "classify", "--results", str(tmp_path), "--table"])
    with pytest.raises(HighwallError, match="holds no fold of mine"):
        folds.main()
    write(mine_chips(20, size=16, seed=4), tmp_path / "data")
    (tmp_path / "data" / "folds.csv").unlink()
    where = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path), "--results", str(tmp_path), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["folds", "--task", "classify", *where])
    with pytest.raises(HighwallError, match=r"add folds\.csv"):
        folds.main()


def test_a_network_that_lacks_a_fold_is_named_and_narrows_no_other() -> None:
    results = [result("rnn", 0, 0.6), result("cracknet", 0, 0.7), result("cracknet", 1, 0.9)]
    table = folds.compared(results, [0, 1])
    assert [(row[0], row[6]) for row in rows(table)] == [("cracknet", "0.800")]
    assert table.endswith("Not on all of these folds:\nrnn 1 adam, plain: folds 0")
    assert rows(folds.compared([], [0])) == []


def test_a_fold_that_is_done_is_not_run_again_and_never_under_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chips = mine_chips(60, size=16, seed=4)
    write(chips, tmp_path / "data")
    where = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    fixed = [
        "folds",
        "--task",
        "classify",
        "--network",
        "rnn",
        "--multiplier",
        "0.125",
        "--folds",
        "2",
        "--threads",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", [*fixed, *where, "--epochs", "1"])
    folds.main()
    found = json.loads((tmp_path / "results" / "rnn-fold2.json").read_text())
    assert chips.folds is not None
    assert found["fp32"]["n"] == found["int8"]["n"] == (chips.folds == 2).sum()
    assert "| 2 | fp32 |" in capsys.readouterr().out
    monkeypatch.setattr(folds, "run_fold", lambda *_: pytest.fail("ran again"))
    folds.main()
    monkeypatch.setattr(sys, "argv", [*fixed, *where, "--epochs", "2"])
    with pytest.raises(HighwallError, match="holds other settings or data"):
        folds.main()


def test_folds_go_on_from_what_was_learned_elsewhere_say_so_and_never_from_what_knows_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in ((4, "data"), (5, "elsewhere")):
        write(mine_chips(60, size=16, seed=seed), tmp_path / name)
        request = Request("classify", tmp_path / f"on-{name}", architecture="rnn", multiplier=0.125, epochs=1)
        plan(read(tmp_path / name), request).run(lambda _: None)

    def run(start: str, *options: str) -> None:
        network = ["--network", "rnn", "--multiplier", "0.125", "--epochs", "1"]
        where = ["--data", str(tmp_path / "data"), "--from", str(tmp_path / start)]
        fixed = ["folds", "--task", "classify", *network, "--folds", "2", "--threads", "1"]
        monkeypatch.setattr(sys, "argv", [*fixed, *where, *options])
        folds.main()

    first = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "first")]
    run("on-elsewhere", *first)
    found = json.loads((tmp_path / "first" / "rnn-fold2.json").read_text())
    assert "--from RUN" in found["command"]
    run("runs", "--refit", "1", "--runs", str(tmp_path / "refit"), "--results", str(tmp_path / "second"))
    refitted = json.loads((tmp_path / "second" / "rnn-fold2.json").read_text())
    assert "--from DIR" in refitted["command"]
    assert refitted["pretrained"] == found["pretrained"]
    assert [row[3] for row in rows(folds.compared([found, refitted], [2]))].count("pretrained") == 1
    run("refit", "--refit", "1", "--runs", str(tmp_path / "again"), "--results", str(tmp_path / "third"))
    again = json.loads((tmp_path / "third" / "rnn-fold2.json").read_text())
    assert again["pretrained"] == found["pretrained"], "through a refit of a refit too"
    shutil.copytree(tmp_path / "on-data", tmp_path / "named" / "rnn-fold2")
    for start in ("on-data", "named"):  # a run's name proves nothing
        with pytest.raises(HighwallError, match="would flatter"):
            run(start, "--runs", str(tmp_path / "none"), "--results", str(tmp_path / "fourth"))
    monkeypatch.setattr(folds, "pretrained", lambda *_: "another")
    with pytest.raises(HighwallError, match="holds other settings or data"):
        run("on-elsewhere", *first)
