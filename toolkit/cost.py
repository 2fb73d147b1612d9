"""What a network costs: parameters, MACs, activation bytes, and equations 2 and 3 for every convolution.

1 MAC is one multiply-accumulate of a convolution, linear or recurrent layer; pooling, gates and adds count none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

Counted = nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.GRU


def generic_cost(kernel: int, maps: int, kernels: int) -> int:
    """Equation 2: k1 = y^2 p q, MACs per output position of a generic convolution.

    `kernel` = y^2, positions of the kernel (9 for 3x3); `maps` = p, output maps; `kernels` = q, input maps.
    """
    return kernel * maps * kernels


def separable_cost(kernel: int, maps: int, kernels: int) -> int:
    """Equation 3: k2 = (y^2 + p) q, the same convolution as depthwise, then pointwise."""
    return (kernel + maps) * kernels


@dataclass(frozen=True)
class LayerCost:
    """One convolution (a depthwise one with the pointwise one behind it), linear or recurrent layer.

    macs: as it is. generic, separable: MACs of the same inputs, outputs and kernel by equations 2 and 3.
    activation_bytes: of the outputs at 4 bytes a number.
    """

    name: str
    kind: str
    kernel: str
    inputs: int
    outputs: int
    positions: int
    parameters: int
    macs: int
    generic: int
    separable: int
    activation_bytes: int


@dataclass(frozen=True)
class Cost:
    """The whole network; `parameters` includes norms. `ratio` = generic / as it is."""

    layers: tuple[LayerCost, ...]
    parameters: int
    macs: int
    generic_macs: int
    activation_bytes: int

    @property
    def ratio(self) -> float:
        return self.generic_macs / self.macs if self.macs else 1.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": round(self.ratio, 4)}


@dataclass(frozen=True)
class _Call:
    """One execution of a layer, as a hook saw it."""

    name: str
    module: Counted
    input: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def positions(self) -> int:
        """Pixels of the output map, rows of a linear layer, steps of a recurrent one."""
        if isinstance(self.module, nn.GRU):  # time is its first axis or its second, and the other is 1
            return prod(self.output[:-1])
        return prod(self.output[1:-1]) if isinstance(self.module, nn.Linear) else prod(self.output[2:])

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    @property
    def macs(self) -> int:
        if isinstance(self.module, nn.GRU):
            return self.positions * sum(p.numel() for p in self.module.parameters() if p.ndim == 2)
        # A transposed convolution meets its whole kernel at every pixel that it reads, not at those it writes.
        met = prod(self.input[2:]) if isinstance(self.module, nn.ConvTranspose2d) else self.positions
        return met * self.module.weight.numel()

    @property
    def is_depthwise(self) -> bool:
        m = self.module
        return isinstance(m, nn.Conv2d) and m.groups == m.in_channels == m.out_channels and m.groups > 1

    def feeds(self, other: "_Call") -> bool:
        """Whether this depthwise convolution and the pointwise `other` make one separable convolution."""
        m = other.module
        return (
            self.is_depthwise
            and isinstance(m, nn.Conv2d)
            and m.kernel_size == (1, 1)
            and m.groups == 1
            and m.in_channels == self.output[1]
        )


@contextmanager
def _watch(network: nn.Module, calls: list[_Call]) -> Iterator[None]:
    names = {module: name for name, module in network.named_modules()}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        assert isinstance(module, Counted)
        result = output if isinstance(output, Tensor) else output[0]
        calls.append(_Call(names[module], module, tuple(inputs[0].shape), tuple(result.shape)))

    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, Counted)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def measure(network: nn.Module, *inputs: Tensor) -> Cost:
    """Count one forward pass of `network` over `inputs`, batch of 1, in evaluation mode."""
    calls: list[_Call] = []
    training = network.training
    network.eval()
    with torch.inference_mode(), _watch(network, calls):
        network(*inputs)
    network.train(training)
    layers: list[LayerCost] = []
    position = 0
    while position < len(calls):
        call = calls[position]
        follower = calls[position + 1] if position + 1 < len(calls) else None
        pair = (call, follower) if follower is not None and call.feeds(follower) else (call,)
        layers.append(_cost_of(pair))
        position += len(pair)
    return Cost(
        tuple(layers),
        parameters=sum(p.numel() for p in network.parameters()),
        macs=sum(layer.macs for layer in layers),
        generic_macs=sum(layer.generic for layer in layers),
        activation_bytes=sum(layer.activation_bytes for layer in layers),
    )


def _cost_of(calls: tuple[_Call, ...]) -> LayerCost:
    first, last = calls[0], calls[-1]
    macs = sum(call.macs for call in calls)
    module = first.module
    generic = separable = macs
    if isinstance(module, nn.Conv2d):
        inputs, outputs = module.in_channels, last.output[1]
        kernel = prod(module.kernel_size)
        sides = "x".join(str(side) for side in module.kernel_size)
        kind = "separable" if len(calls) == 2 else "depthwise" if first.is_depthwise else "convolution"
        # A pointwise or grouped layer has no cheaper or dearer twin: both equations are about square kernels.
        if kernel > 1 and (kind == "separable" or module.groups == 1):
            generic = last.positions * generic_cost(kernel, outputs, inputs)
            separable = last.positions * separable_cost(kernel, outputs, inputs)
    elif isinstance(module, nn.ConvTranspose2d):
        kind, inputs, outputs = "transposed", module.in_channels, module.out_channels
        sides = "x".join(str(side) for side in module.kernel_size)
    elif isinstance(module, nn.GRU):
        kind, sides, inputs, outputs = "recurrent", "", module.input_size, module.hidden_size
    else:
        kind, sides, inputs, outputs = "linear", "", module.in_features, module.out_features
    return LayerCost(
        name=first.name if len(calls) == 1 else first.name.rsplit(".", 1)[0],
        kind=kind,
        kernel=sides,
        inputs=inputs,
        outputs=outputs,
        positions=last.positions,
        parameters=sum(call.parameters for call in calls),
        macs=macs,
        generic=generic,
        separable=separable,
        activation_bytes=sum(prod(call.output) * 4 for call in calls),
    )


def table(cost: dict[str, Any]) -> str:
    """`Cost.as_dict()` as text: a row a layer, then the whole and the ratio."""
    head = (
        f"{'layer':<34}{'kind':<13}{'kernel':<8}{'in':>5}{'out':>5}"
        f"{'params':>9}{'MACs':>13}{'generic':>14}{'separable':>13}"
    )
    rows = [head, "-" * len(head)]
    rows += [
        f"{row['name']:<34}{row['kind']:<13}{row['kernel']:<8}{row['inputs']:>5}{row['outputs']:>5}"
        f"{row['parameters']:>9,}{row['macs']:>13,}{row['generic']:>14,}{row['separable']:>13,}"
        for row in cost["layers"]
    ]
    rows += [
        "-" * len(head),
        f"{cost['parameters']:,} parameters, {cost['macs']:,} MACs, "
        f"{cost['activation_bytes'] / 1024:,.0f} KiB of activations at fp32",
        f"{cost['ratio']:.2f} times fewer MACs than with generic convolutions ({cost['generic_macs']:,})",
    ]
    return "\n".join(rows)
