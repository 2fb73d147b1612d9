"""Optimizers are found by name, and Muon's steps are what its paper says."""

import argparse

import pytest
import torch
from torch import nn

from targets.runtime.errors import HighwallError
from toolkit.commands import train_arguments
from toolkit.network import build_network, preset
from toolkit.optimizers import LEARNING_RATES, STEP_RMS, Muon, optimizer_for, orthogonal


def test_train_offers_every_optimizer_that_there_is() -> None:
    parser = argparse.ArgumentParser()
    train_arguments(parser)
    (option,) = (action for action in parser._actions if action.dest == "optimizer")
    assert tuple(option.choices or ()) == tuple(LEARNING_RATES)


def test_an_unknown_optimizer_names_the_known_ones() -> None:
    with pytest.raises(HighwallError, match="sgd, adam, rmsprop, muon"):
        optimizer_for(nn.Linear(3, 1), "lion", 1e-3)


@pytest.mark.parametrize("name", LEARNING_RATES)
@pytest.mark.parametrize("which", ["mine", "crack"])
def test_every_parameter_is_in_one_group_and_only_kernels_decay(name: str, which: str) -> None:
    network = build_network(preset(which))
    groups = optimizer_for(network, name, 1e-3).param_groups
    held = [p for group in groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, network.parameters()))
    for group in groups:
        assert all((group["weight_decay"] > 0) == (p.ndim > 1) for p in group["params"])


@pytest.mark.parametrize("shape", [(8, 8), (9, 31), (31, 9), (48, 192), (1, 7)])
def test_an_orthogonal_matrix_keeps_its_directions_and_loses_their_lengths(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    lengths = torch.logspace(0, -1, len(left[0]))
    found = orthogonal(left * lengths @ right)
    across = left.T @ found @ right.T
    assert torch.allclose(across, across.diagonal().diag(), atol=1e-3)
    assert 0.6 < across.diagonal().min() <= across.diagonal().max() < 1.3


def test_nothing_to_learn_is_no_step() -> None:
    assert torch.equal(orthogonal(torch.zeros(8, 16)), torch.zeros(8, 16))


def test_muon_steps_as_far_as_adam_whatever_the_gradient_s_length() -> None:
    torch.manual_seed(0)
    for scale in (1e-4, 1e4):
        layer = nn.Conv2d(24, 40, 1, bias=False)
        optimizer = optimizer_for(layer, "muon", 1e-3)
        before = layer.weight.detach().clone()
        layer.weight.grad = torch.randn_like(layer.weight) * scale
        optimizer.step()
        step = (layer.weight.detach() - before * (1 - 1e-3 * 1e-2)).square().mean().sqrt()
        assert float(step) == pytest.approx(STEP_RMS * 1e-3, rel=0.35)


def test_a_kernel_in_channels_last_layout_takes_the_same_step() -> None:
    torch.manual_seed(0)
    kernel, gradient = torch.randn(16, 5, 3, 3), torch.randn(16, 5, 3, 3)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        parameter = nn.Parameter(kernel.clone(memory_format=layout))
        parameter.grad = gradient.clone(memory_format=layout)
        Muon([{"params": [parameter], "orthogonal": True}], 1e-2).step()
        found.append(parameter.detach())
    assert torch.allclose(*found, atol=1e-6)


def test_depthwise_kernels_and_the_last_layer_are_left_to_adam() -> None:
    network = build_network(preset("mine"))
    optimizer = optimizer_for(network, "muon", 1e-3)
    matrices = {id(p) for group in optimizer.param_groups if group["orthogonal"] for p in group["params"]}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            assert id(layer.weight) not in matrices, name
    assert id(network.get_parameter("head.logit.weight")) not in matrices
    assert id(network.get_parameter("head.hidden.weight")) in matrices
    of_all = sum(p.numel() for p in network.parameters())
    assert sum(p.numel() for p in network.parameters() if id(p) in matrices) > 0.8 * of_all
