"""Precision and recall of crack pixels within a distance of the mask.

A mask's edge is drawn by a hand and moves by a pixel or two from one to the next, which is half the width of a fine
crack. So a crack found one pixel beside its mask is a miss and a false alarm to plain F1; papers on cracks allow two
pixels (Amhaz et al. 2016) or five (Shi et al. 2016). Beside plain F1 it tells a wrong edge from a wrong crack.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from targets.runtime.errors import HighwallError
from toolkit.metrics import Answer, Answers

FARTHEST = 50.0  # pixels; beyond, no one would call it the same crack


class Margins:
    """Counts of pixels called crack, and of crack pixels, that lie within each of `distances` of each other.

    distances: pixels between centres, 0 for the very same. Raises HighwallError where one is negative or huge.
    """

    def __init__(self, threshold: float, distances: tuple[float, ...]) -> None:
        for distance in distances:
            if not 0 <= distance <= FARTHEST:
                raise HighwallError(f"a distance of {distance:g} pixels is no margin; give 0 to {FARTHEST:g}")
        self.threshold, self.distances = threshold, distances
        self._kernels = [_disc(distance) for distance in distances]
        self._called = self._true = 0
        self._hits = np.zeros((len(distances), 2), np.int64)  # called near the truth, true near what was called

    def add(self, labels: ArrayLike, scores: ArrayLike) -> None:
        """Add maps: `labels` of 0 and 1 and as many probabilities, (..., H, W)."""
        truth = _maps(np.asarray(labels) > 0)
        called = _maps(np.asarray(scores, np.float64) >= self.threshold)
        self._called += int(called.sum())
        self._true += int(truth.sum())
        for hits, kernel in zip(self._hits, self._kernels, strict=True):
            hits += [int((called & _grown(truth, kernel)).sum()), int((truth & _grown(called, kernel)).sum())]

    def counting(self, answers: Answers) -> Iterator[Answer]:
        """The same answers, each counted as it passes."""
        for labels, scores in answers:
            self.add(labels, scores)
            yield labels, scores

    def scores(self) -> list[dict[str, float]]:
        """Precision, recall and F1 of each distance; a rate without a denominator is 0."""
        found = []
        for distance, (called, true) in zip(self.distances, self._hits.tolist(), strict=True):
            precision, recall = called / max(self._called, 1), true / max(self._true, 1)
            f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
            found.append({"within": distance, "precision": precision, "recall": recall, "f1": f1})
        return found


def _maps(values: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).reshape(-1, 1, *values.shape[-2:])


def _disc(radius: float) -> Tensor:
    """(1, 1, K, K): the pixels whose centres lie within `radius` of the middle one's."""
    half = int(radius)
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
    return torch.from_numpy((np.hypot(rows, columns) <= radius).astype(np.float32))[None, None]


def _grown(maps: Tensor, kernel: Tensor) -> Tensor:
    """Every pixel that has a set one under `kernel`."""
    return F.conv2d(maps.float(), kernel, padding=kernel.shape[-1] // 2) > 0.5
