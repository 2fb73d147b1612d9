"""The brushes of the synthetic generators: fractal noise, hill shading, strokes and softening, all seeded."""

import math

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]

FAR = np.float32(1e3)  # what `stroke` leaves where no stroke is near, pixels


def fractal(rng: np.random.Generator, size: int, cell: float, octaves: int = 4, stretch: float = 1.0) -> Field:
    """Value noise of about mean 0 and deviation 1, (size,size); `cell` is its coarsest wavelength in pixels.

    Each octave halves wavelength and height. `stretch` makes features that many times as tall as wide.
    """
    total = np.zeros((size, size), dtype=np.float32)
    power = 0.0
    for octave in range(octaves):
        wave = max(cell / 2**octave, 1.0)
        height = 0.5**octave
        total += np.float32(height) * _lattice(rng, size, wave * stretch, wave)
        power += height**2
        if wave == 1.0:
            break
    # 0.41 is the deviation of interpolated uniform noise over -1..1.
    return total / np.float32(0.41 * math.sqrt(power))


def _lattice(rng: np.random.Generator, size: int, tall: float, wide: float) -> Field:
    """One octave: random values on a grid, joined smoothly; uniform in -1..1 at the grid points."""
    rows, row_part = _weights(size, tall, float(rng.random()))
    columns, column_part = _weights(size, wide, float(rng.random()))
    grid = rng.random((int(rows[-1]) + 2, int(columns[-1]) + 2), dtype=np.float32) * 2 - 1
    lines = grid[rows] + (grid[rows + 1] - grid[rows]) * row_part[:, None]
    left = lines[:, columns]
    return np.asarray(left + (lines[:, columns + 1] - left) * column_part, dtype=np.float32)


def _weights(size: int, wave: float, phase: float) -> tuple[NDArray[np.int64], Field]:
    at = np.arange(size) / wave + phase
    cell = np.floor(at).astype(np.int64)
    part = (at - cell).astype(np.float32)
    return cell, np.asarray(part * part * (3 - 2 * part), dtype=np.float32)


def smoothstep(low: float, high: float, values: Field) -> Field:
    """0 below `low`, 1 above `high`, smooth between; falls instead of rises when `low` exceeds `high`."""
    part = np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(part * part * (3 - 2 * part), dtype=np.float32)


def hillshade(height: Field, azimuth: float, elevation: float) -> Field:
    """Sunlight on a terrain relative to flat ground, (H,W), about 1; height in pixels, angles in radians."""
    down, right = np.gradient(height)
    sun_x, sun_y = math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation)
    light = (math.sin(elevation) - sun_x * right - sun_y * down) / np.sqrt(1 + right**2 + down**2)
    return np.asarray(np.clip(light / math.sin(elevation), 0.25, 2.0), dtype=np.float32)


def soften(image: NDArray[np.float32], amount: float) -> NDArray[np.float32]:
    """Blurs by three taps over height and width of (H,W,...); `amount` 0 to 0.25 is each neighbour's share."""
    for axis in (0, 1):
        padded = np.concatenate([image.take([0], axis), image, image.take([image.shape[axis] - 1], axis)], axis=axis)
        before = padded.take(range(image.shape[axis]), axis)
        after = padded.take(range(2, image.shape[axis] + 2), axis)
        image = image * np.float32(1 - 2 * amount) + (before + after) * np.float32(amount)
    return image


def stroke(field: Field, points: NDArray[np.float64], radii: NDArray[np.float64], margin: float) -> None:
    """Draws a polyline of varying width into a signed distance field, in place, keeping the smaller distance.

    points: (P,2) as x, y in pixels; radii: (P,) half-widths. The field is below 0 inside the stroke and exact
    up to `margin` pixels outside it.
    """
    height, width = field.shape
    for (x0, y0), (x1, y1), r0, r1 in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
        reach = max(r0, r1) + margin
        left, right = max(0, math.floor(min(x0, x1) - reach)), min(width, math.ceil(max(x0, x1) + reach) + 1)
        top, bottom = max(0, math.floor(min(y0, y1) - reach)), min(height, math.ceil(max(y0, y1) + reach) + 1)
        if left >= right or top >= bottom:
            continue
        x = np.arange(left, right, dtype=np.float32) - np.float32(x0)
        y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(y0)
        dx, dy = np.float32(x1 - x0), np.float32(y1 - y0)
        along = np.clip((x * dx + y * dy) / max(float(dx * dx + dy * dy), 1e-9), 0, 1)
        distance = np.hypot(x - along * dx, y - along * dy) - (np.float32(r0) + along * np.float32(r1 - r0))
        part = field[top:bottom, left:right]
        np.minimum(part, distance, out=part)


def wander(
    rng: np.random.Generator,
    start: tuple[float, float],
    heading: float,
    *,
    step: float,
    count: int,
    turn: float,
) -> NDArray[np.float64]:
    """A path of `count` steps that keeps turning back to its heading, (count+1, 2) as x, y in pixels."""
    turns = rng.normal(0.0, turn, count)
    angle = np.empty(count)
    now = 0.0
    for i in range(count):
        now = 0.8 * now + turns[i]
        angle[i] = heading + now
    moves = step * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.concatenate([[start], np.asarray(start) + np.cumsum(moves, axis=0)])


def cover(image: NDArray[np.float32], material: NDArray[np.float32], share: Field) -> None:
    """Lays `material`, (C,) or (H,W,C), over an image (H,W,C) in place with opacity `share` (H,W), 0 to 1."""
    image += share[:, :, None] * (material - image)
