"""What the baselines share: channel counts by a width factor, stems for small images, first weights."""

import torch.nn.functional as F
from torch import Tensor, nn


def scaled(channels: int, width: float) -> int:
    """`channels` times the width factor, rounded, at least 1."""
    return max(1, round(channels * width))


def strides(size: int, undoable: int = 2, reductions: int = 5, least: int = 2) -> tuple[int, ...]:
    """The stride of each reduction, first to last, of a network whose reductions give ceil(side / 2).

    All are 2 where that leaves a map of `least` x `least` pixels, as at the published size. Below, the first is
    set to 1, then the next, up to the first `undoable`: the smallest change of the stem that is enough.
    """
    for undone in range(undoable + 1):
        kept = reductions - undone
        if -(-size // 2**kept) >= least:
            break
    return (1,) * undone + (2,) * kept


def pool_to(side: int, most: int) -> nn.Module:
    """An average pooling of a map `side` pixels wide to exactly `most`; nothing where it is no wider.

    It is the adaptive pooling of the published networks with one window size, which every engine has.
    """
    if side <= most:
        return nn.Identity()
    stride = side // most
    return nn.AvgPool2d(side - (most - 1) * stride, stride)


def max_pool(stride: int) -> nn.Module:
    """Maximum over 3x3, giving ceil(side / 2); of stride 1, nothing: a reduction that is undone."""
    return nn.MaxPool2d(3, 2, 1) if stride == 2 else nn.Identity()


def halve_mean(x: Tensor) -> Tensor:
    """Mean over 2x2, giving ceil(size / 2); an odd edge is repeated first, so that even one pixel is enough."""
    height, width = x.shape[-2:]
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
    return F.avg_pool2d(x, 2)


def classifier_head(inputs: int, hidden: int, classes: int) -> nn.Sequential:
    """The three linear layers with dropout at which AlexNet and VGG end; (N, inputs) to (N, classes)."""
    return nn.Sequential(
        nn.Dropout(0.5),
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def initialise(network: nn.Module) -> None:
    """He et al. 2015 for convolutions and hidden layers, so that deep ones without norms learn too; biases at 0.

    The last linear layer starts near 0, so that every network's first probabilities are near one half.
    """
    last = None
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Linear):
            last = module
    if last is not None:
        nn.init.normal_(last.weight, std=0.01)
