"""U-Net: Ronneberger, Fischer and Brox 2015, "Convolutional networks for biomedical image segmentation", figure 1.

64 to 1024 channels over five levels, two 3x3 convolutions a level, 2x2 transposed convolutions upwards. As in common
use, convolutions are padded and followed by batch norm, so that the output is as large as the input: 31,037,633
parameters with 3 bands and 1 class, 31,037,698 with 2 classes. (Figure 1 itself, unpadded and with biases instead of
norms, has 31.03 M too.) The width factor makes the narrow ones.

Any size from 1x1, with the same layers: an odd map is halved upwards, and what comes back up is cut to its size.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from toolkit.baselines.parts import initialise, scaled
from toolkit.layers import ConvNormReLU, halve

TASKS = ("segment",)
CHANNELS = (64, 128, 256, 512, 1024)


def _level(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(ConvNormReLU(inputs, outputs), ConvNormReLU(outputs, outputs))


class UNet(nn.Module):
    """Input: float (N, bands, H, W). Output: logits (N, classes, H, W)."""

    def __init__(self, bands: int, classes: int, width: float) -> None:
        super().__init__()
        channels = [scaled(count, width) for count in CHANNELS]
        pairs = list(pairwise(channels))  # (finer, coarser)
        self.down = nn.ModuleList(_level(a, b) for a, b in [(bands, channels[0]), *pairs])
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, 2) for fine, coarse in pairs)
        self.join = nn.ModuleList(_level(2 * fine, fine) for fine, _ in pairs)
        self.logits = nn.Conv2d(channels[0], classes, 1)
        initialise(self)
        nn.init.normal_(self.logits.weight, std=0.01)

    def forward(self, image: Tensor) -> Tensor:
        maps: list[Tensor] = []
        x = image
        for level in self.down:
            x = level(halve(x) if maps else x)
            maps.append(x)
        for i in reversed(range(len(self.up))):
            height, width = maps[i].shape[-2:]
            x = self.join[i](torch.cat((maps[i], self.up[i](x)[..., :height, :width]), 1))
        logits: Tensor = self.logits(x)
        return logits


def build(task: str, bands: int, size: int, classes: int, width: float) -> nn.Module:
    """See `toolkit.baselines.make`."""
    return UNet(bands, classes, width)
