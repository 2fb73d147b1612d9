"""Optimizers by name: SGD, AdamW, RMSProp, and Muon, which takes its steps by whole matrices."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from targets.runtime.errors import HighwallError

LEARNING_RATES = {"sgd": 0.05, "adam": 3e-3, "rmsprop": 1e-3, "muon": 3e-3}
DECAY = 1e-2
MOMENTUM = 0.95
# Of Newton and Schulz's quintic iteration, chosen for its slope at zero: five rounds bring every singular value
# to somewhere around one, which is all that is asked of them (Jordan et al. 2024).
QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
# AdamW's steps have a root mean square of about this, so both kinds of step take one learning rate (Liu et al. 2025).
STEP_RMS = 0.2
LEAST_ROWS = 8  # a matrix of fewer rows or columns, as a kernel of a depthwise convolution, is left to AdamW


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix (rows, columns) with all its singular values brought near one; of zeros, zeros."""
    a, b, c = QUINTIC
    x: Tensor = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


class Muon(torch.optim.AdamW):
    """Momentum made orthogonal for kernels that mix channels, AdamW for all else (Jordan et al. 2024).

    Groups marked `orthogonal` hold kernels (outputs, ...), each taken as one matrix of as many rows. Pointwise
    convolutions are such matrices, and they are most of a depthwise-separable network. torch's own Muon takes
    parameters of two dimensions only.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__([{"orthogonal": False} | group for group in groups], lr=lr)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of both kinds. Gradients of orthogonal groups are used up, so that AdamW finds none."""
        for group in self.param_groups:
            for kernel in group["params"] if group["orthogonal"] else ():
                if kernel.grad is not None:
                    self._step_by_matrix(kernel, group["lr"], group["weight_decay"])
                    kernel.grad = None
        super().step()

    def _step_by_matrix(self, kernel: Tensor, lr: float, decay: float) -> None:
        """Nesterov's momentum, made orthogonal, its root mean square that of an AdamW step."""
        assert kernel.grad is not None
        state = self.state[kernel]
        if not state:  # as AdamW keeps its own, which reads a step of every parameter when a state is loaded
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(kernel)
        state["step"] += 1
        state["exp_avg"].lerp_(kernel.grad, 1 - MOMENTUM)
        ahead = kernel.grad.lerp(state["exp_avg"], MOMENTUM).flatten(1)
        update = orthogonal(ahead) * STEP_RMS * math.sqrt(max(ahead.shape))
        kernel.mul_(1 - lr * decay).add_(update.view(kernel.shape), alpha=-lr)


def _mixes_channels(kernel: Tensor) -> bool:
    """Whether a kernel is a matrix worth making orthogonal: several channels in, several out."""
    return min(kernel.shape[:2]) > 1 and min(kernel.flatten(1).shape) >= LEAST_ROWS


def optimizer_for(network: nn.Module, name: str, lr: float) -> torch.optim.Optimizer:
    """Weight decay on kernels only: norms and biases have no length to shrink. Raises HighwallError."""
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0}
    if name == "adam":
        return torch.optim.AdamW([{"params": kernels, "weight_decay": DECAY}, others], lr=lr)
    if name == "muon":
        mixing = [p for p in kernels if _mixes_channels(p)]
        rest = [p for p in kernels if not _mixes_channels(p)]
        groups = [
            {"params": mixing, "weight_decay": DECAY, "orthogonal": True},
            {"params": rest, "weight_decay": DECAY},
            others,
        ]
        return Muon([group for group in groups if group["params"]], lr)
    groups = [{"params": kernels, "weight_decay": 5e-4}, others]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    if name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=lr, momentum=0.9)
    raise HighwallError(f"no optimizer is called {name!r}; choose {', '.join(LEARNING_RATES)}")
