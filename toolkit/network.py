"""CrackNet: the lightweight, densely connected, attention-fused network of the paper's section 3.2."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from targets.runtime.errors import HighwallError
from toolkit import baselines
from toolkit.layers import CBAM, BandRatios, ConvNormReLU, RFBs, SeparableConv, SqueezeExcite, halve

Task = Literal["classify", "segment"]


@dataclass(frozen=True)
class NetworkConfig:
    """All that decides the network's shape; stored in every checkpoint."""

    task: Task
    bands: int
    width: int
    growth: int
    sensors: int = 0
    slice_size: int = 48  # pixels a side; training and export use it, the network itself takes any size
    architecture: str = "cracknet"  # or a baseline's name; those have no growth, and a width multiplier
    multiplier: float = 1.0
    ratios: bool = False  # the network also sees log ratios of neighbouring bands
    squeeze: int = 8  # channels for each one behind squeeze-and-excitation's bottleneck


PRESETS: dict[str, NetworkConfig] = {
    "mine": NetworkConfig("classify", bands=3, width=32, growth=24, slice_size=48, ratios=True),
    "crack": NetworkConfig("segment", bands=3, width=48, growth=32, slice_size=448, squeeze=16),
}


def preset(name: str, **changes: int) -> NetworkConfig:
    """The preset called `name` with some of its fields changed."""
    if name not in PRESETS:
        raise HighwallError(f"no preset is called {name!r}; known presets: {', '.join(sorted(PRESETS))}")
    return replace(PRESETS[name], **changes)  # type: ignore[arg-type]


class DenseStage(nn.Module):
    """Layers of one scale: each reads all earlier outputs, concatenated, and adds `growth` channels."""

    def __init__(self, inputs: int, growth: int, layers: int, squeeze: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SeparableConv(inputs + i * growth, growth) for i in range(layers))
        self.outputs = inputs + layers * growth
        self.attention = SqueezeExcite(self.outputs, squeeze)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat((x, layer(x)), 1)
        gated: Tensor = self.attention(x)
        return gated


class Fusion(nn.Module):
    """Two-way path aggregation: attention on each level, RFB-s on the deeper ones, top-down, bottom-up.

    Takes maps from fine to coarse, each half the size of the one before; gives as many, `width` channels each.
    """

    def __init__(self, levels: list[int], width: int) -> None:
        super().__init__()
        # The levels are narrowed to the width they are fused at before attention looks at them: pooling
        # is memory traffic, which costs a board more than its few MACs say.
        self.lateral = nn.ModuleList(
            nn.Sequential(ConvNormReLU(channels, width, 1), CBAM(width)) for channels in levels
        )
        self.context = nn.ModuleList(RFBs(width) for _ in levels[1:])
        self.top_down = nn.ModuleList(SeparableConv(width, width) for _ in levels[1:])
        self.bottom_up = nn.ModuleList(SeparableConv(width, width) for _ in levels[1:])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        maps[1:] = [context(x) for context, x in zip(self.context, maps[1:], strict=True)]
        for i in reversed(range(len(maps) - 1)):
            up = F.interpolate(maps[i + 1], size=maps[i].shape[-2:], mode="nearest")
            maps[i] = self.top_down[i](maps[i] + up)
        for i in range(1, len(maps)):
            maps[i] = self.bottom_up[i - 1](maps[i] + halve(maps[i - 1]))
        return maps


class ClassifyHead(nn.Module):
    """One logit a slice from the mean and maximum of every fused level, and from sensor features if any."""

    def __init__(self, levels: int, width: int, sensors: int, hidden: int = 48) -> None:
        super().__init__()
        self.sensor_features = nn.Linear(sensors, 16) if sensors else None
        self.hidden = nn.Linear(2 * levels * width + (16 if sensors else 0), hidden)
        self.dropout = nn.Dropout(0.2)
        self.logit = nn.Linear(hidden, 1)

    def forward(self, maps: list[Tensor], sensors: Tensor | None) -> Tensor:
        features = [pool for x in maps for pool in (x.mean((2, 3)), x.amax((2, 3)))]
        if self.sensor_features is not None:
            if sensors is None:
                raise ValueError("this network was built with sensors; forward() needs their features")
            features.append(F.relu(self.sensor_features(sensors)))
        logit: Tensor = self.logit(self.dropout(F.relu(self.hidden(torch.cat(features, 1)))))
        return logit


