"""How fast a value moves, and when it will fail if it goes on accelerating; points are (seconds, value) in order.

Velocity is the Theil-Sen slope, the median over all pairs. On noise without outliers it is about as sharp as least
squares, and up to 29 points in 100 may lie anywhere, while least squares with outliers cut is led astray by those at
the ends, which pull the line so far that they are not cut (tests/twin_client/test_rules_fits.py compares both).

Failure is Fukuzono's law (1985): while a slope accelerates, 1/v falls along a straight line, (T - t) / B, that meets 0
at the failure T. Velocities between neighbouring readings are mostly noise and their inverses worse, so the law is
fitted in its integral, x = c - B ln(T - t), to the values themselves. T at infinity is a constant velocity: that 1/v
clearly falls is the same as that the fit with a finite T is clearly better than a straight line.
"""

import math
from collections.abc import Sequence
from itertools import combinations, pairwise
from operator import mul
from statistics import NormalDist, fmean, median

import msgspec

HOUR = 3600.0  # seconds
FEWEST = 7  # points that can say anything of three unknowns
FAR = 30.0  # windows ahead: a failure later than this cannot be told from none
CUT = 4.0  # standard deviations, beyond which a point is left out of the fit
STAGES = (1.0, 0.75, 0.5, 0.35)  # shares of the history that may be the accelerating stage
GRID = 16  # times of failure that are tried before the best is looked for between them

Points = Sequence[tuple[float, float]]


class Failure(msgspec.Struct, frozen=True):
    """When it fails: hours from the last point, and the interval that holds the truth with the confidence asked for."""

    hours: float
    earliest: float
    latest: float
    velocity: float  # measured over the last quarter of the accelerating stage, the value's unit an hour


class _Fit(msgspec.Struct, frozen=True):
    """The law with failure `ahead` seconds after the last point: the best c and B, and what they leave over."""

    ahead: float
    b: float
    rest: float  # sum of squares
    over: list[float]


def slope(points: Points) -> float | None:
    """The Theil-Sen slope, units a second; None where there are no two times, or it is beyond all numbers."""
    slopes = [(x - y) / (t - s) for (s, y), (t, x) in combinations(points, 2) if t > s]
    found = median(slopes) if slopes else math.nan
    return found if math.isfinite(found) else None


def failure(points: Points, floor: float, confidence: float) -> Failure | None:
    """The failure ahead; None unless the value accelerates, with `confidence`, to a velocity of `floor` an hour.

    Of a longer history only the end may accelerate: the law is fitted to the most of it that it fits.
    """
    best: tuple[float, Failure | None] = (-math.inf, None)
    for part in STAGES:
        stage = points[len(points) - round(part * len(points)) :]
        if len(stage) < FEWEST:
            break
        fitness, found = _failure(stage, confidence)
        if found is not None and fitness > best[0]:
            best = fitness, found
        if found is not None and fitness >= 0:
            break
    found = best[1]
    return found if found is not None and abs(found.velocity) >= floor else None  # as measured, not as extrapolated


def _failure(points: Points, confidence: float) -> tuple[float, Failure | None]:
    """One stage's failure, and how well the law fits it: below 0, what it leaves over is not noise but a curve."""
    points = [(t - points[-1][0], x - points[-1][1]) for t, x in points]
    if not _bends(points):
        return -math.inf, None
    best = _best(points)
    kept = _without_outliers(points, best)
    if len(kept) < FEWEST:
        return -math.inf, None
    if len(kept) < len(points):
        points, best = kept, _best(kept)
    count = len(points)
    nearest, farthest = _reach(points)
    straight = _law(points, farthest)
    sure = 1 - (1 - confidence) / len(STAGES)  # so many chances to find an acceleration where there is none
    if not math.isfinite(best.b) or straight.rest <= _enough(points, best, sure):
        return -math.inf, None
    enough = _enough(points, best, confidence)
    steps = sum((x - y) ** 2 for x, y in pairwise(best.over))  # von Neumann's ratio: 2 for noise, 0 for a curve
    fitness = (steps / best.rest if best.rest > 0 else 2.0) - 2 + 4 / math.sqrt(count)
    return fitness, Failure(
        hours=best.ahead / HOUR,
        earliest=_edge(points, enough, best.ahead, nearest) / HOUR,
        latest=_edge(points, enough, best.ahead, farthest) / HOUR,
        velocity=(slope(points[-max(4, count // 4) :]) or 0.0) * HOUR,
    )


def _bends(points: Points) -> bool:
    """Whether the last third is steeper than the middle one: a look that spares most fits."""
    third = len(points) // 3
    (s, a), (t, b), (u, c) = (
        (fmean(t for t, _ in part), fmean(x for _, x in part))
        for part in (points[:third], points[third:-third], points[-third:])
    )
    if not s < t < u:
        return False
    before, after = (b - a) / (t - s), (c - b) / (u - t)
    return abs(after) > abs(before) or after * before < 0


def _reach(points: Points) -> tuple[float, float]:
    """The nearest and the farthest time of failure that can be told, seconds."""
    span = points[-1][0] - points[0][0]
    return span / len(points) / 4, FAR * span


def _law(points: Points, ahead: float) -> _Fit:
    curve = [-math.log(ahead - t) for t, _ in points]
    values = [x for _, x in points]
    middle, mean = fmean(curve), fmean(values)
    curve = [r - middle for r in curve]
    values = [x - mean for x in values]
    b = sum(map(mul, curve, values)) / (sum(map(mul, curve, curve)) or math.inf)
    over = [x - b * r for x, r in zip(values, curve, strict=True)]
    return _Fit(ahead, b, sum(map(mul, over, over)), over)


def _best(points: Points) -> _Fit:
    nearest, farthest = _reach(points)
    ratio = (farthest / nearest) ** (1 / (GRID - 1))
    first = min((_law(points, nearest * ratio**i) for i in range(GRID)), key=lambda fit: fit.rest)
    low, high = max(nearest, first.ahead / ratio), min(farthest, first.ahead * ratio)
    for _ in range(9):  # thirds, in the logarithm, which leaves a fortieth of two steps of the grid
        near, far = low * (high / low) ** (1 / 3), low * (high / low) ** (2 / 3)
        if _law(points, near).rest <= _law(points, far).rest:
            high = far
        else:
            low = near
    return min(first, _law(points, math.sqrt(low * high)), key=lambda fit: fit.rest)


def _without_outliers(points: Points, fit: _Fit) -> Points:
    spread = 1.4826 * median(map(abs, fit.over))
    limit = CUT * spread
    return [point for point, over in zip(points, fit.over, strict=True) if abs(over) <= limit or spread == 0]


def _enough(points: Points, best: _Fit, confidence: float) -> float:
    """What a fit may leave over that is not clearly worse than the best (an F test of one unknown)."""
    freedom = len(points) - 3
    least = 1e-24 * sum(x * x for _, x in points)  # of rounding: points without any noise fit too well to be true
    return (best.rest + least) * (1 + _student(confidence, freedom) ** 2 / freedom)


def _edge(points: Points, enough: float, inside: float, outside: float) -> float:
    """Where between two times of failure the fit stops being as good as `enough`."""
    if _law(points, outside).rest <= enough:
        return outside
    for _ in range(8):
        between = math.sqrt(inside * outside)
        if _law(points, between).rest <= enough:
            inside = between
        else:
            outside = between
    return inside


def _student(confidence: float, freedom: int) -> float:
    """The quantile of Student's t, two-sided, by the first terms of its expansion; 5 % low at 4 degrees of freedom."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
