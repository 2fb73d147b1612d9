"""GoogLeNet: Szegedy et al. 2015, "Going deeper with convolutions", table 1, without its auxiliary heads.

As the weights in common use have it: batch norm after each convolution and no biases, and a 3x3 kernel where table 1
has 5x5 in an inception block; 6,624,904 parameters with 1000 classes. Poolings are padded by 1 where the paper rounds
up; the maps have the same sizes, 112, 56, 28, 14 and 7 from 224x224.

Small images (up to 32x32): the first convolution's stride is set to 1, then the first pooling is dropped, until the
last map has at least 2x2. Least size: 1x1.
"""

import torch
from torch import Tensor, nn

from toolkit.baselines.parts import initialise, max_pool, scaled, strides
from toolkit.layers import ConvNormReLU

TASKS = ("classify",)

# Outputs of a block's branches: 1x1; 1x1 then 3x3; 1x1 then "5x5"; after the pooling. Rows 3a to 5b of table 1.
Row = tuple[int, int, int, int, int, int]
STAGES: tuple[tuple[Row, ...], ...] = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


class Inception(nn.Module):
    """Four branches side by side (figure 2b), concatenated."""

    def __init__(self, inputs: int, row: Row, width: float) -> None:
        super().__init__()
        one, three_in, three, five_in, five, pooled = (scaled(channels, width) for channels in row)
        self.branches = nn.ModuleList(
            (
                ConvNormReLU(inputs, one, 1),
                nn.Sequential(ConvNormReLU(inputs, three_in, 1), ConvNormReLU(three_in, three)),
                nn.Sequential(ConvNormReLU(inputs, five_in, 1), ConvNormReLU(five_in, five)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvNormReLU(inputs, pooled, 1)),
            )
        )
        self.outputs = one + three + five + pooled

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class GoogLeNet(nn.Module):
    """Input: float (N, bands, H, W). Output: logits (N, classes)."""

    def __init__(self, bands: int, size: int, classes: int, width: float) -> None:
        super().__init__()
        first, second, *others = strides(size)
        narrow, wide = scaled(64, width), scaled(192, width)
        layers: list[nn.Module] = [
            ConvNormReLU(bands, narrow, 7, first),
            max_pool(second),
            ConvNormReLU(narrow, narrow, 1),
            ConvNormReLU(narrow, wide),
        ]
        channels = wide
        for stride, rows in zip(others, STAGES, strict=True):
            layers.append(max_pool(stride))
            for row in rows:
                block = Inception(channels, row, width)
                layers.append(block)
                channels = block.outputs
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.logits = nn.Linear(channels, classes)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.logits(self.dropout(self.features(image).mean((2, 3))))
        return logits


def build(task: str, bands: int, size: int, classes: int, width: float) -> nn.Module:
    """See `toolkit.baselines.make`."""
    return GoogLeNet(bands, size, classes, width)
