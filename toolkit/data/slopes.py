"""Slopes out of a seed: a photograph of the face and five sensor features, hazardous only where both say so.

A slope is called hazardous where a crack shows and the ground moves faster from day to day. Either has its
imitators: shadows and rain streaks look like cracks; trucks shake what shakes when rock breaks, rain and warmth
move what a failing slope moves. So neither the camera nor the sensors alone can tell.
"""

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from targets.runtime.errors import HighwallError
from toolkit.data.noise import FAR, fractal, smoothstep, stroke, wander
from toolkit.data.samples import Samples
from toolkit.data.synthetic import FOLDS, GROUP, SMALLEST
from toolkit.data.walls import Wall

# mm/m a day, mm a day, mm in the last day, mm/s, degrees Celsius
SENSORS = ("tilt_rate", "extensometer_velocity", "rain", "vibration_rms", "temperature")
# Cracked and moving: two hazards in five, the other three kinds alike, and every fold has all of them.
_KINDS = ((True, True), (True, False), (True, True), (False, True), (False, False))


def slopes(count: int, size: int = 48, seed: int = 0) -> Samples:
    """`count` slopes, two in five hazardous: images (count,size,size,3) uint8 and sensors (count,5) float32.

    The same seed gives the same bytes, and sample i does not depend on `count`. Raises HighwallError for fewer
    than two samples, a size below 16 or a negative seed.
    """
    if count < 2:
        raise HighwallError(f"{count} samples cannot hold both classes; generate 2 or more")
    if size < SMALLEST:
        raise HighwallError(f"size {size} is too small to show anything; choose {SMALLEST} or more pixels")
    if seed < 0:
        raise HighwallError(f"seed {seed} is negative; choose 0 or more")
    images = np.empty((count, size, size, 3), np.uint8)
    sensors = np.empty((count, len(SENSORS)), np.float32)
    labels = np.empty(count, np.uint8)
    for i in tqdm(range(count), desc="generating", unit="slope", leave=False, delay=2, disable=None):
        # Dice of its own, and dice that roll alike throughout a group: one face under one sky.
        own, shared = np.random.default_rng([seed, 2, i]), np.random.default_rng([seed, 3, i // GROUP])
        cracked, moving = _KINDS[(i + i // (GROUP * FOLDS)) % len(_KINDS)]
        images[i] = look(own, Wall.draw(shared).stone, cracked, size)
        sensors[i] = feel(own, shared, moving)
        labels[i] = cracked and moving
    index = np.arange(count)
    return Samples(
        task="classify",
        images=images,
        labels=labels,
        names=tuple(str(i) for i in index),
        folds=index // GROUP % FOLDS,
        groups=np.array([f"face{i // GROUP:05d}" for i in index]),
        class_names=("stable", "hazardous"),
        found=f"generated with seed {seed}",
        sensors=sensors,
        sensor_names=SENSORS,
    )


def look(own: np.random.Generator, stone: NDArray[np.float32], cracked: bool, size: int) -> NDArray[np.uint8]:
    """A photograph (size,size,3) of a piece of the face, with or without a crack, often with what looks like one."""
    unit = size / 32  # the size at which the widths below are pixels
    tone = 1 + np.float32(0.10) * fractal(own, size, size / 2, 3) + np.float32(0.05) * fractal(own, size, 4 * unit, 2)
    if own.random() < 0.6:  # the shadow of a pole or a cable: as dark as a crack, but straight, wide and soft
        line = _line(own, size, turn=0.0, radius=float(own.uniform(1.0, 2.5)) * unit)
        tone *= 1 - np.float32(own.uniform(0.25, 0.6)) * smoothstep(2.0 * unit, -unit, line)
    if own.random() < 0.4:  # rain streaks
        tone *= 1 - np.float32(0.2) * smoothstep(0.6, 2.0, fractal(own, size, 4 * unit, 2, stretch=6.0))
    if cracked:
        line = _line(own, size, turn=0.35, radius=float(own.uniform(0.5, 1.1)) * unit)
        tone *= 1 - np.float32(own.uniform(0.35, 0.75)) * np.clip(np.float32(0.5) - line, 0, 1)
    light = np.float32(own.uniform(0.8, 1.2))
    image = tone[:, :, None] * stone * light + own.normal(0, 0.015, (size, size, 3)).astype(np.float32)
    return np.asarray(np.rint(np.clip(image, 0, 1) * 255), np.uint8)


def _line(own: np.random.Generator, size: int, *, turn: float, radius: float) -> NDArray[np.float32]:
    """Distance (size,size), pixels, to a line across the image, below 0 inside; `turn` makes it wander."""
    heading = float(own.uniform(0, 2 * np.pi))
    middle = size / 2 + own.uniform(-0.3, 0.3, 2) * size
    start = middle - 0.8 * size * np.array([np.cos(heading), np.sin(heading)])
    step = size / 16
    path = wander(own, (float(start[0]), float(start[1])), heading, step=step, count=26, turn=turn)
    line = np.full((size, size), FAR, np.float32)
    stroke(line, path, np.full(len(path), radius), 6 * size / 32)
    return line


def feel(own: np.random.Generator, shared: np.random.Generator, moving: bool) -> NDArray[np.float32]:
    """The five features of SENSORS, (5,) float32, on a slope that is failing or not."""
    temperature = float(shared.normal(12, 8)) + float(own.normal(0, 1))
    rain = float(shared.gamma(1.2, 8)) * (shared.random() < 0.4)
    truck = own.random() < 0.35
    creep = 0.5 + 0.05 * rain  # wet ground creeps and stops again
    failing = float(own.lognormal(0.5, 0.5)) if moving else 0.0
    ground = (creep + failing) * float(own.lognormal(0, 0.3))
    velocity = ground + 0.05 * (temperature - 12) + float(own.normal(0, 0.15))  # the wire itself grows in the sun
    tilt = 0.3 * ground + (float(own.normal(0, 0.4)) if truck else 0.0) + float(own.normal(0, 0.12))
    vibration = 0.3 * float(own.lognormal(0, 0.4)) + (float(own.uniform(0.4, 2.5)) if truck else 0.0)
    vibration += float(own.gamma(1.5, 0.4)) if moving else 0.0  # rock that breaks
    return np.array([tilt, velocity, rain, vibration, temperature], np.float32)
