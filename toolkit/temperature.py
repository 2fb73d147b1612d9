"""Temperature: probabilities that mean what they say, because a threshold on them is a safety setting.

A trained network is too sure of itself, and one that learned from balanced draws expects as many cracks as sound
ground. Both are mended by two numbers fitted on images it never learned from: a temperature T (Guo et al. 2017) and a
bias b (Platt 1999), p = sigmoid(logit / T + b). The order of the probabilities stays, so AUC does not change.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from toolkit.checkpoint import Model

LIMIT: Final = 64.0  # logits beyond it are counted as it: their probabilities are 0 or 1 to 27 digits
STEPS: Final = 256  # bins a unit of logit; a probability is off by at most 1 / 2048
COLDEST, HOTTEST = 0.05, 20.0
LEAST: Final = 10  # samples of each label; fewer say nothing of two numbers
FOLD_TOLERANCE: Final = 1e-4  # of the logits' range: what float32 rounds differently when a scale moves into weights

Logits = TypeVar("Logits", Tensor, NDArray[np.float64])


@dataclass(frozen=True)
class Temperature:
    """p = sigmoid(logit / value + bias); the default changes nothing."""

    value: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0 and math.isfinite(self.bias)):
            raise ValueError(f"temperature {self.value} with bias {self.bias}; T must be above 0 and both finite")

    @property
    def changes(self) -> bool:
        return (self.value, self.bias) != (1.0, 0.0)

    def apply(self, logits: Logits) -> Logits:
        """Logits of any shape as those of meant probabilities."""
        return logits / self.value + self.bias if self.changes else logits

    def move(self, threshold: float, old: "Temperature") -> float:
        """The threshold here that calls the same samples positive as `threshold` did under `old`."""
        inside = min(max(threshold, 1e-12), 1 - 1e-12)
        logit = (math.log(inside / (1 - inside)) - old.bias) * old.value
        # Never 0 or 1: everything, or nothing, would be called positive.
        return min(max(_sigmoid(logit / self.value + self.bias), 1e-6), 1 - 1e-6)


UNTEMPERED: Final = Temperature()


class LogitCounts:
    """How often each logit went with each label; memory does not grow with the number of pixels."""

    def __init__(self) -> None:
        self._counts = np.zeros((2, int(2 * LIMIT * STEPS) + 1), np.int64)

    def add(self, labels: ArrayLike, logits: ArrayLike) -> None:
        """Count `logits` with as many `labels` of 0 and 1, of any shape. Raises ValueError for NaN or infinity."""
        values = np.asarray(logits, np.float32).ravel()
        truth = np.asarray(labels).ravel() > 0
        if values.shape != truth.shape:
            raise ValueError(f"{truth.size} labels for {values.size} logits")
        if not np.isfinite(values).all():
            raise ValueError("a logit is NaN or infinite")
        index = np.rint((values.clip(-LIMIT, LIMIT) + np.float32(LIMIT)) * STEPS).astype(np.int64)
        for label in (0, 1):
            self._counts[label] += np.bincount(index[truth == label], minlength=self._counts.shape[1])

    def seen(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Distinct logits, low to high, with how many negatives and positives have each."""
        there = np.flatnonzero(self._counts.sum(0))
        return there / STEPS - LIMIT, self._counts[0, there], self._counts[1, there]


def fit(counts: LogitCounts, bias: bool = True) -> Temperature:
    """The temperature, and bias unless it is not wanted, that make the counted labels likeliest.

    float64 and deterministic: for each temperature of a golden-section search, the one best bias. The likelihood is
    concave in (1 / T, b), so there is one summit. Labels are softened as Platt (1999) does, which keeps T finite
    where they can be separated. Fewer than LEAST of either label change nothing.
    """
    logits, negative, positive = counts.seen()
    no, yes = int(negative.sum()), int(positive.sum())
    if min(no, yes) < LEAST:
        return Temperature()
    total = (negative + positive).astype(np.float64)
    hits = positive * ((yes + 1) / (yes + 2)) + negative * (1 / (no + 2))

    def best_bias(slope: float) -> float:
        low, high = -2 * LIMIT / COLDEST, 2 * LIMIT / COLDEST
        while high - low > 1e-9:
            middle = (low + high) / 2
            expected = float((total * _sigmoids(slope * logits + middle)).sum())
            low, high = (middle, high) if expected < hits.sum() else (low, middle)
        return (low + high) / 2

    def cost(log_temperature: float) -> float:
        slope = math.exp(-log_temperature)
        z = slope * logits + (best_bias(slope) if bias else 0.0)
        return float((total * np.logaddexp(0, z) - hits * z).sum())

    value = math.exp(_golden(cost, math.log(COLDEST), math.log(HOTTEST)))
    return Temperature(round(value, 6), round(best_bias(1 / value), 6) if bias else 0.0)


def _golden(cost: Callable[[float], float], low: float, high: float, width: float = 1e-7) -> float:
    """Where `cost`, which falls and then rises, is least: golden-section search."""
    part = (math.sqrt(5) - 1) / 2
    left, right = high - part * (high - low), low + part * (high - low)
    at_left, at_right = cost(left), cost(right)
    while high - low > width:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - part * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + part * (high - low)
            at_right = cost(right)
    return (low + high) / 2


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _sigmoids(x: NDArray[np.float64]) -> NDArray[np.float64]:
    small = np.exp(-np.abs(x))
    result: NDArray[np.float64] = np.where(x >= 0, 1, small) / (1 + small)
    return result


def fold(model: "Model", network: nn.Module) -> "tuple[Model, nn.Module]":
    """`model` without temperature and a copy of `network` whose last layer has it in its weights: it costs nothing.

    A scale and an offset of logits are a scale of the last layer's weights and bias. That the network ends in such a
    layer is tried, not assumed: where the copy's logits are not the scaled ones, both come back as they were, and
    the exported graph multiplies. int8 is not touched either: each channel of weights has a scale of its own.
    """
    from toolkit.models import example

    if not model.tempering.changes:
        return model, network
    draw = torch.Generator().manual_seed(0)
    inputs = tuple(torch.randn(x.shape, generator=draw) for x in example(model))
    copied = copy.deepcopy(network).eval()
    ran: list[nn.Conv2d | nn.ConvTranspose2d | nn.Linear] = []
    hooks = [
        layer.register_forward_hook(lambda module, *_: ran.append(module))
        for layer in copied.modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    with torch.no_grad():
        wanted = model.tempering.apply(copied(*inputs))
        for hook in hooks:
            hook.remove()
        if not ran:
            return model, network
        _scale(ran[-1], model.tempering)
        off = (copied(*inputs) - wanted).abs().max()
        span = 1 + wanted.abs().max()
    if not float(off) <= FOLD_TOLERANCE * float(span):
        return model, network
    return replace(model, temperature=1.0, bias=0.0), copied


def _scale(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, temperature: Temperature) -> None:
    layer.weight.div_(temperature.value)
    if layer.bias is None:
        outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        layer.bias = nn.Parameter(torch.zeros(outputs))
    layer.bias.div_(temperature.value).add_(temperature.bias)
