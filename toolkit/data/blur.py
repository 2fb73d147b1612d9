"""What a lens out of focus and a camera in motion do to a point, and images seen through it, edges mirrored."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Kernel = NDArray[np.float64]  # odd sides, of sum 1


def disc(radius: float) -> Kernel:
    """Out of focus: a disc of `radius` pixels, its rim soft over one."""
    half = math.ceil(radius)
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
    return _normal(np.clip(radius + 0.5 - np.hypot(rows, columns), 0, 1))


def line(length: float, angle: float) -> Kernel:
    """In motion: a straight line of `length` pixels, `angle` radians from the rows."""
    steps = np.linspace(-length / 2, length / 2, 2 * math.ceil(length) + 1)
    half = math.ceil(length / 2) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    for step in steps:
        row, column = half + step * math.sin(angle), half + step * math.cos(angle)
        top, left = math.floor(row), math.floor(column)
        down, right = row - top, column - left
        kernel[top : top + 2, left : left + 2] += np.outer((1 - down, down), (1 - right, right))
    return _normal(kernel)


def _normal(kernel: Kernel) -> Kernel:
    return np.asarray(kernel / kernel.sum(), np.float64)


def convolve(images: Tensor, kernel: Kernel) -> Tensor:
    """Images (N, C, H, W), every band with the same kernel, edges mirrored."""
    for axis, side in ((2, kernel.shape[0]), (3, kernel.shape[1])):
        size = images.shape[axis]
        index = torch.from_numpy(mirrored(np.arange(-(side // 2), size + side // 2), size))
        images = images.index_select(axis, index.to(images.device))
    bands = images.reshape(-1, 1, *images.shape[2:])
    weights = torch.from_numpy(kernel.astype(np.float32)).to(images.device).view(1, 1, *kernel.shape)
    seen = F.conv2d(bands, weights)
    return seen.view(*images.shape[:2], *seen.shape[2:])


def mirrored(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Indices beyond an edge, reflected back, the edge itself repeated; any distance, any size from 1."""
    folded = index % (2 * size)
    return np.where(folded < size, folded, 2 * size - 1 - folded)
