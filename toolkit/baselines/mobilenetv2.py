"""MobileNetV2: Sandler et al. 2018, "MobileNetV2: inverted residuals and linear bottlenecks", tables 1 and 2.

3,504,872 parameters with 1000 classes. The width factor is the paper's: channels are rounded to eights, and the last
1280 are not narrowed.

Small images (up to 32x32): the first convolution's stride is set to 1, then that of the first stage that halves, until
the last map has at least 2x2. Least size: 1x1.
"""

from torch import Tensor, nn

from toolkit.baselines.parts import initialise, strides

TASKS = ("classify",)

# Expansion t, outputs c, blocks n, whether the first block halves: table 2.
STAGES = (
    (1, 16, 1, False),
    (6, 24, 2, True),
    (6, 32, 3, True),
    (6, 64, 4, True),
    (6, 96, 3, False),
    (6, 160, 3, True),
    (6, 320, 1, False),
)


def eights(channels: float) -> int:
    """The nearest multiple of 8, at least 8, and never less than nine tenths of `channels`."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Expand by 1x1, depthwise 3x3, project by 1x1 without activation; added to its input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            *([_conv(inputs, inner, 1)] if expansion > 1 else []),
            _conv(inner, inner, 3, stride, groups=inner),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return x + result if self.adds else result


class MobileNetV2(nn.Module):
    """Input: float (N, bands, H, W). Output: logits (N, classes)."""

    def __init__(self, bands: int, size: int, classes: int, width: float) -> None:
        super().__init__()
        steps = iter(strides(size))
        channels = eights(32 * width)
        layers: list[nn.Module] = [_conv(bands, channels, 3, next(steps))]
        for expansion, outputs, blocks, halves in STAGES:
            stride = next(steps) if halves else 1
            for index in range(blocks):
                layers.append(InvertedResidual(channels, eights(outputs * width), 1 if index else stride, expansion))
                channels = eights(outputs * width)
        last = eights(1280 * max(1.0, width))
        self.features = nn.Sequential(*layers, _conv(channels, last, 1))
        self.dropout = nn.Dropout(0.2)
        self.logits = nn.Linear(last, classes)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.logits(self.dropout(self.features(image).mean((2, 3))))
        return logits


def build(task: str, bands: int, size: int, classes: int, width: float) -> nn.Module:
    """See `toolkit.baselines.make`."""
    return MobileNetV2(bands, size, classes, width)
