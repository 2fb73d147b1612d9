"""SSD300 with VGG-16: Liu et al. 2016, "SSD: single shot multibox detector", figure 2 and section 3.

VGG-16 as far as conv5_3, its fully connected layers made into dilated convolutions, four more levels, and for each of
six maps a convolution for offsets and one for scores: 8,732 default boxes at 300x300. 26,285,486 parameters with
3 bands and 21 scores (20 classes and background). Its classes are counted without background.

Size: 300 as published; any from 257, where its last two unpadded convolutions still have what they read. Below that
HighwallError.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from targets.runtime.errors import HighwallError
from toolkit.baselines.boxes import default_boxes
from toolkit.baselines.parts import initialise, scaled
from toolkit.baselines.vgg import CHANNELS, DEPTHS, convolutions
from toolkit.layers import halve

TASKS = ("detect",)
LEAST = 257
RATIOS: tuple[tuple[float, ...], ...] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))  # of default boxes, a map each
EXTRA = ((256, 512, 2), (128, 256, 2), (128, 256, 0), (128, 256, 0))  # 1x1, then 3x3; stride 2, or 0: unpadded


class UnitNorm(nn.Module):
    """Each position's vector scaled to length 20, then a factor a channel, which is learnt (section 3.1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), 20.0))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.weight.view(1, -1, 1, 1)


class SSD300(nn.Module):
    """Input: float (N, bands, size, size). Output: offsets (N, D, 4) and scores (N, D, classes + 1), logits.

    `defaults` (D, 4) are its default boxes; `toolkit.baselines.boxes` makes targets, a loss and boxes of them.
    """

    defaults: Tensor

    def __init__(self, bands: int, size: int, classes: int, width: float) -> None:
        super().__init__()
        if size < LEAST:
            raise HighwallError(
                f"ssd300 cannot take {size}x{size}: its last map would be empty; give at least {LEAST}x{LEAST}"
            )
        self.scores = classes + 1
        channels = [bands, *(scaled(count, width) for count in CHANNELS)]
        self.levels = nn.ModuleList(
            nn.Sequential(*convolutions(a, b, count))
            for (a, b), count in zip(pairwise(channels), DEPTHS[16], strict=True)
        )
        self.norm = UnitNorm(channels[4])
        wide = scaled(1024, width)
        self.bridge = nn.Sequential(
            nn.MaxPool2d(3, 1, 1),
            nn.Conv2d(channels[5], wide, 3, padding=6, dilation=6),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 1),
            nn.ReLU(),
        )
        self.extra = nn.ModuleList()
        sources = [channels[4], wide]
        for inner, outputs, stride in EXTRA:
            narrow, outer = scaled(inner, width), scaled(outputs, width)
            last = nn.Conv2d(narrow, outer, 3, max(stride, 1), padding=stride // 2)
            self.extra.append(nn.Sequential(nn.Conv2d(sources[-1], narrow, 1), nn.ReLU(), last, nn.ReLU()))
            sources.append(outer)
        boxes = [2 + 2 * len(beside) for beside in RATIOS]
        heads = list(zip(sources, boxes, strict=True))
        self.offset_heads = nn.ModuleList(nn.Conv2d(source, 4 * count, 3, padding=1) for source, count in heads)
        self.score_heads = nn.ModuleList(
            nn.Conv2d(source, self.scores * count, 3, padding=1) for source, count in heads
        )
        initialise(self)
        for head in (*self.offset_heads, *self.score_heads):  # at first, boxes near the default ones, and no opinion
            assert isinstance(head, nn.Conv2d)
            nn.init.normal_(head.weight, std=0.01)
        self.register_buffer("defaults", default_boxes(map_sides(size), RATIOS), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        maps = self._maps(image)
        offsets = [_per_box(head(x), 4) for head, x in zip(self.offset_heads, maps, strict=True)]
        scores = [_per_box(head(x), self.scores) for head, x in zip(self.score_heads, maps, strict=True)]
        return torch.cat(offsets, 1), torch.cat(scores, 1)

    def _maps(self, image: Tensor) -> list[Tensor]:
        """The six maps that boxes are read from, fine to coarse."""
        x = image
        maps: list[Tensor] = []
        for index, level in enumerate(self.levels):
            x = level(halve(x) if index else x)
            if index == 3:
                maps.append(self.norm(x))
        x = self.bridge(x)
        maps.append(x)
        for level in self.extra:
            x = level(x)
            maps.append(x)
        return maps


def _per_box(x: Tensor, numbers: int) -> Tensor:
    """(N, boxes * numbers, H, W) to (N, H * W * boxes, numbers): cells row by row, as the default boxes are."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, numbers)


def map_sides(size: int) -> tuple[int, ...]:
    """The six maps' sides, fine to coarse, of an image `size` pixels wide: 38, 19, 10, 5, 3, 1 for 300."""
    sides = [-(-size // 8), -(-size // 16)]
    for _, _, stride in EXTRA:
        sides.append(-(-sides[-1] // 2) if stride else sides[-1] - 2)
    return tuple(sides)


def build(task: str, bands: int, size: int, classes: int, width: float) -> nn.Module:
    """See `toolkit.baselines.make`."""
    return SSD300(bands, size, classes, width)
