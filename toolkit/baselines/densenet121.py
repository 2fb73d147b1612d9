"""DenseNet-121: Huang et al. 2017, "Densely connected convolutional networks", table 1 with growth 32 (DenseNet-BC).

7,978,856 parameters with 1000 classes. A transition over an odd map repeats its edge, where the paper's code drops
it, so that a map of one pixel stays one.

Small images (up to 32x32): the first convolution's stride is set to 1, then the pooling behind it is dropped, until
the last map has at least 2x2. Least size: 1x1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.baselines.parts import halve_mean, initialise, max_pool, scaled, strides
from toolkit.layers import ConvNormReLU

TASKS = ("classify",)
BLOCKS = (6, 12, 24, 16)
BOTTLENECK = 4  # a layer's 1x1 convolution gives so many times the growth


class NormReLUConv(nn.Module):
    """Batch norm, ReLU, then a convolution without bias that keeps the map's size (section 3)."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(F.relu(self.norm(x)))
        return result


class DenseLayer(nn.Module):
    """Adds `growth` channels to what it is given."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.new = nn.Sequential(
            NormReLUConv(inputs, BOTTLENECK * growth, 1), NormReLUConv(BOTTLENECK * growth, growth, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.new(x)), 1)


class Transition(nn.Module):
    """Half the channels, half the size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.narrow = NormReLUConv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return halve_mean(self.narrow(x))


class DenseNet121(nn.Module):
    """Input: float (N, bands, H, W). Output: logits (N, classes)."""

    def __init__(self, bands: int, size: int, classes: int, width: float) -> None:
        super().__init__()
        first, second, *_ = strides(size)
        growth = scaled(32, width)
        channels = scaled(64, width)
        layers: list[nn.Module] = [ConvNormReLU(bands, channels, 7, first), max_pool(second)]
        for level, blocks in enumerate(BLOCKS):
            if level:
                layers.append(Transition(channels, channels // 2))
                channels //= 2
            for _ in range(blocks):
                layers.append(DenseLayer(channels, growth))
                channels += growth
        self.features = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels)
        self.logits = nn.Linear(channels, classes)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.logits(F.relu(self.norm(self.features(image))).mean((2, 3)))
        return logits


def build(task: str, bands: int, size: int, classes: int, width: float) -> nn.Module:
    """See `toolkit.baselines.make`."""
    return DenseNet121(bands, size, classes, width)
