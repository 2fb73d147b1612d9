"""The cost model agrees with the paper's equations and with torch's own counter."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from toolkit.cost import generic_cost, measure, separable_cost
from toolkit.layers import SeparableConv
from toolkit.network import PRESETS, build_network

counts = st.integers(1, 64)


@given(side=st.sampled_from([1, 3, 5, 7]), inputs=counts, outputs=counts)
def test_equations_2_and_3_count_the_weights_of_real_convolutions(side: int, inputs: int, outputs: int) -> None:
    generic = nn.Conv2d(inputs, outputs, side, bias=False)
    depthwise = nn.Conv2d(inputs, inputs, side, groups=inputs, bias=False)
    pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
    assert generic_cost(side * side, outputs, inputs) == generic.weight.numel()
    assert separable_cost(side * side, outputs, inputs) == depthwise.weight.numel() + pointwise.weight.numel()


def test_a_separable_layer_is_one_row_with_its_saving() -> None:
    cost = measure(SeparableConv(13, 15), torch.zeros(1, 13, 7, 5))
    (row,) = cost.layers
    assert (row.kind, row.inputs, row.outputs, row.positions) == ("separable", 13, 15, 35)
    assert row.macs == row.separable == 35 * (9 + 15) * 13
    assert row.generic == 35 * 9 * 15 * 13
    assert cost.ratio == pytest.approx(9 * 15 / (9 + 15))


def test_a_generic_layer_shows_what_it_would_save() -> None:
    (row,) = measure(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 6, 6)).layers
    assert row.macs == row.generic == 36 * 9 * 3 * 8
    assert row.separable == 36 * (9 + 8) * 3
    assert row.activation_bytes == 8 * 36 * 4


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_macs_are_half_of_what_torch_counts_as_flops(name: str) -> None:
    config = PRESETS[name]
    network = build_network(config).eval()
    image = torch.zeros(1, config.bands, config.slice_size, config.slice_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    cost = measure(network, image)
    assert cost.macs * 2 == counter.get_total_flops()
    assert cost.parameters == sum(p.numel() for p in network.parameters())


def test_measuring_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = network[1].running_mean.clone()
    measure(network, torch.ones(1, 3, 9, 9))
    assert network.training
    assert torch.equal(network[1].running_mean, before)
    assert not network[0]._forward_hooks