class SegmentHead(nn.Module):
    """One logit a pixel: fused levels meet, are shuffled up to half resolution beside the stem, then to the full one.

    What is a crack is known at a quarter of the resolution, where its edge runs at half: sub-pixel channels (Shi et
    al. 2016) cost a board less than a convolution on every pixel.
    """

    def __init__(self, levels: int, width: int, stem: int) -> None:
        super().__init__()
        self.refine = SeparableConv(levels * width, width)
        self.rise = nn.Conv2d(width, 4 * stem, 1)
        self.edge = SeparableConv(2 * stem, stem)
        self.logits = nn.Conv2d(stem, 4, 1)

    def forward(self, maps: list[Tensor], stem: Tensor, size: tuple[int, int]) -> Tensor:
        fine, half = maps[0].shape[-2:], stem.shape[-2:]
        joined = torch.cat(
            [maps[0]] + [F.interpolate(x, size=fine, mode="bilinear", align_corners=False) for x in maps[1:]],
            1,
        )
        risen = F.pixel_shuffle(self.rise(self.refine(joined)), 2)[..., : half[0], : half[1]]
        full = F.pixel_shuffle(self.logits(self.edge(torch.cat((risen, stem), 1))), 2)
        return full[..., : size[0], : size[1]]


class CrackNet(nn.Module):
    """Densely connected depthwise-separable network with attention and two-way multi-scale fusion.

    Input: float (N, bands, H, W), normalised bands; with `sensors=m` also (N, m) sensor features.
    Output: logits, (N, 1) for `classify` (H, W from 3), (N, 1, H, W) for `segment` (H, W from 1).
    """

    groups = (3, 3, 2)  # dense layers at what the stem leaves, a half and a quarter of that

    def __init__(
        self,
        bands: int,
        task: Task,
        width: int,
        growth: int,
        sensors: int = 0,
        ratios: bool = False,
        squeeze: int = 8,
    ) -> None:
        super().__init__()
        if ratios and bands < 2:
            raise ValueError("one band has no ratio to another")
        if task == "segment" and sensors:
            raise ValueError("sensor features join pooled image features; the segment task has none")
        self.task = task
        self.ratios = BandRatios(bands) if ratios else None
        seen = 2 * bands - 1 if ratios else bands
        # A photograph is quartered: at half its size dense layers cost four times as much, and learn less in the same
        # time. A slice has few pixels: quartered too it learns sooner, and says less of ground it has not seen.
        self.stem = nn.Sequential(
            ConvNormReLU(seen, width // 2, stride=1 if task == "classify" else 2),
            ConvNormReLU(width // 2, width, stride=2),
        )
        self.stages = nn.ModuleList()
        channels = width
        for layers in self.groups:
            stage = DenseStage(channels, growth, layers, squeeze)
            self.stages.append(stage)
            channels = stage.outputs
        levels = [stage.outputs for stage in self.stages if isinstance(stage, DenseStage)]
        self.fusion = Fusion(levels, width)
        self.head: ClassifyHead | SegmentHead = (
            ClassifyHead(len(levels), width, sensors)
            if task == "classify"
            else SegmentHead(len(levels), width, width // 2)
        )

    def see(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Learn how pixels are normalised, (pixel - mean) / std for each band; ratios need to know what is black."""
        if self.ratios is not None:
            self.ratios.see(mean, std)

    def forward(self, image: Tensor, sensors: Tensor | None = None) -> Tensor:
        half: Tensor = self.stem[0](image if self.ratios is None else self.ratios(image))
        x = self.stem[1](half)
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(halve(x) if i else x)
            maps.append(x)
        maps = self.fusion(maps)
        if isinstance(self.head, SegmentHead):
            logits: Tensor = self.head(maps, half, (image.shape[-2], image.shape[-1]))
        else:
            logits = self.head(maps, sensors)
        return logits


def build_network(config: NetworkConfig) -> nn.Module:
    """The network of `config` with fresh weights from torch's generator: (N, 1) or (N, 1, H, W) logits.

    Raises HighwallError for an architecture that is not known, or cannot take this task or size.
    """
    if config.architecture == "cracknet":
        return CrackNet(
            config.bands,
            config.task,
            config.width,
            config.growth,
            config.sensors,
            config.ratios,
            config.squeeze,
        )
    if config.sensors:
        raise HighwallError(f"{config.architecture} takes no sensor features; only cracknet joins them")
    return baselines.make(config.architecture, config.task, config.bands, config.slice_size, width=config.multiplier)
