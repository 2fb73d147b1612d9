"""Reliability: whether, of the samples called 70 % likely, seven in ten are positive; in numbers and as a picture."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from targets.runtime.files import atomic_write
from toolkit.metrics import Tally

BINS: Final = 15


@dataclass(frozen=True)
class Bin:
    """Samples with a probability in [low, high): how many, their mean probability, the share that is positive."""

    low: float
    high: float
    count: int
    confidence: float
    frequency: float


@dataclass(frozen=True)
class Reliability:
    """ece: expected calibration error, the bins' |confidence - frequency| weighted by count (Naeini et al. 2015).

    brier: mean squared distance of probability from label (Brier 1950). Both lie in [0, 1]; 0 is perfect.
    """

    bins: tuple[Bin, ...]
    ece: float
    brier: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def reliability(labels: ArrayLike, probabilities: ArrayLike, bins: int = BINS) -> Reliability:
    """Of `labels` of 0 and 1 and as many probabilities, any shape; the last bin holds 1 too."""
    tally = Tally()
    tally.add(labels, probabilities)
    return of_tally(tally, bins)


def of_tally(tally: Tally, bins: int = BINS) -> Reliability:
    """Of all that was added to `tally`."""
    scores, positive, negative = tally.table()
    weight = (positive + negative).astype(np.float64)
    place = np.minimum((scores * bins).astype(np.int64), bins - 1)
    counts, hits, sums = (np.bincount(place, x, bins) for x in (weight, positive, weight * scores))
    filled = np.maximum(counts, 1)
    confidence, frequency = sums / filled, hits / filled
    total = max(1.0, float(weight.sum()))
    return Reliability(
        tuple(
            Bin(i / bins, (i + 1) / bins, int(counts[i]), float(confidence[i]), float(frequency[i]))
            for i in range(bins)
        ),
        ece=float((counts * np.abs(confidence - frequency)).sum() / total),
        brier=float((positive * (1 - scores) ** 2 + negative * scores**2).sum() / total),
    )


SIDE, COUNTS, MARGIN, GAP = 360, 90, 56, 34


def draw(found: Reliability, title: str, path: Path) -> None:
    """Write a PNG: a bar a bin up to its share of positives, red up or down to its confidence; below, how many.

    Counts are drawn by their logarithm, because most pixels are surely no crack.
    """
    picture = Image.new("RGB", (SIDE + 2 * MARGIN, SIDE + COUNTS + GAP + 2 * MARGIN), "white")
    pen = ImageDraw.Draw(picture)
    base = MARGIN + SIDE
    pen.text((MARGIN, 12), title, fill="black")
    pen.text((MARGIN, 30), f"ECE {found.ece:.4f}   Brier {found.brier:.4f}", fill="black")
    for tick in range(0, 11, 2):
        at = base - SIDE * tick / 10
        pen.line((MARGIN, at, MARGIN + SIDE, at), fill="#e5e7eb")
        pen.text((MARGIN - 26, at - 6), f"{tick / 10:.1f}", fill="black")
        pen.text((MARGIN + SIDE * tick / 10 - 8, base + 4), f"{tick / 10:.1f}", fill="black")
    floor = base + GAP + COUNTS
    most = max(np.log10(1 + one.count) for one in found.bins)
    for one in found.bins:
        left, right = MARGIN + SIDE * one.low + 1, MARGIN + SIDE * one.high - 1
        if not one.count:
            continue
        tops = base - SIDE * one.frequency, base - SIDE * one.confidence
        pen.rectangle((left, tops[0], right, base), fill="#1d4ed8")
        pen.rectangle((left, min(tops), right, max(tops)), outline="#c2410c", fill="#fdba74")
        pen.line((left, tops[0], right, tops[0]), fill="#1e3a8a", width=3)
        pen.rectangle((left, floor - COUNTS * np.log10(1 + one.count) / most, right, floor), fill="#6b7280")
    pen.line((MARGIN, base, MARGIN + SIDE, MARGIN), fill="#0f766e", width=2)
    pen.rectangle((MARGIN, MARGIN, MARGIN + SIDE, base), outline="black")
    pen.line((MARGIN, floor, MARGIN + SIDE, floor), fill="black")
    pen.text((MARGIN, floor + 4), f"samples by probability, log scale; {_total(found):,} in all", fill="black")
    pen.text((MARGIN, floor + 20), "blue: share that is positive; orange: distance to the probability", fill="black")
    with atomic_write(path) as partial:
        picture.save(partial, format="PNG")


def _total(found: Reliability) -> int:
    return sum(one.count for one in found.bins)
