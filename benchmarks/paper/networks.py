"""The paper's networks by name, each as what its task asks for: a classifier, a map of pixels, or boxes."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.paper.budgets import Budget
from benchmarks.paper.cells import Cell
from toolkit import baselines
from toolkit.baselines.ssd300 import SSD300
from toolkit.network import PRESETS, NetworkConfig, build_network

# As the paper's tables spell them, in the order of table 5.
TITLES = {
    "alexnet": "AlexNet",
    "vgg16": "VGG-16",
    "vgg19": "VGG-19",
    "googlenet": "GoogLeNet",
    "resnet50": "ResNet-50",
    "ssd300": "SSD300",
    "densenet121": "DenseNet-121",
    "mobilenetv2": "MobileNetV2",
    "cracknet": "ours",
    "rnn": "RNN",
    "unet": "U-Net",
}
TABLE5 = tuple(TITLES)[:9]
CLASSIFIERS = tuple(name for name in TABLE5 if name != "ssd300")
SSD_SIDE = 300


class Centre(nn.Module):
    """A network of pixels as a classifier of slices: the logit (N, 1) of the centre pixel."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        logit: Tensor = self.network(image)[:, :, height // 2, width // 2]
        return logit


class Detector(nn.Module):
    """SSD over images of any size, scaled to the 300x300 it was published for."""

    def __init__(self, network: SSD300) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        scaled = F.interpolate(image, size=(SSD_SIDE, SSD_SIDE), mode="bilinear", antialias=True)
        found: tuple[Tensor, Tensor] = self.network(scaled)
        return found


def make(cell: Cell, bands: int, budget: Budget) -> nn.Module:
    """The cell's network with fresh weights. Raises HighwallError where it cannot take the task or the size."""
    made: nn.Module = _make(cell, bands, budget).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return made


def _make(cell: Cell, bands: int, budget: Budget) -> nn.Module:
    width = budget.multiplier
    task = "segment" if cell.task == "photographs" else "classify"
    if cell.network == "ssd300":
        found = baselines.make("ssd300", "detect" if task == "segment" else task, bands, SSD_SIDE, width=width)
        assert isinstance(found, SSD300)
        return Detector(found)
    if cell.network == "unet" and task == "classify":
        return Centre(baselines.make("unet", "segment", bands, cell.size, width=width))
    if cell.network == "cracknet":
        return build_network(ours(task, bands, cell.size, width))
    return build_network(NetworkConfig(task, bands, 0, 0, 0, cell.size, cell.network, width))  # type: ignore[arg-type]


def ours(task: str, bands: int, size: int, multiplier: float = 1.0) -> NetworkConfig:
    """The shipped preset of the task; a multiplier narrows it, though not below what has a gate in every layer."""
    shipped = PRESETS["crack" if task == "segment" else "mine"]
    width, growth = max(8, round(shipped.width * multiplier)), max(4, round(shipped.growth * multiplier))
    return replace(shipped, bands=bands, slice_size=size, width=width, growth=growth)
