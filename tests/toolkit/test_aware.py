"""Quantization-aware training: weights that settle where int8 harms them less, in an ordinary checkpoint."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small import small_request

import highwall
from targets.runtime.errors import HighwallError
from toolkit import checkpoint
from toolkit.data.batches import Normalisation, centre_crop, to_tensor
from toolkit.data.folder import read
from toolkit.data.samples import Samples
from toolkit.quantize.simulate import quantizable, round_weights, simulated
from toolkit.runs import plan


def int8_loss(run: Path, samples: Samples) -> float:
    """Cross-entropy of the run's network when its layers compute as at int8."""
    model, network = checkpoint.load(run)
    samples = centre_crop(samples, model.network.slice_size)
    pixels = Normalisation(model.mean, model.std).apply(to_tensor(samples.images))
    with torch.inference_mode(), simulated(quantizable(network).values()):
        logits = network(pixels)[:, 0]
        return float(F.binary_cross_entropy_with_logits(logits, torch.from_numpy(samples.labels).float()))


def test_training_as_at_int8_goes_on_from_given_weights_and_lowers_the_int8_loss(
    run_folder: Path, chips_folder: Path, tmp_path: Path
) -> None:
    samples = read(chips_folder)
    start = run_folder / "checkpoint.safetensors"
    assert plan(samples, small_request(tmp_path, qat=True, start=start)).config.lr == pytest.approx(3e-4)
    # The shared run has hardly begun to learn, so there is more to gain here than a default step would show;
    # the averaged weights follow some epochs behind.
    trainer = plan(samples, small_request(tmp_path / "qat", qat=True, start=start, epochs=12, lr=0.01))
    trainer.run(lambda _: None)
    assert int8_loss(tmp_path / "qat", samples) < int8_loss(run_folder, samples)
    model, network = checkpoint.load(tmp_path / "qat")
    assert model.provenance["train"]["qat"] is True
    assert not [name for name, module in network.named_modules() if "forward" in vars(module)]
    weights = next(iter(quantizable(network).values())).weight.detach()
    assert not torch.equal(round_weights(weights), weights)  # what is kept is the float weights


def test_training_as_at_int8_without_weights_is_refused(
    chips_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(HighwallError, match="--from"):
        plan(read(chips_folder), small_request(tmp_path / "x", qat=True))
    words = ("train", "--data", chips_folder, "--task", "classify", "--out", tmp_path / "x", "--qat")
    assert highwall.main([str(word) for word in words]) == 1
    assert "--from RUN" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
