"""AlexNet in one column: Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks".

The layers are those of Krizhevsky, Sutskever and Hinton 2012, section 3.5 and figure 2, with that paper's channels
(64, 192, 384, 256, 256) and no local response normalisation; 61,100,840 parameters at 224x224, 1000 classes.

Small images (under 63x63): the first convolution's stride goes from 4 to 2, then to 1, with padding 5; then the first
pooling is dropped, then the second, until the last map has at least 1x1. Least size: 3x3. The first linear layer
reads the map as it is, up to 6x6, so it has fewer weights there; larger maps are averaged to 6x6.
"""

from torch import Tensor, nn

from targets.runtime.errors import HighwallError
from toolkit.baselines.parts import classifier_head, initialise, pool_to, scaled

TASKS = ("classify",)
STEMS = ((4, 0), (2, 0), (1, 0), (1, 1), (1, 2))  # stride of the first convolution, poolings dropped
MAP = 6  # side of the last map at 224x224


class AlexNet(nn.Module):
    """Input: float (N, bands, size, size). Output: logits (N, classes)."""

    def __init__(self, bands: int, size: int, classes: int, width: float) -> None:
        super().__init__()
        stride, dropped, side = _stem(size)
        a, b, c, d, e = (scaled(channels, width) for channels in (64, 192, 384, 256, 256))
        pools = [nn.Identity() if i < dropped else nn.MaxPool2d(3, 2) for i in range(3)]
        self.features = nn.Sequential(
            nn.Conv2d(bands, a, 11, stride, _padding(stride)),
            nn.ReLU(),
            pools[0],
            nn.Conv2d(a, b, 5, padding=2),
            nn.ReLU(),
            pools[1],
            nn.Conv2d(b, c, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(c, d, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(d, e, 3, padding=1),
            nn.ReLU(),
            pools[2],
            pool_to(side, MAP),
        )
        self.head = classifier_head(e * min(side, MAP) ** 2, scaled(4096, width), classes)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(image).flatten(1))
        return logits


def _padding(stride: int) -> int:
    return 2 if stride == 4 else 5


def _stem(size: int) -> tuple[int, int, int]:
    """The first of STEMS that leaves a map, and that map's side."""
    for stride, dropped in STEMS:
        side = (size + 2 * _padding(stride) - 11) // stride + 1
        for _ in range(3 - dropped):
            side = (side - 3) // 2 + 1
        if side >= 1:
            return stride, dropped, side
    raise HighwallError(f"alexnet cannot take {size}x{size}: its last pooling needs 3x3; give at least 3x3")


def build(task: str, bands: int, size: int, classes: int, width: float) -> nn.Module:
    """See `toolkit.baselines.make`."""
    return AlexNet(bands, size, classes, width)
