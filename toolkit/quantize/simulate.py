"""Int8 simulated in torch: layers that read rounded inputs through rounded weights, and still pass gradients.

An integer kernel reads int8 activations (one scale a tensor) and int8 weights (one scale an output channel),
so rounding both in front of each convolution is all there is to it. Batch norm that follows scales whole
output channels, weights and their scale alike, so it may be folded before or after without a difference.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.layers import GATES


def quantizable(network: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers by path, but for those inside attention gates, which stay float."""
    gates = tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, GATES))
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith(gates)
    }


@contextmanager
def simulated(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it, these `nn.Conv2d` and `nn.Linear` compute as at int8, with the range of each batch.

    Rounding passes gradients straight through (Bengio et al. 2013), so a network may be trained inside.
    """
    chosen = list(modules)
    try:
        for module in chosen:
            module.forward = _rounded(module)
        yield
    finally:
        for module in chosen:
            module.__dict__.pop("forward", None)


def _rounded(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def convolve(x: Tensor) -> Tensor:
        assert isinstance(module, nn.Conv2d)
        result: Tensor = module._conv_forward(round_activations(x), round_weights(module.weight), module.bias)
        return result

    def multiply(x: Tensor) -> Tensor:
        assert isinstance(module, nn.Linear)
        return F.linear(round_activations(x), round_weights(module.weight), module.bias)

    return convolve if isinstance(module, nn.Conv2d) else multiply


def round_activations(x: Tensor) -> Tensor:
    """`x` at 256 levels between its own extremes; zero is one of the levels."""
    with torch.no_grad():
        low, high = torch.aminmax(x)
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) / 255).clamp(min=1e-12)
        zero = (-128 - low / scale).round().clamp(-128, 127).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, -128, 127)


def round_weights(weight: Tensor) -> Tensor:
    """(out, ...) at 255 levels, symmetric about zero, one scale an output channel."""
    with torch.no_grad():
        scale = weight.detach().abs().flatten(1).amax(1).clamp(min=1e-12) / 127
        zero = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)
