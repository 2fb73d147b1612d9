"""The verbs boards, inspect, verify and predict, from their arguments to their exit code."""

import argparse
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import highwall
from targets import commands
from targets.report import prediction_line
from targets.runtime import artifact
from targets.runtime.artifact import InputSpec
from targets.runtime.errors import HighwallError
from targets.runtime.predict import Prediction, Tile


def call(verb, *words):
    parser = argparse.ArgumentParser(prog=verb)
    getattr(commands, f"{verb}_arguments")(parser)
    return getattr(commands, verb)(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def classify_file(tmp_path, classifier):
    return classifier.write(tmp_path / "classify.highwall")


def test_a_tile_on_the_threshold_is_counted_as_it_was_judged():
    level = 0.1  # as float32 it is more than 0.1, as 0.7 it would be less
    tiles = tuple(Tile(0, col, 8, 8, float(np.float32(each))) for col, each in enumerate((0.7, 0.7)))
    on = Prediction(tiles[0].probability, True, 0.7, tiles=tiles)
    assert prediction_line(Path("a.png"), "mine", on).endswith("2 of 2 tiles")
    below = (replace(tiles[0], probability=level), tiles[1])  # the double 0.1 lies below the float32
    assert prediction_line(Path("a.png"), "mine", replace(on, threshold=level, tiles=below)).endswith("1 of 2 tiles")


@pytest.fixture
def segment_file(tmp_path, make_parts):
    return make_parts("segment", InputSpec(13, 9, 3, "uint8")).write(tmp_path / "segment.highwall")


def picture(path, height, width, value, spot=None):
    image = np.full((height, width, 3), value, np.uint8)
    if spot is not None:
        image[2:5, 3:8] = spot
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def test_importing_the_verbs_loads_no_numpy(root):
    code = "import sys, targets.commands; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_boards_prints_a_table_and_json(capsys):
    assert call("boards") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert len({line.index(cell) for line, cell in zip(lines[1:5], ["1400", "1800", "2400", "1000"], strict=True)}) == 1
    assert call("boards", "--json") == 0
    found = {board["name"]: board for board in json.loads(capsys.readouterr().out)}
    assert found["rpi4b"]["features"] == {"dot_product": False, "fp16": False, "lse": False}
    assert found["rpi5"]["ceilings"]["int8_gops"] == 614


def test_inspect_tells_what_the_file_holds(classify_file, classifier, capsys):
    assert call("inspect", classify_file, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["manifest"]["input"]["bands"] == 3
    assert found["receipt"] == classifier.receipt
    model = found["members"]["model.onnx"]
    assert model == {"bytes": len(classifier.model), "sha256": hashlib.sha256(classifier.model).hexdigest()}
    assert set(found["members"]) == {"manifest.json", "model.onnx", "golden.npz", "receipt.json", "digests.json"}
    assert call("inspect", classify_file) == 0
    text = capsys.readouterr().out
    for word in ("tiny", "classify 7 x 5 x 3 uint8", "sound, crack", "rpi4b", "2 seeded, 1 real", "model.onnx"):
        assert word in text


def test_verify_passes_a_sound_artifact(classify_file, capsys):
    assert call("verify", classify_file, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is found["digests_ok"] is True
    assert found["golden"] == {"n": 3, "max_difference": 0.0, "tolerance": 1e-6, "passed": True}
    assert found["file"] == str(classify_file)
    assert call("verify", classify_file) == 0
    assert "verified: 3 golden vectors in onnx, largest difference 0, tolerance 1e-06" in capsys.readouterr().out


@pytest.mark.parametrize(("gain", "shown"), [(1.5, "0.2"), (float("nan"), "not a number")])
def test_verify_fails_a_model_that_answers_otherwise(tmp_path, classifier, make_model, capsys, gain, shown):
    path = tmp_path / "swapped.highwall"
    swapped = make_model(classifier.spec, "classify", gain=gain)
    artifact.write(path, classifier.manifest, swapped, classifier.golden, classifier.receipt)
    assert call("verify", path) == 1
    text = capsys.readouterr().out
    assert "FAILED" in text
    assert shown in text
    assert call("verify", path, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["digests_ok"], found["golden"]["passed"]) == (False, True, False)


def test_verify_of_a_damaged_or_missing_file_still_answers_json(classify_file, tmp_path, capsys):
    data = bytearray(classify_file.read_bytes())
    data[len(data) // 3] ^= 1
    classify_file.write_bytes(data)
    for path in (classify_file, tmp_path / "no.highwall"):
        assert call("verify", path, "--json") == 1
        found = json.loads(capsys.readouterr().out)
        assert found["ok"] is found["digests_ok"] is False
        assert str(path) in found["error"]
        with pytest.raises(HighwallError):
            call("verify", path)


def test_verify_of_a_model_no_engine_loads_is_a_failure(tmp_path, classifier, capsys):
    path = tmp_path / "junk.highwall"
    artifact.write(path, classifier.manifest, b"junk", classifier.golden, classifier.receipt)
    assert call("verify", path, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["digests_ok"]) == (False, True)
    assert "refuses the model" in found["error"]


def test_predict_classifies_each_image_on_a_line(classify_file, tmp_path, capsys):
    dark, wide = picture(tmp_path / "dark.png", 7, 5, 51), picture(tmp_path / "wide.png", 7, 15, 204)
    assert call("predict", classify_file, dark, wide) == 0
    assert capsys.readouterr().out.splitlines() == [f"{dark}: sound 0.200", f"{wide}: crack 0.800, 3 of 3 tiles"]
    assert call("predict", classify_file, dark, "--json", "--threshold", "0.1") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["image"] == str(dark)
    assert (found["label"], found["positive"], found["threshold"]) == ("crack", True, 0.1)
    assert found["probability"] == pytest.approx(0.2)
    assert found["tiles"] == [{"row": 0, "col": 0, "height": 7, "width": 5, "probability": found["probability"]}]


def test_predict_segments_pixels_and_boxes(segment_file, tmp_path, capsys):
    path = picture(tmp_path / "a.png", 20, 30, 10, spot=230)
    assert call("predict", segment_file, path) == 0
    assert capsys.readouterr().out == f"{path}: crack 0.902, 2.50 % of pixels, 1 box\n"
    assert call("predict", segment_file, path, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["pixels"], found["fraction"]) == (15, 0.025)
    (box,) = found["boxes"]
    assert box == {"row": 2, "col": 3, "height": 3, "width": 5, "area": 15, "peak": found["probability"]}


@pytest.mark.parametrize("fault", ["missing", "truncated", "bands", "small", "nan"])
def test_one_bad_image_among_many_is_named_and_nothing_is_written(classify_file, tmp_path, capsys, fault):
    good, bad = picture(tmp_path / "good.png", 7, 5, 51), tmp_path / "bad.png"
    if fault == "truncated":
        bad.write_bytes(good.read_bytes()[:50])
    elif fault == "bands":
        Image.fromarray(np.zeros((7, 5), np.uint8)).save(bad)
    elif fault == "small":
        picture(bad, 6, 5, 51)
    elif fault == "nan":
        bad = tmp_path / "bad.npy"
        np.save(bad, np.full((7, 5, 3), np.nan))
    with pytest.raises(HighwallError, match=bad.name):
        call("predict", classify_file, good, bad, "--overlay", tmp_path / "out")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()


def test_overlays_are_named_after_their_images(segment_file, tmp_path, capsys):
    images = [picture(tmp_path / name, 20, 30, 10, spot=230) for name in ("a.png", "b.tif")]
    assert call("predict", segment_file, *images, "--overlay", tmp_path / "out", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.overlay.png", "b.overlay.png"]
    with Image.open(tmp_path / "out" / "a.overlay.png") as drawn:
        assert drawn.width >= 384


def test_two_images_of_one_name_are_not_drawn_over_each_other(segment_file, tmp_path):
    images = [picture(tmp_path / folder / "a.png", 20, 30, 10) for folder in ("x", "y")]
    with pytest.raises(HighwallError, match="rename one"):
        call("predict", segment_file, *images, "--overlay", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert call("predict", segment_file, *images) == 0


@pytest.mark.parametrize("threshold", ["-0.1", "1.1", "nan"])
def test_a_threshold_that_is_no_probability_is_refused(classify_file, tmp_path, threshold):
    with pytest.raises(HighwallError, match="between 0 and 1"):
        call("predict", classify_file, picture(tmp_path / "a.png", 7, 5, 1), f"--threshold={threshold}")


def test_an_artifact_that_wants_sensors_says_so(tmp_path, make_parts):
    path = make_parts("classify", InputSpec(3, 3, 3, "uint8", sensors=2)).write(tmp_path / "s.highwall")
    with pytest.raises(HighwallError, match="sensor readings"):
        call("predict", path, picture(tmp_path / "a.png", 3, 3, 1))
    assert call("verify", path) == 0


def test_a_model_that_belies_its_manifest_is_refused(tmp_path, classifier, make_model):
    path = tmp_path / "liar.highwall"
    other = make_model(replace(classifier.spec, height=9), "classify")
    artifact.write(path, classifier.manifest, other, classifier.golden, classifier.receipt)
    with pytest.raises(HighwallError, match="the model takes"):
        call("verify", path)


@pytest.mark.parametrize(
    "receipt",
    [
        {},
        {"model_bytes": "x", "accuracy": [1], "contract": 3, "candidates": {"a": 1}},
        {"accuracy": {"int8": {"auc": None, "n": "\u001b[31m"}}, "contract": {"limits": {"max_drop": "\n"}}},
        {"contract": {"limits": {"a": 1}}, "candidates": [1, {"recipe": "\u001b", "verdict": [2]}]},
    ],
)
def test_inspect_shows_any_receipt_without_a_stumble_or_a_control_character(receipt, classifier, tmp_path, capsys):
    path = tmp_path / "odd.highwall"
    artifact.write(path, classifier.manifest, classifier.model, classifier.golden, receipt)
    assert highwall.main(["inspect", str(path)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_inspect_tells_the_contract_and_why_each_candidate_lost(classifier, tmp_path, capsys):
    receipt = {
        "model_bytes": 247_000,
        "parity_error": 0.015,
        "accuracy": {"int8": {"auc": 0.9463, "f1": 0.78, "precision": 0.67, "recall": 0.94, "n": 2000}},
        "contract": {"board": "rpi4b", "limits": {"max_size_kib": 250}},
        "candidates": [{"recipe": "onnx-int8-mse", "verdict": "chosen"}, {"recipe": "onnx-fp32", "verdict": "too big"}],
    }
    path = tmp_path / "good.highwall"
    artifact.write(path, classifier.manifest, classifier.model, classifier.golden, receipt)
    assert highwall.main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    for words in ("247 kB", "0.015 off", "auc 0.9463", "on 2000 labels", "max_size_kib 250", "onnx-fp32: too big"):
        assert words in said
