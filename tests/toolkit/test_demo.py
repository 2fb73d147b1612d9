"""The main job from the shipped weights, and what may be said of those weights."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import highwall
from targets.runtime import artifact
from targets.runtime.errors import HighwallError
from toolkit import checkpoint
from toolkit.cost import measure
from toolkit.models import example, weights

SHIPPED = ("mine", "crack")


def test_demo_builds_verifies_and_draws_without_the_real_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HIGHWALL_DATA", str(tmp_path / "nowhere"))
    out = tmp_path / "demo"
    assert highwall.main(["demo", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") <= 14
    for word in ("pass", "MACs", "kB", "next"):
        assert word in said
    built = artifact.read(out / "mine.highwall")
    assert (built.manifest.board, built.manifest.recipe["name"]) == ("rpi4b", "onnx-int8-minmax")
    assert json.loads((out / "receipt.json").read_text()) == built.receipt
    assert built.receipt["accuracy"]["int8"]["n"] > 20
    assert built.receipt["accuracy"]["fp32"]["auc"] > 0.5
    picture = np.asarray(Image.open(out / "predictions.png"))
    assert picture.std() > 10


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_small_fit_their_preset_and_have_a_card(name: str) -> None:
    path = weights(name)
    assert path.stat().st_size < 1_000_000
    model, network = checkpoint.load(path)
    assert model.name == name
    assert measure(network, *example(model)).macs <= {"mine": 15_000_000, "crack": 1_000_000_000}[name]
    card = path.with_suffix(".md").read_text()
    for word in ("credit", "fold", "Limits"):
        assert word in card
    assert str(model.threshold) in card


def test_unknown_weights_name_the_known_ones() -> None:
    with pytest.raises(HighwallError, match="mine or crack"):
        weights("quarry")
