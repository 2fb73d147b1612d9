"""Timing inferences: until they are warm, so many of them, and for so long without a rest."""

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from targets.runtime.machine import State, conditions, look, throttled

BLOCK: Final = 10  # warm-up is looked at in medians of so many runs
PATIENCE: Final = 3  # and ends when so many medians in a row
GAIN: Final = 0.02  # fell by no more than this share
LEAST_S, MOST_S = 0.5, 60.0  # of warm-up: a governor needs the one to notice, a user waits no longer than the other
SAMPLE_S: Final = 5.0  # between two looks at temperature and clock
RESAMPLES: Final = 1000
Once = Callable[[], float]  # one inference; the seconds it took
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cold:
    """Milliseconds in a process that had done nothing: import of the engine, load of the model, first inference."""

    engine_ms: float
    load_ms: float
    first_ms: float


@dataclass(frozen=True)
class WarmUp:
    """Runs until medians of BLOCK runs fell no more; `settled` is False where the bound came first."""

    runs: int
    seconds: float
    settled: bool


@dataclass(frozen=True)
class Timed:
    """Milliseconds of one inference, each percentile with the ends of its 95 % confidence interval."""

    runs: int
    p50_ms: float
    p50_interval_ms: tuple[float, float]
    p95_ms: float
    p95_interval_ms: tuple[float, float]
    min_ms: float
    per_second: float
    cpu_use: float  # cores kept busy by this process
    others_use: float | None  # and by all others, warm-up included


@dataclass(frozen=True)
class Sustained:
    """The first and the last tenth of an unbroken load; `slowdown` is the ratio of their medians."""

    seconds: float
    runs: int
    first_p50_ms: float
    first_p95_ms: float
    last_p50_ms: float
    last_p95_ms: float
    slowdown: float
    throttled: tuple[str, ...]
    samples: tuple[State, ...]


@dataclass(frozen=True)
class Series:
    """Seconds of each of a row of runs, the cores they kept busy, and the machine before, between and after."""

    seconds: NDArray[np.float64]
    cpu_use: float
    samples: tuple[State, ...]


def seconds_of(action: Callable[[], object]) -> float:
    """How long `action` takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def milliseconds(seconds: float) -> float:
    """For a result, to a tenth of a microsecond."""
    return round(float(seconds) * 1000, 4)


def warm_up(once: Once, most_s: float | None = None) -> WarmUp:
    """Run until it gets no faster, for LEAST_S to `most_s` seconds (MOST_S)."""
    most_s = MOST_S if most_s is None else most_s
    medians: list[float] = []
    runs, began = 0, time.monotonic()
    while True:
        block: list[float] = []
        while len(block) < BLOCK and time.monotonic() - began < most_s:
            block.append(once())
        runs += len(block)
        spent = time.monotonic() - began
        if spent >= most_s:
            return WarmUp(runs, round(spent, 3), False)
        medians.append(float(np.median(block)))
        if spent >= LEAST_S and settled(medians):
            return WarmUp(runs, round(spent, 3), True)


def settled(medians: Sequence[float]) -> bool:
    """Whether the last PATIENCE medians brought nothing more than a share of GAIN over those before."""
    early, late = medians[:-PATIENCE], medians[-PATIENCE:]
    return bool(early) and min(late) >= (1 - GAIN) * min(early)


def repeat(once: Once, runs: int, length_s: float, say: Say) -> Series:
    """`runs` inferences, and more until `length_s` seconds are over; no rest but for a look at the machine."""
    began = time.monotonic()
    samples, seconds, cpu = [look(began)], array("d"), 0.0
    looked, every = time.monotonic(), max(SAMPLE_S, length_s / 100)
    while len(seconds) < runs or time.monotonic() - began < length_s:
        used = time.process_time()
        seconds.append(once())
        cpu += time.process_time() - used
        if time.monotonic() - looked > every:
            samples.append(state := look(began))
            looked = time.monotonic()
            done = f"{state.second:.0f} of {length_s:g} s" if length_s else f"{len(seconds)} of {runs} runs"
            say(", ".join(filter(None, [done, conditions(state)])))
    samples.append(look(began))
    return Series(np.asarray(seconds), cpu / sum(seconds), tuple(samples))


def summary(series: Series, others_use: float | None) -> Timed:
    """What a row of runs comes to; `others_use`: cores that others kept busy meanwhile."""
    seconds = series.seconds
    p50, p95 = np.percentile(seconds, (50, 95))
    (low50, high50), (low95, high95) = intervals(seconds)
    return Timed(
        runs=len(seconds),
        p50_ms=milliseconds(p50),
        p50_interval_ms=(milliseconds(low50), milliseconds(high50)),
        p95_ms=milliseconds(p95),
        p95_interval_ms=(milliseconds(low95), milliseconds(high95)),
        min_ms=milliseconds(seconds.min()),
        per_second=float(f"{len(seconds) / seconds.sum():.4g}"),
        cpu_use=round(series.cpu_use, 3),
        others_use=others_use,
    )


def sustained(once: Once, length_s: float, say: Say) -> Sustained:
    """Run for `length_s` seconds without a rest."""
    began = time.monotonic()
    series = repeat(once, 1, length_s, say)
    spent, seconds = time.monotonic() - began, series.seconds
    tenth = max(1, len(seconds) // 10)
    first, last = (np.percentile(part, (50, 95)) for part in (seconds[:tenth], seconds[-tenth:]))
    return Sustained(
        seconds=round(spent, 1),
        runs=len(seconds),
        first_p50_ms=milliseconds(first[0]),
        first_p95_ms=milliseconds(first[1]),
        last_p50_ms=milliseconds(last[0]),
        last_p95_ms=milliseconds(last[1]),
        slowdown=round(float(last[0] / first[0]), 3),
        throttled=throttled(series.samples[0], series.samples),
        samples=series.samples,
    )


def intervals(seconds: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    """95 % bootstrap intervals of p50 and p95: [[from, to], [from, to]].

    Runs are drawn in stretches of neighbours (circular block bootstrap, Politis and Romano 1992), because a slow
    run seldom comes alone and intervals from single draws would be too narrow.
    """
    count = len(seconds)
    length = max(1, round(count ** (1 / 3)))
    random = np.random.RandomState(seed)
    drawn = np.empty((RESAMPLES, 2))
    for row in drawn:
        starts = random.randint(0, count, (-(-count // length), 1))
        row[:] = np.percentile(seconds[((starts + np.arange(length)).ravel() % count)[:count]], (50, 95))
    return np.percentile(drawn, (2.5, 97.5), axis=0).T
