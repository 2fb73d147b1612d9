"""The segment task by its verbs alone: data, training, scores, artifact, verification, pictures."""

import json
from pathlib import Path

import pytest
from PIL import Image

import highwall


def run(*words: object) -> int:
    return highwall.main([str(word) for word in words])


def test_cracks_from_generated_photographs_to_a_picture_of_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out, made = tmp_path / "data", tmp_path / "run", tmp_path / "crack.highwall"
    assert run("generate", "--task", "segment", "--out", data, "--count", 12, "--size", 64, "--seed", 3) == 0
    small = ("--width", 8, "--growth", 4, "--batch", 4)
    assert run("train", "--data", data, "--task", "segment", "--out", out, "--epochs", 2, "--fold", 1, *small) == 0
    capsys.readouterr()
    assert run("evaluate", out, "--data", data, "--fold", 1, "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["n"] % (64 * 64) == 0
    assert run("build", out, "--board", "rpi5", "--calibration", data, "--out", made) == 0
    capsys.readouterr()
    assert run("verify", made, "--json") == 0
    assert json.loads(capsys.readouterr().out)["golden"]["passed"]
    assert run("evaluate", made, "--data", data, "--fold", 1, "--json") == 0
    assert json.loads(capsys.readouterr().out)["n"] == scores["n"]
    image = next((data / "images").iterdir())
    larger = tmp_path / "larger.png"
    Image.open(image).resize((100, 77)).save(larger)
    assert run("predict", made, larger, "--json", "--overlay", tmp_path / "seen") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert {"image", "probability", "label", "positive", "threshold", "pixels", "boxes"} <= set(found)
    assert (tmp_path / "seen" / "larger.overlay.png").exists()
