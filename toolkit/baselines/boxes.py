"""Boxes for SSD300, after sections 2.2 and 3.1 of Liu et al. 2016: default ones, targets, loss, and back to boxes.

A box is (left, top, right, bottom) in fractions of the image. D counts the default boxes, M those of one image.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from targets.runtime.components import components

VARIANCES = (0.1, 0.1, 0.2, 0.2)  # of the paper's code: what one unit of an offset means
NEGATIVES = 3  # the most negatives for each positive
MATCH = 0.5  # intersection over union from which a default box stands for an object


def default_boxes(maps: tuple[int, ...], ratios: tuple[tuple[float, ...], ...]) -> Tensor:
    """(D, 4): for every map's every cell, row by row, its boxes. `ratios` are those beside 1, with their inverses.

    The scale of the first map is 0.1, of the others from 0.2 to 0.9 in equal steps (equation 4); each has one square
    more, of the geometric mean of its scale and the next (after the last, 1.0).
    """
    step = 0.7 / (len(maps) - 2)
    scales = [0.1] + [0.2 + step * i for i in range(len(maps) - 1)] + [1.0]
    made = []
    for index, (side, beside) in enumerate(zip(maps, ratios, strict=True)):
        scale, between = scales[index], math.sqrt(scales[index] * scales[index + 1])
        shapes = [(scale, scale), (between, between)]
        for ratio in beside:
            root = math.sqrt(ratio)
            shapes += [(scale * root, scale / root), (scale / root, scale * root)]
        centres = (torch.arange(side) + 0.5) / side
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        places = torch.stack((x, y), -1).reshape(-1, 1, 2)
        half = torch.tensor(shapes).view(1, -1, 2) / 2
        made.append(torch.cat((places - half, places + half), -1).reshape(-1, 4))
    return torch.cat(made).clamp(0, 1)


def boxes_of(mask: NDArray[np.bool_], least: int = 1) -> Tensor:
    """(M, 4): the box around each 8-connected component of `mask` (H, W) of `least` pixels or more; M may be 0."""
    height, width = mask.shape
    found = [
        (one.col / width, one.row / height, (one.col + one.width) / width, (one.row + one.height) / height)
        for one in components(mask)
        if one.area >= least
    ]
    return torch.tensor(found, dtype=torch.float32).view(-1, 4)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box of (A, 4) with every one of (B, 4): (A, B)."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None, :] - shared).clamp(min=1e-12)


def encode(boxes: Tensor, defaults: Tensor) -> Tensor:
    """(D, 4) boxes as offsets from the default ones (equation 2)."""
    centre, size = _centred(boxes)
    origin, unit = _centred(defaults)
    offsets = torch.cat(((centre - origin) / unit, torch.log(size / unit)), -1)
    return offsets / offsets.new_tensor(VARIANCES)


def decode(offsets: Tensor, defaults: Tensor) -> Tensor:
    """The boxes (..., D, 4) that offsets mean, within the image."""
    steps = offsets * offsets.new_tensor(VARIANCES)
    origin, unit = _centred(defaults)
    centre = origin + steps[..., :2] * unit
    # An untrained network may ask for a box e^100 wide, whose corners would be infinite.
    half = torch.exp(steps[..., 2:].clamp(max=10)) * unit / 2
    return torch.cat((centre - half, centre + half), -1).clamp(0, 1)


def _centred(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def match(boxes: Tensor, defaults: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Targets of one image: offsets (D, 4), and classes (D,) in which 0 is background.

    Every box (M, 4) gets the default box that it overlaps most, no two the same one, and every default box that
    overlaps some box by MATCH or more gets that. `labels` (M,), from 1, say what the boxes hold; all are 1 without.
    """
    classes = torch.zeros(len(defaults), dtype=torch.int64, device=defaults.device)
    if len(boxes) == 0:
        return torch.zeros_like(defaults), classes
    boxes = boxes.to(defaults.device)
    labels = torch.ones_like(boxes[:, 0], dtype=torch.int64) if labels is None else labels.to(defaults.device)
    overlaps = overlap(boxes, defaults)
    best, owner = overlaps.max(0)
    positive = best >= MATCH
    left = overlaps.clone()
    for _ in range(min(len(boxes), len(defaults))):
        box, default = divmod(int(left.argmax()), len(defaults))
        owner[default], positive[default] = box, True
        left[box], left[:, default] = -1, -1
    classes[positive] = labels[owner[positive]]
    return encode(boxes[owner], defaults) * positive[:, None], classes


def multibox_loss(offsets: Tensor, scores: Tensor, target_offsets: Tensor, target_classes: Tensor) -> Tensor:
    """Equation 1: smooth L1 of positives' offsets plus cross-entropy of classes, over the number of positives.

    offsets, target_offsets: (N, D, 4); scores: (N, D, classes + 1); target_classes: (N, D). Of the negatives only the
    hardest count, at most NEGATIVES for each positive of an image. 0 where the batch has no positive at all.
    """
    positive = target_classes > 0
    place = F.smooth_l1_loss(offsets[positive], target_offsets[positive], reduction="sum")
    entropy = F.cross_entropy(scores.flatten(0, 1), target_classes.flatten(), reduction="none").view_as(positive)
    hardness = entropy.detach().masked_fill(positive, -1)
    rank = hardness.argsort(1, descending=True).argsort(1)
    hard = (rank < NEGATIVES * positive.sum(1, keepdim=True)) & ~positive
    return (place + entropy[positive | hard].sum()) / positive.sum().clamp(min=1)


@dataclass(frozen=True)
class Detections:
    """What one image was found to hold, surest first: boxes (K, 4), probabilities (K,), classes (K,) from 1."""

    boxes: Tensor
    probabilities: Tensor
    classes: Tensor


def detections(
    offsets: Tensor,
    scores: Tensor,
    defaults: Tensor,
    threshold: float = 0.01,
    most_overlap: float = 0.45,
    most: int = 200,
) -> list[Detections]:
    """The outputs of `SSD300` over N images as boxes, by non-maximum suppression in each class (section 3.1)."""
    probabilities = torch.softmax(scores, -1)
    found = []
    for boxes, odds in zip(decode(offsets, defaults), probabilities, strict=True):
        kept = []
        for label in range(1, odds.shape[1]):
            sure = torch.nonzero(odds[:, label] > threshold).flatten()
            chosen = sure[suppress(boxes[sure], odds[sure, label], most_overlap, most)]
            kept.append((boxes[chosen], odds[chosen, label], torch.full_like(chosen, label)))
        where, how_sure, what = (torch.cat(parts) for parts in zip(*kept, strict=True))
        order = how_sure.argsort(descending=True, stable=True)[:most]
        found.append(Detections(where[order], how_sure[order], what[order]))
    return found


def suppress(boxes: Tensor, probabilities: Tensor, most_overlap: float, most: int, looked_at: int = 400) -> Tensor:
    """Indices of at most `most` boxes, surest first, none of which overlaps a surer kept one by more than allowed.

    Only the `looked_at` surest are looked at, as in the paper's code.
    """
    order = probabilities.argsort(descending=True, stable=True)[:looked_at]
    overlaps = overlap(boxes[order], boxes[order]) > most_overlap
    alive = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    kept: list[int] = []
    for index in range(len(order)):
        if len(kept) == most:
            break
        if alive[index]:
            kept.append(index)
            alive &= ~overlaps[index]
    return order[kept]
