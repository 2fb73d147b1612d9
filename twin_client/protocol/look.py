"""What one acceleration window shows by itself: how much it varies, how it rests, what it repeats.

Rest vectors are compared by their difference, in which a constant offset and an axis that always says the same cancel;
variation and likeness are summed over the axes, so any mounting will do.
"""

import math
import sys
from array import array
from collections.abc import Sequence
from itertools import combinations, pairwise
from operator import mul, sub
from statistics import fmean

import msgspec

from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.records import Window

Vector = tuple[float, float, float]

BLOCK = 0.5  # seconds: breath and sway are slow in it and steps are not
RHYTHM_RATE = 20.0  # samples a second are enough to see steps by
STEP = 0.75  # seconds: what takes longer is a pair of steps


class Look(msgspec.Struct, frozen=True):
    """What a window shows by itself; axes it does not have are 0."""

    duration: float
    block: float  # seconds in a block
    levels: list[float]  # g, a block each
    level: float
    rests: list[Vector]  # g, mean of each block
    mean: Vector
    force: list[float]  # g, of each sample, axes left out that are stuck
    live: Vector  # 1 an axis that moves, 0 a stuck one
    broken: bool  # no axis moves, and what they say is not the weight of anything
    jerk: float
    thin: list[Vector]  # g, some 20 samples a second
    pace: float  # of these, samples a second


def samples_of(window: Window) -> "list[array[int]]":
    """Counts, an array an axis. Raises ProtocolError for what is no window of 1 to 3 axes."""
    if not (0.1 <= window.rate <= 1e5 and 0 < window.scale <= 1e3):
        raise ProtocolError(f"a window of {window.rate} samples a second, {window.scale} a count")
    if not 1 <= window.axes <= 3:
        raise ProtocolError(f"a window of {window.axes} axes; motion is judged by 1 to 3")
    if len(window.counts) % (2 * window.axes):
        raise ProtocolError(f"a window of {len(window.counts)} bytes does not hold whole samples of {window.axes} axes")
    counts = array("h")
    counts.frombytes(window.counts)
    if sys.byteorder == "big":
        counts.byteswap()
    return [counts[axis :: window.axes] for axis in range(window.axes)]


def look(window: Window, samples: "Sequence[array[int]]", unit: float) -> Look:
    """Look at the `samples` of `window`, one at least. unit: what one g is in the window's own unit."""
    scale = window.scale / unit
    axes = [[count * scale for count in axis] for axis in samples]
    count = len(axes[0])
    blocks = max(1, min(round(count / (BLOCK * window.rate)), count // 3))
    edges = [count * block // blocks for block in range(blocks + 1)]
    levels, rests = [], []
    for begin, end in pairwise(edges):
        spread, rest = 0.0, [0.0, 0.0, 0.0]
        for i, axis in enumerate(axes):
            part = axis[begin:end]
            rest[i] = centre = sum(part) / len(part)
            spread += sum(map(mul, part, part)) / len(part) - centre * centre
        levels.append(math.sqrt(max(0.0, spread)))
        rests.append((rest[0], rest[1], rest[2]))
    spans = [max(axis) - min(axis) for axis in samples]
    moving = max(spans) > 0
    live = [1.0 if not moving or (i < len(spans) and spans[i] > 0) else 0.0 for i in range(3)]
    felt = [axis for axis, alive in zip(axes, live, strict=False) if alive]
    squares = [sum(values) for values in zip(*([value * value for value in axis] for axis in felt), strict=True)]
    change = sum(sum(map(mul, d, d)) for d in (list(map(sub, axis[1:], axis)) for axis in axes))
    every = max(1, int(window.rate / RHYTHM_RATE))
    return Look(
        duration=count / window.rate,
        block=count / window.rate / blocks,
        levels=levels,
        level=math.sqrt(fmean(map(mul, levels, levels))),
        rests=rests,
        mean=mean(rests),
        force=[math.sqrt(square) for square in squares],
        live=(live[0], live[1], live[2]),
        broken=not moving and not 0.5 <= math.hypot(*mean(rests)) <= 1.5,
        jerk=window.rate * math.sqrt(change / max(1, count - 1)),
        thin=_thinned(axes, every),
        pace=window.rate / every,
    )


def _thinned(axes: Sequence[Sequence[float]], every: int) -> list[Vector]:
    """Means of `every` samples; axes that are not there are 0."""
    count = len(axes[0]) // every * every
    thin = [[sum(axis[i : i + every]) / every for i in range(0, count, every)] for axis in axes]
    thin += [[0.0] * len(thin[0])] * (3 - len(thin))
    return list(zip(*thin, strict=True))


def wander(thin: Sequence[Vector], pace: float) -> float:
    """Degrees between the two half seconds in which a body rested most differently."""
    long = max(1, round(BLOCK * pace))
    rests = [mean(thin[i : i + long]) for i in range(0, len(thin) - long + 1, long)]
    return _degrees(max((math.dist(*pair) for pair in combinations(rests, 2)), default=0.0))


def likeness(thin: Sequence[Vector], pace: float, slowest: float, fastest: float) -> tuple[float, float]:
    """How much a movement repeats itself, 0 to 1, and the steps a second that would, between `slowest` and `fastest`.

    The autocorrelation at a step's time and at that of a pair of steps, summed over the axes. Only a peak counts: what
    merely changes slowly resembles itself at every short lag. (0, 0) where `thin` is too short or coarse to say.
    """
    count = len(thin)
    first = max(2, math.floor(pace / fastest))
    last = min(math.ceil(2 * pace / slowest), int(0.6 * count))
    if last - first < 2:
        return 0.0, 0.0
    axes = [
        [value - centre for value in axis] for axis, centre in zip(zip(*thin, strict=True), mean(thin), strict=True)
    ]
    power = [sum(value * value for value in values) for values in zip(*axes, strict=True)]
    sums = [0.0]
    for value in power:
        sums.append(sums[-1] + value)
    found = []
    for lag in range(first - 1, last + 1):
        shared = sum(sum(map(mul, axis, axis[lag:])) for axis in axes)
        norm = math.sqrt(sums[count - lag] * (sums[count] - sums[lag]))
        found.append(shared / norm if norm > 0 else 0.0)
    best, at = 0.0, 0.0
    for i in range(1, len(found) - 1):
        before, here, after = found[i - 1 : i + 2]
        if here > best and before <= here >= after:
            bend = before - 2 * here + after
            best, at = here, first - 1 + i + (0.5 * (before - after) / bend if bend else 0.0)
    if not best:
        return 0.0, 0.0
    period = at / pace
    return min(best, 1.0), (1.0 if period <= STEP else 2.0) / period


def angle(one: Vector, other: Vector) -> float:
    """Degrees between two directions of gravity, from their difference alone: what both have wrong cancels."""
    return _degrees(math.dist(one, other))


def _degrees(chord: float) -> float:
    return math.degrees(2 * math.asin(min(1.0, chord / 2)))


def mean(vectors: Sequence[Vector]) -> Vector:
    return mixed((0.0, 0.0, 0.0), tuple(map(fmean, zip(*vectors, strict=True))), 1.0)


def mixed(one: Vector, other: Sequence[float], share: float) -> Vector:
    x, y, z = (a + share * (b - a) for a, b in zip(one, other, strict=True))
    return x, y, z
