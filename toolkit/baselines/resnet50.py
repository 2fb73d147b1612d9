"""ResNet-50: He et al. 2016, "Deep residual learning for image recognition", table 1 and figure 5.

A block that halves does so in its 3x3 convolution, as the weights in common use have it, not in its first 1x1;
25,557,032 parameters with 1000 classes, either way.

Small images (up to 32x32): the first convolution's stride is set to 1, then the pooling behind it is dropped, until
the last map has at least 2x2. Least size: 1x1.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.baselines.parts import initialise, max_pool, scaled, strides
from toolkit.layers import ConvNormReLU

TASKS = ("classify",)
BLOCKS = (3, 4, 6, 3)
EXPANSION = 4


def _conv_norm(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 added to the input, which a 1x1 convolution fits where its shape differs."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * inner
        self.residual = nn.Sequential(
            ConvNormReLU(inputs, inner, 1), ConvNormReLU(inner, inner, 3, stride), _conv_norm(inner, outputs)
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _conv_norm(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))


class ResNet50(nn.Module):
    """Input: float (N, bands, H, W). Output: logits (N, classes)."""

    def __init__(self, bands: int, size: int, classes: int, width: float) -> None:
        super().__init__()
        first, second, *others = strides(size)
        channels = scaled(64, width)
        layers: list[nn.Module] = [ConvNormReLU(bands, channels, 7, first), max_pool(second)]
        for level, (blocks, stride) in enumerate(zip(BLOCKS, (1, *others), strict=True)):
            inner = scaled(64 * 2**level, width)
            for index in range(blocks):
                layers.append(Bottleneck(channels, inner, 1 if index else stride))
                channels = EXPANSION * inner
        self.features = nn.Sequential(*layers)
        self.logits = nn.Linear(channels, classes)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.logits(self.features(image).mean((2, 3)))
        return logits


def build(task: str, bands: int, size: int, classes: int, width: float) -> nn.Module:
    """See `toolkit.baselines.make`."""
    return ResNet50(bands, size, classes, width)
