"""VGG-19: column E of Simonyan and Zisserman 2015, table 1; vgg.py says what it does with small images."""

from torch import nn

from toolkit.baselines.vgg import VGG

TASKS = ("classify",)


def build(task: str, bands: int, size: int, classes: int, width: float) -> nn.Module:
    """See `toolkit.baselines.make`."""
    return VGG(19, bands, size, classes, width)
