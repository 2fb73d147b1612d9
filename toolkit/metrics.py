"""Accuracy of probabilities against 0/1 labels: section 4.3 of the paper, plus AUC and average precision."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Answer = tuple[NDArray[np.uint8], NDArray[np.floating[Any]]]  # labels, and as many probabilities
Answers = Iterable[Answer]

PIXEL_LEVELS = 1 << 16  # pixel scores are counted at this many levels: 49 million of them need no sorting


@dataclass(frozen=True)
class Scores:
    """One evaluation; every rate lies in [0, 1] but kappa, in [-1, 1]. A rate without a denominator is 0."""

    precision: float
    recall: float
    f1: float
    overall_accuracy: float
    kappa: float
    auc: float
    average_precision: float
    threshold: float
    n: int

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


class Tally:
    """Counts of positive and negative samples at each score, from which every metric follows.

    Scores in [0, 1]. Exact for scores added with `add`; `add_pixels` rounds them to 1 / 65,535 first.
    """

    def __init__(self) -> None:
        self._scores: list[NDArray[np.float64]] = []
        self._labels: list[NDArray[np.bool_]] = []
        self._pixels = np.zeros((2, PIXEL_LEVELS), np.int64)

    def add(self, labels: ArrayLike, scores: ArrayLike) -> None:
        """Add samples: `labels` of 0 and 1, `scores` as many probabilities; any shape."""
        flat = np.asarray(scores, np.float64).ravel()
        truth = np.asarray(labels).ravel() > 0
        if flat.shape != truth.shape:
            raise ValueError(f"{truth.size} labels for {flat.size} scores")
        if not np.isfinite(flat).all():
            raise ValueError("a score is NaN or infinite")
        self._scores.append(flat)
        self._labels.append(truth)

    def add_pixels(self, labels: ArrayLike, scores: ArrayLike) -> None:
        """Add a map of pixels, counted by level: memory does not grow with their number."""
        values = np.asarray(scores, np.float32)
        if not np.isfinite(values).all():
            raise ValueError("a score is NaN or infinite")
        level = np.rint(values * (PIXEL_LEVELS - 1)).astype(np.int64).ravel()
        truth = np.asarray(labels).ravel() > 0
        for label in (0, 1):
            self._pixels[label] += np.bincount(level[truth == label], minlength=PIXEL_LEVELS)

    def table(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Distinct scores from high to low, with how many positives and negatives have each."""
        levels = np.flatnonzero(self._pixels.sum(0))
        scores = np.concatenate([levels / (PIXEL_LEVELS - 1), *self._scores])
        positives = np.concatenate([self._pixels[1, levels], *(x.astype(np.int64) for x in self._labels)])
        negatives = np.concatenate([self._pixels[0, levels], *((~x).astype(np.int64) for x in self._labels)])
        distinct, where = np.unique(-scores, return_inverse=True)
        positive = np.zeros(distinct.size, np.int64)
        negative = np.zeros(distinct.size, np.int64)
        np.add.at(positive, where, positives)
        np.add.at(negative, where, negatives)
        return -distinct, positive, negative

    def best_threshold(self) -> float:
        """The threshold with the highest F1, halfway to the next lower score so that rounding cannot flip it."""
        scores, positive, negative = self.table()
        if not positive.sum():
            return 0.5
        hits, alarms = positive.cumsum(), (positive + negative).cumsum()
        best = int(np.argmax(2 * hits / (alarms + positive.sum())))
        below = scores[best + 1] if best + 1 < scores.size else 0.0
        return float((scores[best] + below) / 2)

    def steady_threshold(self, slack: float = 0.01) -> float:
        """The middle, in logits, of the thresholds around the best one whose F1 is at most `slack` of it lower.

        Few held-out images make a jagged F1: its very peak is chance, the plateau that it stands on is not.
        """
        scores, positive, negative = self.table()
        if not positive.sum():
            return 0.5
        hits, alarms = positive.cumsum(), (positive + negative).cumsum()
        f1 = 2 * hits / (alarms + positive.sum())
        best = int(np.argmax(f1))
        worse = np.flatnonzero(f1 < f1[best] * (1 - slack))
        place = int(np.searchsorted(worse, best))
        high = scores[worse[place - 1] + 1] if place else scores[0]
        low = scores[worse[place]] if place < worse.size else 0.0  # called positive down to, and without, this score
        ends = np.clip(np.array([low, high]), 1e-6, 1 - 1e-6)
        middle = float(np.log(ends / (1 - ends)).mean())
        return 1 / (1 + math.exp(-middle))

    def scores(self, threshold: float) -> Scores:
        """All metrics; a sample is called positive when its score is at least `threshold`."""
        scores, positive, negative = self.table()
        called = scores >= threshold
        tp, fp = float(positive[called].sum()), float(negative[called].sum())
        fn, tn = float(positive[~called].sum()), float(negative[~called].sum())
        n = tp + fp + fn + tn
        observed = _ratio(tp + tn, n)
        # Cohen's definition: agreement expected from the two margins alone.
        expected = _ratio((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn), n * n)
        return Scores(
            precision=_ratio(tp, tp + fp),
            recall=_ratio(tp, tp + fn),
            f1=_ratio(2 * tp, 2 * tp + fp + fn),
            overall_accuracy=observed,
            kappa=_ratio(observed - expected, 1 - expected),
            auc=_auc(positive, negative),
            average_precision=_average_precision(positive, negative),
            threshold=float(threshold),
            n=int(n),
        )


def tallied(task: str, answers: Answers) -> Tally:
    """All the answers in one tally; maps of a segmenter are counted by level."""
    tally = Tally()
    for labels, probability in answers:
        if task == "classify":
            tally.add(labels, probability)
        else:
            tally.add_pixels(labels, probability)
    return tally


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else 0.0


def _auc(positive: NDArray[np.int64], negative: NDArray[np.int64]) -> float:
    """Chance that a positive scores above a negative, ties counting half (Mann-Whitney)."""
    pairs = float(positive.sum()) * float(negative.sum())
    below = negative.sum() - negative.cumsum()
    won = (positive * (below + negative / 2)).sum()
    return _ratio(float(won), pairs)


def _average_precision(positive: NDArray[np.int64], negative: NDArray[np.int64]) -> float:
    """Precision at each distinct score, weighted by the recall gained there."""
    if not positive.sum():
        return 0.0
    hits = positive.cumsum()
    precision = hits / np.maximum(hits + negative.cumsum(), 1)
    return float((precision * positive).sum() / positive.sum())


def evaluate(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5) -> Scores:
    """Metrics of one set of samples; see `Tally`."""
    tally = Tally()
    tally.add(labels, scores)
    return tally.scores(threshold)
