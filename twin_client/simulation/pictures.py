"""What a camera sees of a wall: grain, joints and light, with a crack that grows, and the mask of that crack."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 448


def wall(
    seed: int, crack: float, daylight: float = 1.0, side: int = SIDE
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """An image (side, side, 3) and the mask (side, side) of its crack.

    `crack`, 0 to 1: how far it has opened; its course is the seed's, so a later image shows the same one longer and
    wider. `daylight`, 0 to 1.
    """
    dice = np.random.default_rng([seed, 77])
    grain = _clouds(dice, side)
    rock = 0.52 + 0.16 * grain + dice.normal(0, 0.02, (side, side))
    distance, along = _course(dice, side)
    length = 0.15 + 0.85 * crack
    width = (0.6 + 3.0 * crack) * side / SIDE * np.clip(1.2 - along / max(length, 1e-6), 0.25, 1.0)
    open_here = (along <= length) & (crack > 0)
    mask = open_here & (distance <= width)
    shade = np.where(open_here, np.clip((width + 1.2 - distance) / 1.2, 0.0, 1.0), 0.0)
    rock = rock * (1 - 0.75 * shade)
    light = 0.08 + 0.92 * daylight
    tint = np.array([1.0, 0.96, 0.9])
    image = np.clip(rock[..., None] * tint * light, 0, 1)
    return np.asarray(np.rint(image * 255), np.uint8), np.asarray(mask)


def _clouds(dice: np.random.Generator, side: int) -> NDArray[Any]:
    """Smooth noise of several sizes, mean 0, within about -1 and 1."""
    total = np.zeros((side, side))
    at = np.linspace(0, 1, side)
    for cells, share in ((3, 0.5), (9, 0.3), (33, 0.2)):
        coarse = dice.uniform(-1, 1, (cells + 1, cells + 1))
        grid = at * cells
        low = np.minimum(grid.astype(int), cells - 1)
        part = grid - low
        rows = coarse[low] * (1 - part)[:, None] + coarse[low + 1] * part[:, None]
        total += share * (rows[:, low] * (1 - part) + rows[:, low + 1] * part)
    return total


def _course(dice: np.random.Generator, side: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Each pixel's distance from the crack's course, in pixels, and how far along that is, 0 to 1."""
    points = [np.array([dice.uniform(0.05, 0.2), dice.uniform(0.2, 0.8)]) * side]
    angle = dice.uniform(-0.3, 0.3)
    while points[-1][0] < 0.97 * side and len(points) < 60:
        angle = 0.8 * angle + dice.normal(0, 0.35)
        points.append(points[-1] + side / 30 * np.array([math.cos(angle), math.sin(angle)]))
    ys, xs = np.mgrid[0:side, 0:side]
    best, along = np.full((side, side), np.inf), np.zeros((side, side))
    for number, (first, last) in enumerate(pairwise(points)):
        way = last - first
        share = np.clip(((xs - first[0]) * way[0] + (ys - first[1]) * way[1]) / (way @ way), 0, 1)
        distance = np.hypot(xs - first[0] - share * way[0], ys - first[1] - share * way[1])
        nearer = distance < best
        best[nearer] = distance[nearer]
        along[nearer] = ((number + share) / (len(points) - 1))[nearer]
    return best, along
