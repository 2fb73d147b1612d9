"""The sensor benchmarks: leak-free parts, a linear model that is the textbook's, results that say how they came."""

import csv
import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import seismic, sensors
from toolkit.data.slopes import slopes
from toolkit.runs import Request

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "seismic"
HEAD = "seismic seismoacoustic shift genergy gpuls ghazard nbumps nbumps6 energy maxenergy class".split()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """1,000 shifts of a made-up mine: bumps follow days of high energy, `class` says what the next shift brings."""
    rng = np.random.default_rng(3)
    state, states, bumps = 0.0, [], []
    for _ in range(1001):
        state = 0.8 * state + rng.normal()
        states.append(state)
        bumps.append(rng.random() < 1 / (1 + np.exp(2.5 - 1.5 * state)))
    with (tmp_path / seismic.FILE).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(HEAD)
        for i in range(1000):
            energy = 20_000 if bumps[i] else 0
            word = "b" if states[i] > 1 else "a"
            measured = round(float(np.exp(10 + states[i])))
            table.writerow(
                [
                    word,
                    "abc"[i % 3],
                    "NW"[i % 2],
                    measured,
                    i % 97,
                    word,
                    int(bumps[i]),
                    0,
                    energy,
                    energy,
                    int(bumps[i + 1]),
                ]
            )
    return tmp_path


def test_the_seismic_benchmark_runs_resists_leaks_and_keeps_its_result(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(seismic, "STEPS", (1, 5))
    words = ["seismic", "--data", str(mine), "--seeds", "2", "--epochs", "2", "--results", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    seismic.main()
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "seismic.json").read_text())
    assert result["class_told_by_next_shift"] == 1.0
    assert "nbumps6" in result["left_out"] and "class" in result["left_out"]
    assert not {"nbumps6", "class"} & set(result["columns"])
    parts = list(result["parts"].values())
    for earlier, later in pairwise(parts):
        assert later["from"] - 5 + 1 > earlier["to"] + 1  # no window holds the shift that a label before tells of
    assert result["scores"]["linear"]["auc"] > 0.6  # there is something to learn
    assert result["scores"]["rnn"]["runs"] == 2
    assert {f"column {name}" for name in seismic.ASSESSMENTS} <= set(result["scores"])
    assert "| linear |" in shown and "| rnn |" in shown
    monkeypatch.setattr(sys, "argv", ["seismic", "--table", "--json", "--results", str(tmp_path / "out")])
    seismic.main()
    assert json.loads(capsys.readouterr().out) == result


def test_settings_are_chosen_without_a_look_at_what_judges(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seismic, "STEPS", (1, 3))
    series = seismic.read(mine)
    before = seismic.run(series, seeds=1, epochs=2)
    rng = np.random.default_rng(0)
    judged = before["parts"]["judge"]["from"]
    series.labels[judged:] = rng.permutation(series.labels[judged:])
    after = seismic.run(series, seeds=1, epochs=2)
    assert after["chosen"] == before["chosen"]
    assert after["best_column"] == before["best_column"]
    assert after["scores"] != before["scores"]


def test_the_linear_model_is_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(301, 3, 2)).astype(np.float32)
    labels = (inputs[:, :, 0].sum(1) + rng.normal(size=301) > 1.5).astype(np.uint8)
    penalty = 0.03
    ours = seismic.linear_answers(seismic.linear(torch.from_numpy(inputs), labels, penalty), torch.from_numpy(inputs))
    # scikit-learn adds losses up where ours takes their mean.
    theirs = linear_model.LogisticRegression(
        C=1 / (penalty * len(labels)), class_weight="balanced", tol=1e-8, max_iter=500
    )
    flat = inputs.reshape(301, -1)
    assert ours == pytest.approx(theirs.fit(flat, labels).predict_proba(flat)[:, 1], abs=1e-3)


def test_a_column_that_falls_before_a_hazard_is_read_the_other_way() -> None:
    values = np.zeros((50, 2, 2), np.float32)
    labels = (np.arange(50) % 5 == 0).astype(np.uint8)
    values[:, -1, 1] = -1.0 * labels
    found = seismic.Windows(values, labels, np.arange(50), ("still", "falling"))
    assert seismic.best_column(found) == ("falling", -1.0)


@pytest.mark.skipif(not (SHARED / seismic.FILE).is_file(), reason="the real shifts are not beside the repository")
def test_the_real_shifts_are_in_time_order() -> None:
    assert seismic.told_by_next(SHARED) == 1.0
    series = seismic.read(SHARED)
    assert int(series.labels.sum()) == 170


def test_the_slopes_benchmark_trains_builds_verifies_and_predicts(tmp_path: Path) -> None:
    request = Request("classify", tmp_path, slice_size=17, width=8, growth=4, held="0", epochs=1, batch=16)
    result = sensors.run(slopes(60, 17), request, seeds=1)
    assert {len(runs) for runs in result["scores"].values()} == {1}
    assert {runs[0]["n"] for runs in result["scores"].values()} == {12}
    found = result["artifact"]
    assert found["verified"] and found["golden"]["passed"] and found["scores"]["n"] == 12
    assert len(set(found["one_hazardous_slope"].values())) == 2  # the readings are listened to
    text = sensors.table(result)
    for name in ("image and sensors", "image alone", "sensors alone, linear", "int8"):
        assert name in text
    again = sensors.run(slopes(60, 17), request, seeds=1)  # every run is there already
    assert again["scores"] == result["scores"]
