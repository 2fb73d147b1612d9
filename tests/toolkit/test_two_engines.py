"""One search over both engines, through the front door: the same network, the same contract, one winner."""

import json
from pathlib import Path

import pytest
from short import exported, pictures, short
from torch import nn

import highwall
from targets.runtime import artifact
from targets.runtime.engine import open_session
from targets.runtime.golden import check
from toolkit.data.synthetic import mine_chips
from toolkit.data.write import write
from toolkit.quantize import tflite
from toolkit.quantize.recipes import recipe


def network() -> nn.Module:
    """Grey blobs or not; small, because each converter looks at every layer."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, 2, bias=True), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)),
    )


def test_both_engines_are_searched_and_the_winner_runs_in_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(mine_chips(40, size=24, seed=3), tmp_path / "chips")
    (tmp_path / "contract.toml").write_text("[rpi5]\nmax_drop = 1\nmax_size_kib = 500\n")
    out = tmp_path / "both.highwall"
    words = ["build", f"{__name__}:network", "--size", "24", "--board", "rpi5", "--data", str(tmp_path / "chips")]
    words += ["--contract", str(tmp_path / "contract.toml"), "--out", str(out), "--json"]
    assert highwall.main(words) == 0
    (receipt,) = json.loads(capsys.readouterr().out)
    found = artifact.read(out)
    assert json.loads(json.dumps(receipt)) == found.receipt
    engines = {row["recipe"].partition("-")[0] for row in receipt["candidates"] if "model_bytes" in row}
    assert engines == {"onnx", "tflite"}
    assert receipt["candidates"][0]["recipe"] == found.manifest.recipe["name"]
    assert check(found, open_session(found.manifest.runtime, found.model)).passed


def test_a_mixed_tflite_model_keeps_the_named_layers_in_float() -> None:
    model, _ = short("segment")
    source = exported("segment")
    seen = tflite.observe(source, ({"image": image[None]} for image in pictures(model, 4)))
    first = tflite.layers(source)[:2]
    whole = tflite.quantize(source, recipe("tflite-int8-mse"), seen)
    mixed = tflite.quantize(source, recipe("tflite-mixed-mse"), seen, first)
    assert len(whole) < len(mixed)
