"""The robustness table: the same figures however often it was killed, and no figure of another model or data."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import robustness
from targets.runtime.errors import HighwallError
from toolkit import checkpoint
from toolkit.build import build
from toolkit.calibration import Calibration
from toolkit.data.corrupt import corrupted
from toolkit.data.folder import read
from toolkit.evaluate import evaluate
from toolkit.quantize.recipes import plain


@pytest.fixture(scope="module")
def artifact(chips_folder: Path, run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifact") / "small-int8.highwall"
    model, network = checkpoint.load(run_folder)
    data = Calibration.of(read(chips_folder), model)
    build(model, network, board="rpi4b", out=out, recipe=plain("onnx", "int8"), data=data, say=lambda _: None)
    return out


def measure(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["robustness", *(str(word) for word in words)])
    robustness.main()


def test_every_condition_is_scored_for_checkpoint_and_artifact_and_a_killed_run_goes_on(
    chips_folder: Path,
    run_folder: Path,
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = tmp_path / "kept.json"
    words = (run_folder, artifact, "--data", chips_folder, "--limit", 24, "--json", kept)
    written = robustness.write_text

    class Killed(Exception):
        pass

    def die_late(path: Path, text: str) -> None:
        written(path, text)
        if text.count('"f1"') == 17:
            raise Killed

    monkeypatch.setattr(robustness, "write_text", die_late)
    with pytest.raises(Killed):
        measure(monkeypatch, *words)
    monkeypatch.setattr(robustness, "write_text", written)
    capsys.readouterr()
    first = json.loads(kept.read_text())
    measure(monkeypatch, *words, "--picture", tmp_path / "seen.png", "--sheet", tmp_path / "sheet.png")
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(kept.read_text())
    names = robustness.conditions("uint8")
    assert [list(result["scores"][model]) for model in ("small", "small-int8")] == [names, names]
    assert len(names) == 28
    assert all(
        result["scores"][model][row] == first["scores"][model][row]
        for model in first["scores"]
        for row in first["scores"][model]
    )
    assert lines[0].startswith("| corruption | small, F1 | small, recall")
    assert [line.split(" | ")[0][2:] for line in lines[2:30]] == names
    samples = read(chips_folder)
    held = samples.take(robustness.draw(samples.positive, 24))
    for path, model in ((run_folder, "small"), (artifact, "small-int8")):
        by_hand = evaluate(path, corrupted(held, "haze", 2), None)
        assert result["scores"][model]["haze 2"]["f1"] == pytest.approx(by_hand.f1, abs=1e-6)
        assert result["scores"][model]["haze 2"]["auc"] == pytest.approx(by_hand.auc, abs=1e-6)
        low = min(names, key=lambda row: (result["scores"][model][row]["f1"], row))
        assert f"Worst of {model}: {low}, F1 {result['scores'][model][low]['f1']:.3f}" in "\n".join(lines[30:])
    for drawn in ("seen.png", "sheet.png"):
        with Image.open(tmp_path / drawn) as picture:
            assert len(picture.getcolors(1 << 22) or []) > 4


def test_figures_of_other_data_or_of_another_model_are_never_mixed(
    chips_folder: Path, run_folder: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.json"
    samples = read(chips_folder)
    path = run_folder / "checkpoint.safetensors"
    kept.write_text(json.dumps(robustness.begin(samples, {"small": path}, None, None, None)))
    words = (run_folder, "--data", chips_folder, "--json", kept)
    with pytest.raises(HighwallError, match=r"another data, limit, n; choose another --json"):
        measure(monkeypatch, *words, "--limit", 20)
    renamed = tmp_path / "small.highwall"
    renamed.write_bytes(artifact.read_bytes())
    with pytest.raises(HighwallError, match="holds another small"):
        measure(monkeypatch, renamed, *words[1:])
    with pytest.raises(HighwallError, match="two models are called small"):
        measure(monkeypatch, renamed, *words)
    with pytest.raises(HighwallError, match="no model at"):
        measure(monkeypatch, tmp_path / "none.highwall", *words[1:])


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"settings": {}, "models": [], "scores": {}}', "null", "\udcff"]
)
def test_a_file_that_is_no_result_is_refused_in_one_line(
    chips_folder: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text(text, errors="surrogateescape")
    with pytest.raises(HighwallError, match="is no result of this command"):
        measure(monkeypatch, run_folder, "--data", chips_folder, "--json", kept)


def test_jpeg_is_no_condition_of_satellite_numbers() -> None:
    assert len(robustness.conditions("uint16")) == 25
    assert not [row for row in robustness.conditions("uint16") if "jpeg" in row]
