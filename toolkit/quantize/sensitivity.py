"""Sensitivity: how much noise each layer's quantization alone brings into the network's answer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from targets.runtime import golden
from targets.runtime.manifest import InputSpec
from toolkit.checkpoint import Model
from toolkit.data.batches import Normalisation, to_tensor
from toolkit.quantize.simulate import quantizable, simulated

IMAGES = {"classify": 32, "segment": 4}
KEPT = 1 / 8  # of the layers stay float in a mixed recipe


@dataclass(frozen=True)
class Sensitivity:
    """One layer: signal-to-noise of the logits, in dB, when that layer alone is at int8 (inf: no noise)."""

    layer: str
    kind: str
    weights: int
    sqnr_db: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: None stands for it."""
        return asdict(self) | {"sqnr_db": None if math.isinf(self.sqnr_db) else round(self.sqnr_db, 2)}


def measure(
    model: Model, network: nn.Module, images: NDArray[Any], progress: Callable[[int, int], None] = lambda *_: None
) -> list[Sensitivity]:
    """Every quantizable layer of `network`, most sensitive first, over `images` (N, H, W, C).

    Signal is the variance of the float logits, noise the mean square of their change. Rounding is simulated
    in torch (see `toolkit.quantize.simulate`), so the figures hold for any engine that works this way.
    """
    chosen = images[:: max(1, len(images) // IMAGES[model.network.task])][: IMAGES[model.network.task]]
    inputs = _inputs(model, chosen)
    layers = quantizable(network)
    results = []
    with torch.inference_mode():
        reference = _answers(network, inputs)
        for done, (name, module) in enumerate(layers.items(), 1):
            with simulated([module]):
                noise = _answers(network, inputs) - reference
            results.append(Sensitivity(name, _kind(module), _weights(module), _decibels(reference, noise)))
            progress(done, len(layers))
    return sorted(results, key=lambda one: (one.sqnr_db, one.layer))


def keep_float(ranked: Sequence[Sensitivity]) -> tuple[str, ...]:
    """The layers a mixed recipe leaves in float: the most sensitive eighth, at least one."""
    return tuple(sorted(one.layer for one in ranked[: max(1, round(len(ranked) * KEPT))]))


def table(ranked: Sequence[Sensitivity]) -> str:
    """For people: most sensitive first, a bar for what each stands above the worst."""
    if not ranked:
        return "no layer of this network can be quantized"
    width = max(len(one.layer) for one in ranked)
    lines = [f"{'layer':<{width}}  {'kind':<12} {'weights':>8} {'SQNR dB':>8}"]
    for one in ranked:
        figure = "no noise" if math.isinf(one.sqnr_db) else f"{one.sqnr_db:8.1f}"
        lines.append(f"{one.layer:<{width}}  {one.kind:<12} {one.weights:>8,} {figure}")
    return "\n".join(lines)


def _inputs(model: Model, images: NDArray[Any]) -> list[tuple[Tensor, ...]]:
    pixels = Normalisation(model.mean, model.std).apply(to_tensor(images))
    if not model.network.sensors:
        size = 16 if model.network.task == "classify" else 1
        return [(pixels[i : i + size],) for i in range(0, len(pixels), size)]
    spec = InputSpec(1, 1, model.network.bands, "uint8", sensors=model.network.sensors)
    features = [golden.sensor_features(index, spec) for index in range(len(images))]
    return [(pixels[i : i + 1], torch.from_numpy(x).unsqueeze(0)) for i, x in enumerate(features) if x is not None]


def _answers(network: nn.Module, inputs: list[tuple[Tensor, ...]]) -> NDArray[np.float64]:
    return np.concatenate([network(*each).double().numpy().ravel() for each in inputs])


def _decibels(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> float:
    power, lost = float(signal.var()), float((noise**2).mean())
    if lost == 0:
        return math.inf
    return 10 * math.log10(max(power, 1e-300) / lost)


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        if module.groups == module.in_channels and module.groups > 1:
            return "depthwise"
        return "pointwise" if module.kernel_size == (1, 1) else "convolution"
    return "linear"


def _weights(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.numel()
