"""A trial is judged on a fold it did not learn from, and the fold set aside has no part in it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import trials
from targets.runtime.errors import HighwallError
from toolkit.data.folder import read
from toolkit.data.samples import Samples
from toolkit.data.synthetic import mine_chips
from toolkit.data.write import write
from toolkit.runs import Request, plan


@pytest.fixture(scope="module")
def chips() -> Samples:
    return mine_chips(60, size=16, seed=4)


def run(folder: Path, data: Path, *options: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    where = ["--runs", str(folder / "runs"), "--results", str(folder / "results")]
    fixed = ["--task", "classify", "--network", "rnn", "--multiplier", "0.125", "--epochs", "1", "--aside", "3"]
    monkeypatch.setattr(sys, "argv", ["trials", "idea", "--data", str(data), *fixed, *where, *options])
    trials.main()
    (found,) = (folder / "results").glob("*.json")
    return dict(json.loads(found.read_text()))


def test_what_lies_in_the_fold_aside_changes_nothing(
    chips: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chips.folds is not None
    aside = (chips.folds == 3).reshape(-1, 1, 1, 1)
    other = replace(chips, images=np.where(aside, 255 - chips.images, chips.images))
    results = []
    for name, samples in (("one", chips), ("two", other)):
        write(samples, tmp_path / name / "data")
        found = run(tmp_path / name, tmp_path / name / "data", monkeypatch=monkeypatch)
        results.append({key: found[key] for key in ("shipped", "best", "loss")})
    assert results[0] == results[1]
    assert results[0]["shipped"]["n"] == (chips.folds == 1).sum()
    assert "| idea | classify | 3 | 1 |" in capsys.readouterr().out


def test_a_trial_that_is_done_is_not_run_again_and_never_under_other_settings(
    chips: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(chips, tmp_path / "data")
    first = run(tmp_path, tmp_path / "data", monkeypatch=monkeypatch)
    monkeypatch.setattr(trials, "trial", lambda *_: pytest.fail("ran again"))
    assert run(tmp_path, tmp_path / "data", monkeypatch=monkeypatch) == first
    with pytest.raises(HighwallError, match="other settings"):
        run(tmp_path, tmp_path / "data", "--lr", "0.01", monkeypatch=monkeypatch)


def test_a_trial_taken_up_again_finds_the_same_and_does_not_say_how_long_it_took(
    chips: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(chips, tmp_path / "data")
    first = run(tmp_path, tmp_path / "data", "--optimizer", "muon", monkeypatch=monkeypatch)
    assert first["seconds"] is not None
    assert "--optimizer muon" in str(first["command"])
    (tmp_path / "results" / "idea-classify-3-1.json").unlink()
    again = run(tmp_path, tmp_path / "data", "--optimizer", "muon", monkeypatch=monkeypatch)
    assert again == first | {"seconds": None}
    assert capsys.readouterr().out.strip().endswith("| - |")


def test_a_trial_goes_on_from_what_was_learned_elsewhere_and_never_from_what_knows_the_data(
    chips: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(chips, tmp_path / "data")
    write(mine_chips(60, size=16, seed=5), tmp_path / "elsewhere")
    fresh = run(tmp_path / "fresh", tmp_path / "data", monkeypatch=monkeypatch)
    for name in ("elsewhere", "data"):
        request = Request("classify", tmp_path / f"on-{name}", architecture="rnn", multiplier=0.125, epochs=1)
        plan(read(tmp_path / name), request).run(lambda _: None)
    begun = run(tmp_path, tmp_path / "data", "--from", str(tmp_path / "on-elsewhere"), monkeypatch=monkeypatch)
    assert begun["loss"] != fresh["loss"]
    assert "--from RUN" in str(begun["command"])
    settings = begun["settings"]
    assert isinstance(settings, dict)
    assert settings["pretrained"]
    with pytest.raises(HighwallError, match="would flatter"):
        run(tmp_path, tmp_path / "data", "--from", str(tmp_path / "on-data"), monkeypatch=monkeypatch)
