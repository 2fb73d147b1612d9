"""VGG: Simonyan and Zisserman 2015, "Very deep convolutional networks for large-scale image recognition", table 1.

`vgg16` is its column D, 138,357,544 parameters at 224x224 with 1000 classes; `vgg19` column E, 143,667,240.

Small images (under 32x32): the first pooling is dropped, then the second, until the last map has at least 1x1. The
other three stay, because without them it would not be VGG, so the least size is 8x8. The first linear layer reads
the map as it is, up to 7x7, so it has fewer weights there; larger maps are averaged to 7x7.
"""

from torch import Tensor, nn

from targets.runtime.errors import HighwallError
from toolkit.baselines.parts import classifier_head, initialise, pool_to, scaled

CHANNELS = (64, 128, 256, 512, 512)
DEPTHS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # 3x3 convolutions in front of each pooling
UNDOABLE = 2
LEAST = 2 ** (len(CHANNELS) - UNDOABLE)
MAP = 7  # side of the last map at 224x224


def convolutions(inputs: int, outputs: int, count: int) -> list[nn.Module]:
    """`count` 3x3 convolutions, each with its ReLU."""
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        inputs = outputs
    return layers


class VGG(nn.Module):
    """Input: float (N, bands, size, size). Output: logits (N, classes)."""

    def __init__(self, depth: int, bands: int, size: int, classes: int, width: float) -> None:
        super().__init__()
        if size < LEAST:
            raise HighwallError(
                f"vgg{depth} cannot take {size}x{size}: three of its five poolings halve whatever they are given; "
                f"give at least {LEAST}x{LEAST}, or choose another network"
            )
        dropped = next(n for n in range(UNDOABLE + 1) if size >> (len(CHANNELS) - n))
        side = size >> (len(CHANNELS) - dropped)
        layers: list[nn.Module] = []
        inputs = bands
        for level, count in enumerate(DEPTHS[depth]):
            outputs = scaled(CHANNELS[level], width)
            layers += convolutions(inputs, outputs, count)
            if level >= dropped:
                layers.append(nn.MaxPool2d(2))
            inputs = outputs
        self.features = nn.Sequential(*layers, pool_to(side, MAP))
        self.head = classifier_head(inputs * min(side, MAP) ** 2, scaled(4096, width), classes)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(image).flatten(1))
        return logits
