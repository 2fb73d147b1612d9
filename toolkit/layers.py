"""The layers CrackNet is made of, one class each, after section 3.2 of Yu, Yang and Cheng 2023.

Every layer takes and gives float maps of shape (batch, channels, height, width), any height and width
from 1, and keeps height and width unless its docstring says otherwise.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNormReLU(nn.Sequential):
    """A generic convolution, batch norm and ReLU; stride s gives ceil(size / s)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class SeparableConv(nn.Module):
    """Depthwise-separable convolution (equation 3): depthwise, then pointwise, batch norm and ReLU.

    Nothing stands between the two convolutions, so the pair is one linear map, and the depthwise output,
    where per-channel spread hurts most at int8, needs no activation range of its own kind.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.depthwise = nn.Conv2d(inputs, inputs, kernel, stride, padding, dilation, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.pointwise(self.depthwise(x))))


def stochastic_pool(x: Tensor, training: bool, eps: float = 1e-6) -> Tensor:
    """Pool the last axis of the non-negative part of `x` (Zeiler and Fergus 2013, section 3).

    Training: one element, drawn with probability a_i / sum(a); its gradient goes to that element alone.
    Inference: the expectation of that draw, sum(a^2) / (sum(a) + eps), which an exporter can trace.
    Shape (..., n) to (...); an all-zero row gives 0.
    """
    a = F.relu(x)
    if not training:
        return (a * a).sum(-1) / (a.sum(-1) + eps)
    with torch.no_grad():
        cumulative = a.cumsum(-1)
        draw = torch.rand_like(cumulative[..., :1]) * cumulative[..., -1:]
        index = torch.searchsorted(cumulative, draw, right=True).clamp_(max=a.shape[-1] - 1)
    return a.gather(-1, index).squeeze(-1)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (equations 4 to 6; Hu et al. 2018): channels reweighted by their global mean."""

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(squeezed))))


class ChannelAttention(nn.Module):
    """CBAM's channel gate over three pools, average, maximum and stochastic, through one shared MLP."""

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        pools = (flat.mean(-1), flat.amax(-1), stochastic_pool(flat, self.training))
        # The three pools lie side by side as a (channels, 3, 1) map, so that the shared MLP runs once.
        stacked = torch.stack(pools, -1).unsqueeze(-1)
        gate = self.expand(F.relu(self.reduce(stacked))).sum(2, keepdim=True)
        return x * torch.sigmoid(gate)


class SpatialAttention(nn.Module):
    """CBAM's spatial gate: the same three pools over channels, then one generic 7x7 convolution."""

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        stochastic = stochastic_pool(x.permute(0, 2, 3, 1), self.training).unsqueeze(1)
        pools = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True), stochastic), 1)
        return x * torch.sigmoid(self.conv(pools))


class CBAM(nn.Sequential):
    """Convolutional block attention (Woo et al. 2018) with the paper's third, stochastic pool."""

    def __init__(self, channels: int) -> None:
        super().__init__(ChannelAttention(channels), SpatialAttention())


class RFBs(nn.Module):
    """RFB-s (Liu et al. 2018): four branches of 1x3 and 3x1 factors, each dilated at a rate of its own.

    A branch sees a square of 3 + 2 * rate pixels a side; their sum is added to the input. The dilated
    convolution is depthwise, as everywhere in this network.
    """

    rates = (1, 2, 3, 5)

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // len(self.rates), 4)
        self.branches = nn.ModuleList(self._branch(channels, inner, rate) for rate in self.rates)
        self.join = nn.Sequential(nn.Conv2d(inner * len(self.rates), channels, 1, bias=False), nn.BatchNorm2d(channels))

    @staticmethod
    def _branch(channels: int, inner: int, rate: int) -> nn.Sequential:
        return nn.Sequential(
            ConvNormReLU(channels, inner, 1),
            nn.Conv2d(inner, inner, (1, 3), padding=(0, 1), bias=False),
            nn.Conv2d(inner, inner, (3, 1), padding=(1, 0), bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            SeparableConv(inner, inner, dilation=rate),
        )

    def forward(self, x: Tensor) -> Tensor:
        joined: Tensor = self.join(torch.cat([branch(x) for branch in self.branches], 1))
        return F.relu(x + joined)


class BandRatios(nn.Module):
    """Normalised bands (N, C, H, W) with the log ratios of neighbouring ones behind them, (N, 2C - 1, H, W).

    Light, shade and haze change bands together and their ratios little, so ratios carry over to new ground.
    A tenth of a band's mean is added to its pixels first, because the ratio of two dark ones is noise.
    """

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.offset: Tensor  # of pixels in standard deviations, so that zero is black and a tenth of the mean
        self.register_buffer("offset", torch.full((1, bands, 1, 1), 2.0))

    def see(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Learn how pixels were normalised: (pixel - mean) / std, for each band."""
        offsets = [1.1 * m / s for m, s in zip(mean, std, strict=True)]
        self.offset.copy_(torch.tensor(offsets).view_as(self.offset))

    def forward(self, x: Tensor) -> Tensor:
        logs = torch.log((x + self.offset).clamp(min=0.02))
        return torch.cat((x, 4 * (logs[:, 1:] - logs[:, :-1])), 1)


def halve(x: Tensor) -> Tensor:
    """Maximum over 2x2, giving ceil(size / 2): keeps the range of its input, so int8 needs no rescaling.

    An odd edge is repeated first, which cannot change a maximum; pooling with `ceil_mode` would say the
    same, but engines disagree about it.
    """
    height, width = x.shape[-2:]
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
    return F.max_pool2d(x, 2)


GATES = (SqueezeExcite, ChannelAttention, SpatialAttention)
