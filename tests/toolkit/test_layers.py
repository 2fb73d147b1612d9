"""Each layer alone, against a plain reference."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from toolkit.layers import (
    CBAM,
    ChannelAttention,
    ConvNormReLU,
    RFBs,
    SeparableConv,
    SpatialAttention,
    SqueezeExcite,
    halve,
    stochastic_pool,
)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (5, 1, 1), (3, 1, 3)])
def test_separable_convolution_is_a_grouped_then_a_1x1_convolution(kernel: int, stride: int, dilation: int) -> None:
    torch.manual_seed(0)
    layer = SeparableConv(7, 5, kernel, stride, dilation).eval()
    x = torch.randn(2, 7, 13, 11)
    grouped = F.conv2d(x, layer.depthwise.weight, None, stride, dilation * (kernel // 2), dilation, groups=7)
    mixed = torch.einsum("oi,nihw->nohw", layer.pointwise.weight[:, :, 0, 0], grouped)
    norm = (mixed - 0.0) / torch.sqrt(torch.tensor(1.0 + layer.norm.eps))
    torch.testing.assert_close(layer(x), norm.clamp(min=0))


def test_separable_convolution_has_the_parameters_of_equation_3() -> None:
    layer = SeparableConv(13, 15)
    kernels = layer.depthwise.weight.numel() + layer.pointwise.weight.numel()
    assert kernels == (9 + 15) * 13


@pytest.mark.parametrize("size", [1, 2, 3, 5, 48])
def test_stride_two_gives_half_the_size_rounded_up(size: int) -> None:
    x = torch.randn(1, 3, size, size + 1)
    assert ConvNormReLU(3, 4, stride=2).eval()(x).shape[2:] == ((size + 1) // 2, (size + 2) // 2)
    assert halve(x).shape[2:] == ((size + 1) // 2, (size + 2) // 2)


def test_halving_is_the_maximum_of_each_2x2_also_at_an_odd_edge() -> None:
    x = -torch.arange(15.0).reshape(1, 1, 3, 5)  # negative: a zero pad would win
    assert halve(x).tolist() == [[[[0, -2, -4], [-10, -12, -14]]]]


def test_stochastic_pooling_infers_its_own_expectation() -> None:
    torch.manual_seed(1)
    a = torch.tensor([[0.0, 1.0, 2.0, 5.0], [3.0, 0.0, 0.0, 0.0], [-4.0, 0.5, 0.5, 1.0]])
    positive = a.clamp(min=0)
    probability = positive / positive.sum(1, keepdim=True)
    by_hand = (probability * positive).sum(1)
    torch.testing.assert_close(stochastic_pool(a, training=False), by_hand, rtol=1e-5, atol=1e-5)
    drawn = torch.stack([stochastic_pool(a, training=True) for _ in range(20_000)]).mean(0)
    torch.testing.assert_close(drawn, by_hand, rtol=0.02, atol=0.01)


def test_stochastic_pooling_never_draws_what_has_no_probability() -> None:
    torch.manual_seed(2)
    a = torch.tensor([0.0, 0.0, 7.0, 0.0, 3.0, -9.0]).expand(5000, 6)
    drawn = stochastic_pool(a, training=True)
    assert set(drawn.tolist()) == {7.0, 3.0}
    assert abs(float((drawn == 7).float().mean()) - 0.7) < 0.03


def test_stochastic_pooling_of_nothing_is_zero_and_has_a_finite_gradient() -> None:
    for training in (True, False):
        x = torch.zeros(2, 5, requires_grad=True)
        stochastic_pool(x, training).sum().backward()
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()


def test_stochastic_pooling_sends_its_training_gradient_to_the_drawn_element_alone() -> None:
    torch.manual_seed(3)
    x = torch.rand(64, 9, requires_grad=True)
    pooled = stochastic_pool(x, training=True)
    pooled.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad.sum(1), torch.ones(64))
    assert torch.equal((x * x.grad).sum(1), pooled)


def test_stochastic_pooling_has_the_right_gradient_at_inference() -> None:
    x = torch.rand(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: stochastic_pool(a, training=False), (x,))


def test_squeeze_excite_scales_each_channel_by_one_number() -> None:
    torch.manual_seed(4)
    layer = SqueezeExcite(13)
    x = torch.rand(2, 13, 5, 3) + 0.5
    squeezed = x.mean((2, 3))
    hidden = F.relu(F.linear(squeezed, layer.reduce.weight[:, :, 0, 0], layer.reduce.bias))
    scale = torch.sigmoid(F.linear(hidden, layer.expand.weight[:, :, 0, 0], layer.expand.bias))
    torch.testing.assert_close(layer(x), x * scale[:, :, None, None])


def test_channel_attention_fuses_average_maximum_and_stochastic_pools_by_one_mlp() -> None:
    torch.manual_seed(5)
    layer = ChannelAttention(15).eval()
    x = torch.rand(2, 15, 4, 7)

    def mlp(pool: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(F.linear(pool, layer.reduce.weight[:, :, 0, 0], layer.reduce.bias))
        return F.linear(hidden, layer.expand.weight[:, :, 0, 0], layer.expand.bias)

    flat = x.flatten(2)
    stochastic = (flat**2).sum(2) / flat.sum(2)
    gate = torch.sigmoid(mlp(flat.mean(2)) + mlp(flat.max(2).values) + mlp(stochastic))
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None], rtol=1e-4, atol=1e-5)


def test_spatial_attention_reads_the_same_three_pools_over_channels() -> None:
    torch.manual_seed(6)
    layer = SpatialAttention().eval()
    x = torch.rand(2, 6, 9, 4)
    pools = torch.stack((x.mean(1), x.max(1).values, (x**2).sum(1) / x.sum(1)), 1)
    gate = torch.sigmoid(layer.conv(pools))
    torch.testing.assert_close(layer(x), x * gate, rtol=1e-4, atol=1e-5)


def test_attention_only_attenuates() -> None:
    x = torch.randn(1, 8, 5, 5)
    assert (CBAM(8).eval()(x).abs() <= x.abs()).all()


def test_rfb_sees_three_pixels_and_twice_its_largest_rate() -> None:
    layer = RFBs(16).eval()
    for module in layer.modules():  # all weights positive, no norm to cancel them: every path shows
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.1)
    x = torch.ones(1, 16, 41, 41, requires_grad=True)
    layer(x)[0, :, 20, 20].sum().backward()
    assert x.grad is not None
    rows = torch.nonzero(x.grad[0].abs().sum((0, 2))).flatten()
    columns = torch.nonzero(x.grad[0].abs().sum((0, 1))).flatten()
    reach = 1 + max(RFBs.rates)
    for seen in (rows, columns):
        assert (int(seen.min()), int(seen.max())) == (20 - reach, 20 + reach)


def test_rfb_has_four_different_dilation_rates_and_both_factors() -> None:
    layer = RFBs(16)
    convolutions = [m for m in layer.modules() if isinstance(m, nn.Conv2d)]
    assert len({m.dilation for m in convolutions if m.groups > 1}) == 4
    assert {(1, 3), (3, 1)} <= {m.kernel_size for m in convolutions}
