"""Training repeats to the bit, resumes to the bit, and says plainly what it refuses."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from small import small_request

import highwall
from targets.runtime.errors import HighwallError
from toolkit import checkpoint
from toolkit.data.batches import Normalisation
from toolkit.data.folder import read
from toolkit.data.samples import Samples
from toolkit.data.synthetic import crack_images, mine_chips
from toolkit.optimizers import LEARNING_RATES
from toolkit.runs import Request, plan
from toolkit.train import learning_rate, loss_of


def weights_in(folder: Path) -> bytes:
    return (folder / "checkpoint.safetensors").read_bytes()


def test_the_same_seed_gives_the_same_checkpoint_to_the_byte(
    chips_folder: Path, run_folder: Path, tmp_path: Path
) -> None:
    samples = read(chips_folder)
    plan(samples, small_request(tmp_path / "again")).run(lambda _: None)
    assert weights_in(tmp_path / "again") == weights_in(run_folder)
    plan(samples, small_request(tmp_path / "other", seed=1)).run(lambda _: None)
    assert weights_in(tmp_path / "other") != weights_in(run_folder)


@pytest.mark.parametrize("optimizer", LEARNING_RATES)
def test_a_run_stopped_after_an_epoch_resumes_to_the_same_bytes(
    chips_folder: Path, tmp_path: Path, optimizer: str
) -> None:
    samples = read(chips_folder)
    whole = plan(samples, small_request(tmp_path / "whole", optimizer=optimizer))
    whole.run(lambda _: None)

    class StopRun(Exception):
        pass

    def stop(_: str) -> None:
        raise StopRun

    first = plan(samples, small_request(tmp_path / "parts", optimizer=optimizer))
    with pytest.raises(StopRun):
        first.run(stop)
    second = plan(samples, small_request(tmp_path / "parts", optimizer=optimizer))
    second.resume()
    assert len(second.history) == 1
    second.run(lambda _: None)
    assert weights_in(tmp_path / "parts") == weights_in(tmp_path / "whole")


def test_a_killed_run_resumes_to_the_same_weights(chips_folder: Path, tmp_path: Path) -> None:
    def command(out: str, *more: str) -> list[str]:
        options = "--task classify --slice 24 --width 8 --growth 4 --epochs 4 --batch 8 --threads 1".split()
        return [sys.executable, "-m", "highwall", "train", "--data", str(chips_folder), "--out", out, *options, *more]

    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    subprocess.run(command(whole), check=True, capture_output=True)
    process = subprocess.Popen(command(parts), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    process.kill()
    process.wait()
    assert not (tmp_path / "parts" / "checkpoint.safetensors").exists()
    refused = subprocess.run(command(parts), capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "--resume" in refused.stderr
    subprocess.run(command(parts, "--resume"), check=True, capture_output=True)
    assert weights_in(tmp_path / "parts") == weights_in(tmp_path / "whole")


def test_ctrl_c_says_how_to_go_on_and_leaves_nothing_half_written(chips_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = "--task classify --slice 24 --width 8 --growth 4 --epochs 500 --batch 8 --threads 1".split()
    process = subprocess.Popen(
        [sys.executable, "-m", "highwall", "train", "--data", str(chips_folder), "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            break
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in errors
    assert errors.count("\n") == 1
    assert {path.name for path in out.iterdir()} == {"state.safetensors", "history.jsonl"}


def test_resuming_with_other_settings_names_them(chips_folder: Path, run_folder: Path) -> None:
    with pytest.raises(HighwallError, match=r"config\.lr: 0\.003 there, 0\.5 here"):
        plan(read(chips_folder), small_request(run_folder, lr=0.5)).resume()
    with pytest.raises(HighwallError, match="network"):
        plan(read(chips_folder), small_request(run_folder, width=12)).resume()


def test_the_held_out_fold_is_never_looked_at(chips_folder: Path, tmp_path: Path) -> None:
    samples = read(chips_folder)
    assert samples.folds is not None
    trainer = plan(samples, small_request(tmp_path, held="2"))
    names = set(trainer.train.names) | set(trainer.validation.names)
    held = {name for name, fold in zip(samples.names, samples.folds, strict=True) if fold == 2}
    assert held
    assert not names & held
    assert not set(trainer.train.names) & set(trainer.validation.names)


def test_training_learns(chips_folder: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    trainer = plan(read(chips_folder), small_request(tmp_path, epochs=6))
    trainer.run(lambda line: losses.append(float(line.split("loss ")[1].split()[0])))
    assert losses[-1] < losses[0]


def test_segment_trains_on_crops_and_writes_a_checkpoint(tmp_path: Path) -> None:
    samples = crack_images(10, size=64, seed=3)
    request = Request("segment", tmp_path / "run", width=8, growth=4, epochs=1, batch=4)
    model = plan(samples, request).run(lambda _: None)
    assert (model.network.task, model.network.slice_size) == ("segment", 64)
    assert 0 <= model.threshold <= 1


def test_a_run_says_in_how_harsh_images_it_learned(chips_folder: Path, tmp_path: Path) -> None:
    samples = read(chips_folder)
    losses = []
    for harsh in (0.0, 0.5):
        trainer = plan(samples, small_request(tmp_path / str(harsh), epochs=1, harsh=harsh))
        assert trainer.run(lambda _: None).provenance["train"]["harsh"] == harsh
        losses.append(trainer.history[0]["loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "crack"}, "preset crack is made to segment"),
        ({"slice_size": 99}, "larger than the images"),
        ({"slice_size": 2}, "3x3"),
        ({"epochs": 0}, "--epochs"),
        ({"harsh": 0.6}, "--harsh must be from 0 to 0.5"),
        ({"harsh": float("nan")}, "--harsh must be"),
        ({"held": "9"}, "9"),
        ({"seed": 10**26}, "--seed must be below"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(
    chips_folder: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(HighwallError, match=message):
        plan(read(chips_folder), small_request(tmp_path, **changes))


def test_a_loss_that_explodes_stops_the_run(chips_folder: Path, tmp_path: Path) -> None:
    trainer = plan(read(chips_folder), small_request(tmp_path, lr=1e30, optimizer="sgd"))
    with pytest.raises(HighwallError, match="lower --lr"):
        trainer.run(lambda _: None)


@pytest.mark.parametrize("refit", [0, 1])
def test_weights_that_explode_in_the_last_step_stop_the_run_too(
    chips_folder: Path, run_folder: Path, tmp_path: Path, refit: int
) -> None:
    samples = read(chips_folder)
    how: dict[str, object] = {"lr": 1e30, "optimizer": "sgd", "batch": 90, "epochs": 1, "start": run_folder}
    trainer = plan(samples, small_request(tmp_path, refit=refit, **how))
    assert trainer.steps == 1, "its loss is that of the start"
    with pytest.raises(HighwallError, match="lower --lr"):
        trainer.run(lambda _: None)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_network_that_answers_no_numbers_is_refused_in_one_line(
    chips_folder: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, weights = checkpoint.read(run_folder)
    path = tmp_path / "nan.safetensors"
    checkpoint.save(path, model, {name: tensor * float("nan") for name, tensor in weights.items()})
    assert highwall.main(["evaluate", str(path), "--data", str(chips_folder)]) == 1
    assert "lower --lr" in capsys.readouterr().err


def test_a_checkpoint_that_may_not_be_read_is_not_called_missing(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(HighwallError, match="Permission denied"):
        checkpoint.read(run_folder)


def train(data: Path, out: Path, *more: object) -> int:
    shape = "--task classify --slice 24 --width 8 --growth 4 --epochs 1 --batch 16".split()
    return highwall.main(["train", "--data", str(data), "--out", str(out), *shape, *map(str, more)])


def test_a_checkpoint_of_another_run_is_not_overwritten(
    chips_folder: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "checkpoint.safetensors"
    copy.write_bytes(weights_in(run_folder))
    for more in (
        (),
        ("--resume",),
        ("--from", run_folder, "--refit", 1),
        ("--from", run_folder, "--refit", 1, "--resume"),
    ):
        assert train(chips_folder, tmp_path, *more) == 1
        assert "would overwrite; choose another --out" in capsys.readouterr().err
    assert copy.read_bytes() == weights_in(run_folder)
    assert list(tmp_path.iterdir()) == [copy]


@pytest.mark.parametrize("out", ["file", "file/run", "n" * 300])
@pytest.mark.parametrize("refit", [False, True])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, refit: bool
) -> None:
    (tmp_path / "file").touch()
    more = ("--from", run_folder, "--refit", 1) if refit else ()
    assert train(tmp_path / "no data", tmp_path / out, *more) == 1
    said = capsys.readouterr().err
    assert out in said
    assert "no data" not in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_scaling_is_that_of_the_images_evenly_spaced() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 65_536, (2500, 4, 5, 3), np.uint16)
    images[..., 2] = 7
    samples = Samples("classify", images, np.zeros(2500, np.uint8), ("",) * 2500, None, None, ("a", "b"))
    found, seen = Normalisation.of(samples), images[::2].astype(np.float64)
    np.testing.assert_allclose(np.float32(found.mean), np.float32(seen.mean((0, 1, 2)).round(3)))
    np.testing.assert_allclose(np.float32(found.std), np.float32(np.maximum(seen.std((0, 1, 2)), 1).round(3)))
    assert Normalisation.of(samples.take(range(1999))).mean != found.mean


def test_scaling_takes_little_memory() -> None:
    images = np.zeros((1500, 32, 32, 3), np.uint8)
    samples = Samples("classify", images, np.zeros(1500, np.uint8), ("",) * 1500, None, None, ("a", "b"))
    tracemalloc.start()
    Normalisation.of(samples)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < images.nbytes


def test_binary_cross_entropy_is_equation_7() -> None:
    logits = torch.tensor([[0.3], [-1.2], [2.0]])
    targets = torch.tensor([[1.0], [0.0], [0.0]])
    p = 1 / (1 + np.exp(-logits.numpy().astype(float)))
    x = targets.numpy()
    by_hand = float(np.mean(-(x * np.log(p) + (1 - x) * np.log(1 - p))))
    assert float(loss_of(logits, targets, "bce")) == pytest.approx(by_hand, rel=1e-6)


def test_the_schedule_warms_up_and_ends_near_nothing() -> None:
    rates = [learning_rate(step, 200, 1.0) for step in range(200)]
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[0] < 0.2
    assert rates[-1] < 0.001


def test_a_checkpoint_comes_back_as_it_was_written(run_folder: Path) -> None:
    model, network = checkpoint.load(run_folder)
    image = torch.randn(2, 3, 24, 24)
    _, again = checkpoint.load(run_folder / "checkpoint.safetensors")
    assert torch.equal(network(image), again(image))
    assert model.labels == ("no mine", "mine")


@pytest.mark.parametrize("damage", ["missing", "text", "cut", "foreign"])
def test_a_damaged_checkpoint_is_refused_in_one_line(run_folder: Path, tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "bad.safetensors"
    if damage == "text":
        path.write_text("not weights")
    elif damage == "cut":
        path.write_bytes(weights_in(run_folder)[:-100])
    elif damage == "foreign":
        save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(HighwallError) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    assert "bad.safetensors" in str(caught.value)


def test_training_goes_on_from_given_weights_and_not_from_others(
    chips_folder: Path, run_folder: Path, tmp_path: Path
) -> None:
    samples = read(chips_folder)
    start = run_folder / "checkpoint.safetensors"
    trainer = plan(samples, small_request(tmp_path / "on", start=start, lr=1e-9, epochs=1))
    _, before = checkpoint.read(start)
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.averaged.state_dict().items())
    model = trainer.run(lambda _: None)
    assert model.provenance["train"]["start"] == checkpoint.digest(before)
    with pytest.raises(HighwallError, match="another network"):
        plan(samples, small_request(tmp_path / "no", start=start, width=12))


@pytest.mark.parametrize(("name", "task"), [("mobilenetv2", "classify"), ("rnn", "classify"), ("unet", "segment")])
def test_a_baseline_trains_resumes_and_loads_as_cracknet_does(name: str, task: str, tmp_path: Path) -> None:
    samples = crack_images(8, size=32, seed=3) if task == "segment" else mine_chips(24, size=17, seed=3)
    request = Request(task, tmp_path / "run", architecture=name, multiplier=0.125, slice_size=17, epochs=1, batch=4)
    model = plan(samples, request).run(lambda _: None)
    assert (model.network.architecture, model.network.multiplier, model.name) == (name, 0.125, name)
    found, network = checkpoint.load(tmp_path / "run")
    assert found == model
    assert network(torch.zeros(2, samples.bands, 17, 17)).shape[:2] == (2, 1)
