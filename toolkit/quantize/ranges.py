"""Ranges: what a tensor's values looked like over the calibration images, and where int8 should clip them."""

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from targets.runtime.errors import HighwallError

BINS: Final = 4096
LEVELS: Final = 256
SAMPLED: Final = 1 << 18  # values of one tensor of one image that are counted; its extremes are exact
OUTERMOST: Final = 1e-4  # percentile: the share of values that may be clipped
_CANDIDATES: Final = np.linspace(1.0, 0.2, 81)  # of each end's distance from zero

Counts = NDArray[np.float64]


class Histogram:
    """Counts of one tensor's values over [-2**e, 2**e), where e grows as values do.

    Doubling the range merges bins pairwise, so nothing is counted twice or guessed, and the order of the
    images does not matter. Exact zeros, most of what a ReLU gives, are counted apart: int8 has them for free.
    """

    def __init__(self) -> None:
        self.low, self.high = 0.0, 0.0
        self.count, self.zeros = 0, 0
        self.exponent = -40
        self.bins = np.zeros(BINS, np.int64)

    def add(self, values: NDArray[Any]) -> None:
        """Count `values` of any shape. Raises HighwallError where one is NaN or infinite."""
        flat = np.asarray(values, np.float32).ravel()
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise HighwallError("a calibration image makes the network give NaN or infinity; leave it out")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        step = -(-flat.size // SAMPLED)
        flat = flat[:: step | 1] if step > 1 else flat  # odd, so that no 2x2 pattern hides
        nonzero = flat[flat != 0]
        self.count += flat.size
        self.zeros += flat.size - nonzero.size
        index = np.floor(nonzero * (BINS / 2 / 2.0**self.exponent)).astype(np.int64) + BINS // 2
        self.bins += np.bincount(index.clip(0, BINS - 1), minlength=BINS)

    def _widen(self, largest: float) -> None:
        while largest >= 2.0**self.exponent:
            middle = self.bins.reshape(-1, 2).sum(1)
            self.bins[:] = 0
            self.bins[BINS // 4 : BINS // 4 + BINS // 2] = middle
            self.exponent += 1

    @property
    def centres(self) -> Counts:
        """The middle value of each bin."""
        middles: Counts = (np.arange(BINS, dtype=np.float64) - BINS / 2 + 0.5) * (2.0**self.exponent / (BINS / 2))
        return middles


def limits(histogram: Histogram, method: str) -> tuple[float, float]:
    """(low, high) at which to clip, low <= 0 <= high, by one of `toolkit.quantize.recipes.RANGES`."""
    if method not in _METHODS:
        raise HighwallError(f"no way to find ranges is called {method!r}; known are {', '.join(_METHODS)}")
    if histogram.low == histogram.high:
        return 0.0, 0.0
    low, high = _METHODS[method](histogram)
    return max(low, histogram.low), min(high, histogram.high)


def _minmax(histogram: Histogram) -> tuple[float, float]:
    return histogram.low, histogram.high


def _percentile(histogram: Histogram) -> tuple[float, float]:
    """Half of the outermost share is cut from each end; an end that is at zero has nothing to cut."""
    counts = histogram.bins.astype(np.float64)
    counts[BINS // 2] += histogram.zeros
    below = counts.cumsum() / max(1, histogram.count)
    width = 2.0**histogram.exponent / (BINS / 2)
    first = int(np.searchsorted(below, OUTERMOST / 2, side="right"))
    last = int(np.searchsorted(below, 1 - OUTERMOST / 2, side="left"))
    low, high = (first - BINS / 2) * width, (min(last, BINS - 1) + 1 - BINS / 2) * width
    return min(low, 0.0), max(high, 0.0)


def _mse(histogram: Histogram) -> tuple[float, float]:
    """Each end in turn at the candidate where clipping plus rounding costs least; rounding errs step**2 / 12."""
    centres, counts = histogram.centres, histogram.bins.astype(np.float64)

    def cost(low: float, high: float) -> float:
        step = (high - low) / (LEVELS - 1)
        outside = np.where(centres > high, centres - high, np.where(centres < low, low - centres, 0.0))
        return float((counts * np.where(outside > 0, outside**2, step**2 / 12)).sum())

    return _descend(histogram, cost)


def _entropy(histogram: Histogram) -> tuple[float, float]:
    """Each end in turn at the candidate whose int8 distribution diverges least from the float one."""
    counts = histogram.bins.astype(np.float64)
    centres = histogram.centres

    def cost(low: float, high: float) -> float:
        step = (high - low) / (LEVELS - 1)
        inside = (centres >= low) & (centres <= high)
        if step <= 0 or not counts[inside].any():
            return math.inf
        reference = counts[inside].copy()
        reference[0] += counts[centres < low].sum()
        reference[-1] += counts[centres > high].sum()
        level = np.rint((centres[inside] - low) / step).astype(np.int64)
        # What int8 keeps: the counts within a level spread evenly over the bins of it that were not empty.
        held = counts[inside]
        filled = held > 0
        total = np.bincount(level, held, LEVELS)
        spread = np.bincount(level, filled, LEVELS)
        kept = np.where(filled, total[level] / np.maximum(spread[level], 1), 0.0)
        p, q = reference / reference.sum(), kept / kept.sum()
        seen = p > 0
        return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))).sum())

    return _descend(histogram, cost)


def _descend(histogram: Histogram, cost: Callable[[float, float], float]) -> tuple[float, float]:
    """The high end at its best for the full low end, then the low end at its best for that high end."""
    low, high = histogram.low, histogram.high
    if high > 0:
        high *= float(_CANDIDATES[int(np.argmin([cost(low, high * c) for c in _CANDIDATES]))])
    if low < 0:
        low *= float(_CANDIDATES[int(np.argmin([cost(low * c, high) for c in _CANDIDATES]))])
    return low, high


_METHODS: Final = {"minmax": _minmax, "percentile": _percentile, "entropy": _entropy, "mse": _mse}
