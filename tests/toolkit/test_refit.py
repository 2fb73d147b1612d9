"""A refitted network is the mean of short runs on all that may be seen; a classifier keeps what it is judged by."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import small_request

import highwall
from targets.runtime.errors import HighwallError
from toolkit import checkpoint
from toolkit.data.folder import read
from toolkit.data.split import hold_out
from toolkit.data.synthetic import crack_images
from toolkit.refit import mean_of, refit
from toolkit.runs import Request, plan
from toolkit.temper import temper
from toolkit.train import predict, threshold_of


def test_its_weights_are_the_mean_of_its_runs_and_its_threshold_the_first_one(
    chips_folder: Path, run_folder: Path, tmp_path: Path
) -> None:
    samples = read(chips_folder)
    model = refit(samples, small_request(tmp_path, start=run_folder, refit=2, epochs=1), lambda _: None)
    first, _ = checkpoint.read(run_folder)
    found, weights = checkpoint.read(tmp_path)
    parts = [checkpoint.read(tmp_path / name)[1] for name in ("refit1", "refit2")]
    assert found == model
    assert not torch.equal(parts[0]["stem.0.0.weight"], parts[1]["stem.0.0.weight"])
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor.double(), (parts[0][name].double() + parts[1][name].double()) / 2)
    assert (model.threshold, model.tempering) == (first.threshold, first.tempering)
    assert model.provenance["validation"] == first.provenance["validation"]
    assert model.provenance["refit"] == [checkpoint.digest(part) for part in parts]


def test_pixels_are_called_by_a_threshold_that_suits_the_mean_not_its_start(tmp_path: Path) -> None:
    samples = crack_images(10, size=32, seed=3)
    first = Request("segment", tmp_path / "run", width=8, growth=4, epochs=1, batch=4)
    plan(samples, first).run(lambda _: None)
    model = refit(samples, replace(first, out=tmp_path / "more", start=tmp_path / "run", refit=2), lambda _: None)
    found, network = checkpoint.load(tmp_path / "more")
    tally = predict(network, model.normalisation, samples, tempering=model.tempering)
    assert found.threshold == threshold_of(tally)
    assert found.threshold != checkpoint.read(tmp_path / "run")[0].threshold


def test_it_learns_from_all_but_what_is_held_out(chips_folder: Path, tmp_path: Path) -> None:
    samples = read(chips_folder)
    plan(samples, small_request(tmp_path / "run", held="1", epochs=1)).run(lambda _: None)
    trainer = plan(samples, small_request(tmp_path / "more", held="1", start=tmp_path / "run", refit=1))
    kept = samples.take(hold_out(samples, "fold", "1", 0)[0])
    assert trainer.train.digest == kept.digest
    assert trainer.validation is None
    assert len(plan(samples, small_request(tmp_path / "run", held="1", epochs=1)).train) < len(kept)


def test_one_that_was_stopped_goes_on_to_the_same_bytes(chips_folder: Path, run_folder: Path, tmp_path: Path) -> None:
    samples = read(chips_folder)
    whole, parts = (small_request(tmp_path / name, start=run_folder, refit=2, epochs=2) for name in ("whole", "parts"))
    refit(samples, whole, lambda _: None)

    def stop(line: str) -> None:
        if "refit 2/2: epoch 1/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refit(samples, parts, stop)
    assert not (tmp_path / "parts" / "checkpoint.safetensors").exists()
    said: list[str] = []
    refit(samples, parts, said.append)
    assert [line.split("  ")[0] for line in said] == ["refit 2/2: epoch 2/2"]
    one, other = ((tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("whole", "parts"))
    assert one == other


def test_it_refuses_a_start_whose_threshold_is_none_to_keep(
    chips_folder: Path, run_folder: Path, tmp_path: Path
) -> None:
    samples = read(chips_folder)
    with pytest.raises(HighwallError, match="name it with --from"):
        refit(samples, small_request(tmp_path, refit=2), lambda _: None)
    with pytest.raises(HighwallError, match="held out nothing, this run fold 1"):
        refit(samples, small_request(tmp_path, refit=2, start=run_folder, held="1"), lambda _: None)
    other = samples.take(np.arange(len(samples) - 1))
    with pytest.raises(HighwallError, match="this is other data"):
        refit(other, small_request(tmp_path, refit=2, start=run_folder), lambda _: None)
    with pytest.raises(HighwallError, match="at least 1"):
        refit(samples, small_request(tmp_path, refit=-1, start=run_folder), lambda _: None)
    assert not list(tmp_path.iterdir())
    before = (run_folder / "checkpoint.safetensors").read_bytes()
    with pytest.raises(HighwallError, match="would overwrite"):
        refit(samples, small_request(run_folder, refit=2, start=run_folder), lambda _: None)
    assert (run_folder / "checkpoint.safetensors").read_bytes() == before


def test_what_it_learned_from_is_not_taken_for_unseen_ground(
    chips_folder: Path, run_folder: Path, tmp_path: Path
) -> None:
    samples = read(chips_folder)
    refit(samples, small_request(tmp_path / "more", start=run_folder, refit=1, epochs=1), lambda _: None)
    with pytest.raises(HighwallError, match="learned from what its run had set aside"):
        temper(tmp_path / "more", samples, tmp_path / "tempered.safetensors")
    trainer = plan(samples, small_request(tmp_path / "on", start=tmp_path / "more", epochs=1))
    assert "scores there flatter" in trainer.provenance["split_note"]
    trainer.run(lambda _: None)
    with pytest.raises(HighwallError, match="went on from, learned from what"):
        temper(tmp_path / "on", samples, tmp_path / "tempered.safetensors")
    assert not (tmp_path / "tempered.safetensors").exists()


def test_counts_stay_whole_numbers() -> None:
    mean = mean_of(
        [{"steps": torch.tensor(3), "w": torch.tensor([1.0])}, {"steps": torch.tensor(5), "w": torch.zeros(1)}]
    )
    assert mean["steps"].dtype == torch.int64
    assert mean["w"].tolist() == [0.5]


def test_on_the_command_line_a_run_that_is_there_is_not_overwritten(
    chips_folder: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["--width", "8", "--growth", "4", "--slice", "24", "--batch", "16", "--epochs", "1"]
    command = ["train", "--data", str(chips_folder), "--task", "classify", "--from", str(run_folder), *shape]
    command += ["--refit", "2", "--out", str(tmp_path / "more")]
    assert highwall.main(command) == 0
    assert "threshold and temperature stay" in capsys.readouterr().out
    assert highwall.main(command) != 0
    assert "add --resume or choose another --out" in capsys.readouterr().err
    assert highwall.main([*command, "--resume"]) == 0
