"""How well motion is told and a place found, on what is generated with the truth beside it.

    python -m benchmarks.motion --json motion.json --picture motion.png

Motion: every subject is somebody else and wears another sensor, mounted any way up, with noise, offset and gain of its
own. Still, walking, riding and moving are judged window by window where a window holds nothing else; a fall and a
faint are judged once each: whether it was said in time. Place: gateways and tags fall anywhere in a pit; the stated
error is tested by how often the truth lies within it, and beside it stand the place of the gateway that hears the tag
best and the likeliest place.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.motion_picture import picture
from benchmarks.script import script
from targets.runtime.files import write_text
from twin_client.protocol import motion, place
from twin_client.simulation.body import Body, Subject
from twin_client.simulation.motion import Sensor, Track
from twin_client.simulation.radio import Air, metres, signals

KINDS = ("still", "walking", "riding", "moving", "fall", "faint")
TRUTH = {"stand": "still", "sit": "still", "walk": "walking", "run": "walking", "ride": "riding", "work": "moving"}
PARTS: tuple[tuple[tuple[str, float], ...], ...] = (
    (("stand", 60), ("walk", 60)),
    (("work", 90), ("stand", 20)),
    (("sit", 150),),
    (("ride", 120), ("walk", 30)),
    (("walk", 20), ("jump", 20), ("run", 20)),
    (("walk", 20), ("fall", 9), ("rise", 3), ("walk", 20)),
    (("work", 20), ("fall", 6), ("lie", 60), ("rise", 4), ("walk", 15)),
    (("stand", 20), ("slump", 2), ("lie", 100), ("rise", 4), ("walk", 15)),
)
IN_TIME = 20.0  # seconds from a fall to the word
ORIGIN = (40.0, 110.0)
NOISES, COUNTS = (2.0, 4.0, 6.0, 8.0, 10.0), (1, 2, 3, 4, 6, 8)
HALF = 400.0  # metres from the pit's middle to its edge

Result = dict[str, Any]


# --- motion ---------------------------------------------------------------------------------------------


def _as_drawn(sensor: Sensor) -> Sensor:
    return sensor


CONDITIONS: dict[str, tuple[float, float, float, Callable[[Sensor], Sensor]]] = {  # rate, window, share lost, fault
    "3 s at 50 Hz": (50.0, 3.0, 0.0, _as_drawn),
    "3 s at 25 Hz": (25.0, 3.0, 0.0, _as_drawn),
    "2 s at 100 Hz": (100.0, 2.0, 0.0, _as_drawn),
    "1 s at 50 Hz": (50.0, 1.0, 0.0, _as_drawn),
    "one window in 20 lost": (50.0, 3.0, 0.05, _as_drawn),
    "an axis dead": (50.0, 3.0, 0.0, lambda sensor: replace(sensor, dead=(0, 0.0))),
    "clipped at 2 g": (50.0, 3.0, 0.0, lambda sensor: replace(sensor, range=2.0)),
    "offsets tripled": (50.0, 3.0, 0.0, lambda sensor: replace(sensor, offset=_tripled(sensor.offset))),
    "noise of 12 mg": (50.0, 3.0, 0.0, lambda sensor: replace(sensor, noise=0.012)),
}


def _tripled(offset: tuple[float, float, float]) -> tuple[float, float, float]:
    return 3 * offset[0], 3 * offset[1], 3 * offset[2]


def told(condition: str, subjects: int, seed: int) -> Result:
    """What was said under one condition: a confusion by truth and word, false alarms, hours, ms a window."""
    rate, seconds, lost, fault = CONDITIONS[condition]
    table: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    false, hours, spent, windows = Counter[str](), 0.0, 0.0, 0
    for number in range(subjects):
        dice = np.random.default_rng([seed, number])
        script = [act for part in dice.permutation(len(PARTS)) for act in PARTS[part]]
        track = Body(Subject.draw(dice), dice, rate).perform(script)
        sensor = fault(Sensor.draw(dice, rate))
        settings = motion.Settings(full_scale=sensor.range)
        state, said, span = motion.State(), list[tuple[str, str]](), 0.0
        for window, doing in track.windows(sensor, dice, seconds):
            span += seconds
            if dice.uniform() < lost:
                said.append((doing, "lost"))
                continue
            begin = time.process_time()
            state, found = motion.judge(settings, state, window, span)
            spent, windows, span = spent + time.process_time() - begin, windows + 1, 0.0
            said.append((doing, found.kind))
        _count(track, seconds, [kind for _, kind in said], table, false)
        for doing, kind in said:
            if doing in TRUTH and kind != "lost":
                table[TRUTH[doing]][kind] += 1
        hours += len(track.force) / rate / 3600
    return {
        "confusion": {truth: dict(counts) for truth, counts in table.items()},
        "false": dict(false),
        "hours": round(hours, 3),
        "ms_a_window": round(1e3 * spent / windows, 3),
    }


def _count(
    track: Track, seconds: float, said: Sequence[str], table: dict[str, Counter[str]], false: Counter[str]
) -> None:
    """Falls and faints, once each; and how often either was said to begin where there was none."""
    expected: set[int] = set()
    for act in track.acts:
        first = int(act.first / track.rate / seconds)
        if act.name == "fall":
            last = int((act.first / track.rate + IN_TIME) / seconds)
            table["fall"][_word(said[first : last + 1], "fall")] += 1
            expected |= set(range(first, last + 1))
        if act.name in ("lie", "stunned"):
            last = int(act.last / track.rate / seconds)
            expected |= set(range(first, last + 1))
            if act.name == "lie":
                table["faint"][_word(said[first : last + 1], "faint")] += 1
    before = ""
    for i, kind in enumerate(said):
        if kind in ("fall", "faint") and kind != before and i not in expected:
            false[kind] += 1
        before = kind if kind != "lost" else before


def _word(said: Sequence[str], wanted: str) -> str:
    return wanted if wanted in said else Counter(kind for kind in said if kind != "lost").most_common(1)[0][0]


def share(result: Result, truth: str) -> float:
    """How much of one truth was told as such."""
    row = result["confusion"][truth]
    return float(row.get(truth, 0) / sum(row.values()))


# --- place ----------------------------------------------------------------------------------------------

SPECIAL: dict[str, tuple[int, Air, place.Settings, bool]] = {  # gateways, air, what is believed, in a line
    "4 in a line": (4, Air(noise=4.0), place.Settings(noise=4.0), True),
    "6, of the paths 20 % blocked": (6, Air(noise=4.0, blocked=0.2), place.Settings(noise=4.0), False),
    "6, the same, told nothing of it": (6, Air(noise=4.0, blocked=0.2), place.Settings(noise=4.0, blocked=0.0), False),
    "6, noise of 8 dB taken for 4": (6, Air(noise=8.0), place.Settings(noise=4.0), False),
    "6, noise of 4 dB taken for 8": (6, Air(noise=4.0), place.Settings(noise=8.0), False),
    "6, exponent of 3.0 taken for 2.7": (6, Air(noise=4.0, exponent=3.0), place.Settings(noise=4.0), False),
}


def found(count: int, air: Air, settings: place.Settings, line: bool, trials: int, seed: int) -> Result:
    """Errors in metres over `trials` pits, the stated ones, and how often the truth lay within one and two of them."""
    dice = np.random.default_rng([seed, count, round(10 * air.noise), line])
    errors, stated, strongest, likeliest = list[float](), list[float](), list[float](), list[float]()
    spent = 0.0
    while len(errors) < trials:
        gateways = np.concatenate([dice.uniform(-HALF, HALF, (count, 2)), np.zeros((count, 1))], 1)
        if line:
            gateways[:, 1] = 0.0
        tag = np.array([*dice.uniform(-HALF, HALF, 2), 0.0])
        strengths = air.heard(gateways, tag, dice)
        if np.isnan(strengths).all():
            continue
        heard = signals(gateways, strengths, ORIGIN)
        begin = time.process_time()
        answer = place.locate(settings, heard, 0.0)
        spent += time.process_time() - begin
        errors.append(float(np.hypot(*(np.array(metres(ORIGIN, answer.latitude, answer.longitude)) - tag[:2]))))
        stated.append(answer.error)
        strongest.append(float(np.linalg.norm(gateways[np.nanargmax(strengths)] - tag)))
        likeliest.append(float(np.hypot(*(_likeliest(settings, gateways, strengths) - tag[:2]))))
    error, within = np.array(errors), np.array(errors) / np.array(stated)
    return {
        "median": round(float(np.median(error)), 1),
        "p95": round(float(np.percentile(error, 95)), 1),
        "rms": _rms(error),
        "stated": _rms(np.array(stated)),
        "within_1": round(float((within <= 1).mean()), 3),
        "within_2": round(float((within <= 2).mean()), 3),
        "strongest_rms": _rms(np.array(strongest)),
        "likeliest_rms": _rms(np.array(likeliest)),
        "ms": round(1e3 * spent / trials, 2),
    }


def _rms(values: "np.ndarray[Any, np.dtype[np.float64]]") -> float:
    return round(float(np.sqrt((values**2).mean())), 1)


def _likeliest(settings: place.Settings, gateways: Any, strengths: Any, cell: float = 20.0) -> Any:
    """The best cell of a grid over twice the pit under noise alone: plain maximum likelihood."""
    side = np.arange(-2 * HALF, 2 * HALF, cell) + cell / 2
    east, north = np.meshgrid(side, side)
    misfit = np.zeros_like(east)
    for (x, y, _), strength in zip(gateways, strengths, strict=True):
        if not np.isnan(strength):
            distance = np.maximum(np.hypot(east - x, north - y), place.NEAREST)
            misfit += (strength - settings.at_metre + 10 * settings.exponent * np.log10(distance)) ** 2
    best = int(misfit.argmin())
    return np.array([east.flat[best], north.flat[best]])


# --- what is shown --------------------------------------------------------------------------------------


def measured(subjects: int, trials: int, seed: int) -> Result:
    """Everything; a minute or two for 40 subjects and 300 trials."""
    steps: list[tuple[str, str, Callable[[], Result]]] = [
        ("motion", name, partial(told, name, subjects, seed)) for name in CONDITIONS
    ]
    for noise in NOISES:
        for count in COUNTS:
            given = (count, Air(noise=noise), place.Settings(noise=noise), False)
            steps.append(("place", f"{count}, {noise:g} dB", partial(found, *given, trials, seed)))
    for name, given in SPECIAL.items():
        steps.append(("special", name, partial(found, *given, trials, seed)))
    result: Result = {"motion": {}, "place": {}, "special": {}}
    for part, name, measure in tqdm(steps, desc="measuring", leave=False, disable=None):
        result[part][name] = measure()
    return result


def tables(result: Result) -> str:
    """Markdown: the confusion, the other conditions, places."""
    first = next(iter(result["motion"].values()))["confusion"]
    words = [*KINDS, "unknown"] if any("unknown" in row for row in first.values()) else list(KINDS)
    lines = _table(["truth, said", *words], [[kind, *(first[kind].get(word, 0) for word in words)] for kind in KINDS])
    heads = ["condition", *(f"{kind} told" for kind in KINDS), "false falls", "false faints", "hours", "ms a window"]
    rows: list[list[object]] = []
    for name, one in result["motion"].items():
        told_right = [f"{share(one, kind):.3f}" for kind in KINDS]
        false = [one["false"].get(kind, 0) for kind in KINDS[4:]]
        rows.append([name, *told_right, *false, f"{one['hours']:.1f}", one["ms_a_window"]])
    lines += ["", *_table(heads, rows)]
    keys = ("median", "p95", "rms", "stated", "within_1", "within_2", "strongest_rms", "likeliest_rms", "ms")
    places = {**result["place"], **result["special"]}
    rows = [[name, *(one[key] for key in keys)] for name, one in places.items()]
    return "\n".join([*lines, "", *_table(["gateways", *(key.replace("_", " ") for key in keys)], rows)])


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return ["| " + " | ".join(map(str, row)) + " |" for row in (heads, ["---"] * len(heads), *rows)]


def main() -> None:
    """Measure, print the tables, and keep what was asked to be kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=40)
    parser.add_argument("--trials", type=int, default=300, help="pits for each figure of a place")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every figure here")
    parser.add_argument("--picture", type=Path, metavar="FILE.png")
    args = parser.parse_args()
    if args.subjects < 1 or args.trials < 2:
        parser.error("at least 1 subject and 2 trials")
    command = f"python -m benchmarks.motion --subjects {args.subjects} --trials {args.trials} --seed {args.seed}"
    result = {"command": command} | measured(args.subjects, args.trials, args.seed)
    if args.json is not None:
        write_text(args.json, json.dumps(result, indent=1) + "\n")
    if args.picture is not None:
        picture(result, args.picture, KINDS, NOISES, COUNTS)
    print(tables(result))


if __name__ == "__main__":
    script(main)
