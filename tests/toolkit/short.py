"""CrackNet with every kind of layer but few of them, because the LiteRT converter takes long for many."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from toolkit.checkpoint import Model
from toolkit.export import tflite
from toolkit.network import CrackNet, NetworkConfig

CONFIGS = {
    "classify": NetworkConfig("classify", bands=13, width=8, growth=4, sensors=2, slice_size=24),
    "segment": NetworkConfig("segment", bands=3, width=8, growth=4, slice_size=33),
}


class Short(CrackNet):
    """One dense layer at each of two scales instead of eight at three."""

    groups = (1, 1)  # type: ignore[assignment]


@lru_cache
def short(task: str) -> tuple[Model, nn.Module]:
    """A network of seeded weights, its logits spread by 2 over `pictures`; uint16 for `classify`, uint8 else."""
    config = CONFIGS[task]
    torch.manual_seed(4)
    network = Short(config.bands, config.task, config.width, config.growth, config.sensors)
    dtype, full = ("uint16", 10_000.0) if task == "classify" else ("uint8", 255.0)
    rng = np.random.default_rng(4)
    mean = tuple(float(x) for x in rng.uniform(0.4, 0.6, config.bands) * full)
    std = tuple(float(x) for x in rng.uniform(0.2, 0.4, config.bands) * full)
    model = Model(f"short-{task}", config, mean, std, dtype)
    images = torch.from_numpy(np.stack(pictures(model, 16)).astype(np.float32)).movedim(-1, 1)
    images = (images - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)
    features = (torch.rand(16, config.sensors),) if config.sensors else ()
    last = network.head.logit if task == "classify" else network.head.logits
    with torch.no_grad():
        for _ in range(20):  # gives the batch norms statistics of their own
            network(images, *features)
        network.eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[::3] *= -0.5  # a folded scale may be negative
        logits = network(images, *features)
        last.weight.mul_(2 / logits.std())
        last.bias.sub_(logits.mean()).mul_(2 / logits.std())
    return model, network


def pictures(model: Model, count: int, seed: int = 0) -> list[NDArray[Any]]:
    """Seeded images (H, W, C) of the model's dtype: blobs of every brightness under fine grain."""
    config, full = model.network, 10_000 if model.dtype == "uint16" else 255
    rng = np.random.default_rng(seed)
    side = config.slice_size
    made = []
    for _ in range(count):
        coarse = rng.uniform(0, 1, (-(-side // 8), -(-side // 8), config.bands)) ** rng.uniform(0.3, 3)
        values = coarse.repeat(8, 0).repeat(8, 1)[:side, :side] + rng.normal(0, 0.05, (side, side, config.bands))
        made.append((values.clip(0, 1) * full).astype(model.dtype))
    return made


@lru_cache
def exported(task: str) -> bytes:
    """The float .tflite of `short(task)`, converted once for all tests."""
    return tflite.export(*short(task))
