"""Simulated int8: layers that round, gradients that pass, and a ranking that finds the culprit."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import highwall
from toolkit.checkpoint import Model
from toolkit.layers import SqueezeExcite
from toolkit.network import CrackNet, NetworkConfig
from toolkit.quantize.sensitivity import keep_float, measure
from toolkit.quantize.simulate import quantizable, round_activations, round_weights, simulated


def test_rounded_weights_have_255_levels_a_channel_and_keep_the_largest() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 3, 3, 3) * torch.tensor([1e-3, 1.0, 50.0, 0.0, 7.0]).view(-1, 1, 1, 1)
    rounded = round_weights(weight)
    for channel, was in zip(rounded, weight, strict=True):
        step = was.abs().max() / 127
        assert (channel - was).abs().max() <= step / 2 + 1e-9
        assert channel.unique().numel() <= 255


def test_rounded_activations_hold_zero_exactly_and_stay_within_half_a_step() -> None:
    x = torch.cat((torch.zeros(10), torch.rand(1000) * 9 - 2))
    rounded = round_activations(x)
    step = (x.max() - x.min()) / 255
    assert (rounded[:10] == 0).all()
    assert (rounded - x).abs().max() <= step  # half from rounding, half from moving zero onto a level
    assert rounded.unique().numel() <= 256


def test_a_network_is_as_before_once_the_simulation_ends_even_by_an_error() -> None:
    torch.manual_seed(0)
    network, x = CrackNet(3, "classify", 8, 4).eval(), torch.randn(2, 3, 17, 17)
    before = network(x)
    with pytest.raises(ZeroDivisionError), simulated(quantizable(network).values()):
        assert not torch.equal(network(x), before)
        raise ZeroDivisionError
    assert torch.equal(network(x), before)


def test_gradients_reach_every_weight_through_the_rounding() -> None:
    torch.manual_seed(0)
    network = CrackNet(3, "classify", 8, 4)
    with simulated(quantizable(network).values()):
        network(torch.randn(4, 3, 18, 18)).sum().backward()
    for name, module in quantizable(network).items():
        assert module.weight.grad is not None, name
        assert module.weight.grad.abs().sum() > 0, name


def test_gates_are_left_out() -> None:
    network = CrackNet(3, "classify", 8, 4)
    names = quantizable(network)
    gates = [name for name, module in network.named_modules() if isinstance(module, SqueezeExcite)]
    assert gates
    assert not [name for name in names if name.startswith(tuple(f"{gate}." for gate in gates))]


class Uneven(nn.Module):
    """Its second layer reads a thousandfold outlier, so rounding its input drowns what it carries."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(5, 1, 1)
        with torch.no_grad():
            self.second.weight[:, 4] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        loud = torch.full_like(x[:, :1], 1000.0)
        return self.second(torch.cat((self.first(x), loud), 1)).mean((2, 3))


def test_the_layer_that_hurts_is_ranked_first_and_kept_float() -> None:
    torch.manual_seed(0)
    model = Model("m", NetworkConfig("classify", 3, 0, 0, slice_size=9), (128.0,) * 3, (60.0,) * 3)
    images = np.random.RandomState(0).randint(0, 256, (20, 9, 9, 3), np.uint8)
    ranked = measure(model, Uneven().eval(), images)
    assert [one.layer for one in ranked] == ["second", "first"]
    assert ranked[0].sqnr_db < ranked[1].sqnr_db - 20
    assert keep_float(ranked) == ("second",)


def test_a_layer_without_influence_brings_no_noise() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heard, self.deaf = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.heard(x) + 0 * self.deaf(x)).mean((2, 3))

    model = Model("m", NetworkConfig("classify", 3, 0, 0, slice_size=5), (0.0,) * 3, (255.0,) * 3)
    images = np.random.RandomState(0).randint(0, 256, (4, 5, 5, 3), np.uint8)
    ranked = measure(model, Deaf().eval(), images)
    assert (ranked[-1].layer, math.isinf(ranked[-1].sqnr_db)) == ("deaf", True)
    assert ranked[-1].as_dict()["sqnr_db"] is None


def test_the_verb_prints_json_and_draws(
    run_folder: Path, chips_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "layers.png"
    words = ["sensitivity", str(run_folder), "--data", str(chips_folder), "--picture", str(picture), "--json"]
    assert highwall.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    figures = [math.inf if one["sqnr_db"] is None else one["sqnr_db"] for one in found]
    assert figures == sorted(figures)
    assert {"layer", "kind", "weights", "sqnr_db"} == set(found[0])
    with Image.open(picture) as image:
        assert image.height > len(found) * 10
