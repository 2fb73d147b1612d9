"""A fold's margins come from the network that held it out, and from no other."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import margins
from targets.runtime.errors import HighwallError
from toolkit.data.synthetic import crack_images
from toolkit.data.write import write
from toolkit.evaluate import evaluate
from toolkit.runs import Request, plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("margins")
    photographs = crack_images(20, size=48, seed=3)
    write(photographs, folder / "data")
    request = Request("segment", folder / "runs" / "crack-fold1", slice_size=48, epochs=1, width=8, growth=8, held="1")
    plan(photographs, request).run(lambda _: None)
    return folder


def run(folder: Path, *options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["margins", str(folder / "runs"), "--data", str(folder / "data"), *options]
    monkeypatch.setattr(sys, "argv", words)
    margins.main()


def test_they_are_of_the_fold_held_out_and_begin_with_plain_f1(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "margins.json"
    run(folder, "--folds", "1", "--json", str(out), monkeypatch=monkeypatch)
    table = capsys.readouterr().out
    found = json.loads(out.read_text())
    photographs = crack_images(20, size=48, seed=3)
    assert photographs.folds is not None
    held = photographs.take(np.flatnonzero(photographs.folds.astype(np.str_) == "1"))
    plain = evaluate(folder / "runs" / "crack-fold1", held, None)
    parts = found["folds"]["1"]["margins"]
    assert parts[0]["f1"] == pytest.approx(plain.f1, abs=1e-3)
    f1 = [part["f1"] for part in parts]
    assert f1 == sorted(f1)
    assert f"| 1 | {f1[0]:.3f} |" in table
    assert str(tmp_path) not in found["command"]


def test_a_run_that_saw_the_fold_is_refused_and_nothing_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "runs" / "crack-fold2").mkdir(exist_ok=True)
    seen = (folder / "runs" / "crack-fold1" / "checkpoint.safetensors").read_bytes()
    (folder / "runs" / "crack-fold2" / "checkpoint.safetensors").write_bytes(seen)
    for fold, message in (("2", "did not hold out fold 2"), ("3", "crack-fold3")):
        with pytest.raises(HighwallError, match=message):
            run(folder, "--folds", fold, "--json", str(tmp_path / "x.json"), monkeypatch=monkeypatch)
    assert not list(tmp_path.iterdir())
