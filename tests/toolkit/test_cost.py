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


def test_a_transposed_convolution_meets_its_kernel_at_every_pixel_it_reads() -> None:
    layer, image = nn.ConvTranspose2d(6, 5, 3, stride=2), torch.zeros(1, 6, 7, 4)
    (row,) = measure(layer, image).layers
    assert (row.kind, row.kernel, row.inputs, row.outputs, row.positions) == ("transposed", "3x3", 6, 5, 15 * 9)
    assert row.macs == row.generic == row.separable == 7 * 4 * 9 * 6 * 5
    assert row.macs * 2 == torch_flops(layer, image)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("more", [{}, {"num_layers": 2, "bidirectional": True}])
def test_a_recurrent_layer_meets_its_weights_at_every_step(batch_first: bool, more: dict[str, int]) -> None:
    layer = nn.GRU(5, 8, batch_first=batch_first, **more)
    steps = torch.zeros(1, 11, 5) if batch_first else torch.zeros(11, 1, 5)
    (row,) = measure(layer, steps).layers
    assert (row.kind, row.inputs, row.outputs, row.positions) == ("recurrent", 5, 8, 11)
    assert row.macs * 2 == torch_flops(layer, steps)


def torch_flops(network: nn.Module, *inputs: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_macs_are_half_of_what_torch_counts_as_flops(name: str) -> None:
    config = PRESETS[name]
    network = build_network(config).eval()
    image = torch.zeros(1, config.bands, config.slice_size, config.slice_size)
    cost = measure(network, image)
    assert cost.macs * 2 == torch_flops(network, image)
    assert cost.parameters == sum(p.numel() for p in network.parameters())


def test_measuring_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = network[1].running_mean.clone()
    measure(network, torch.ones(1, 3, 9, 9))
    assert network.training
    assert torch.equal(network[1].running_mean, before)
    assert not network[0]._forward_hooks
