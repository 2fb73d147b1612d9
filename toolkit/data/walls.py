"""Paints one photograph of a rock or concrete face and the exact mask of the cracks in it."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.data.noise import FAR, Field, cover, fractal, hillshade, smoothstep, soften, stroke, wander

Image = NDArray[np.float32]
_UNIT = 448  # the size at which the widths below are pixels


@dataclass(frozen=True)
class Wall:
    """What photographs of one face share: its stone, how it has weathered, and the light."""

    stone: Image  # colour, 0 to 1, (3,)
    rough: float
    stained: float
    rock: bool  # natural rock instead of cast concrete
    azimuth: float
    light: float

    @staticmethod
    def draw(rng: np.random.Generator) -> "Wall":
        """A face at random."""
        grey = float(rng.uniform(0.22, 0.56))
        warmth = float(rng.normal(0.035, 0.025))
        return Wall(
            stone=np.array([grey * (1 + warmth), grey, grey * (1 - 1.3 * warmth)], dtype=np.float32),
            rough=float(rng.uniform(0.02, 0.07)),
            stained=float(rng.uniform(0.02, 0.13)),
            rock=bool(rng.random() < 0.4),
            azimuth=float(rng.uniform(-2.6, -0.6)),
            light=float(rng.uniform(0.85, 1.15)),
        )


def paint_wall(
    rng: np.random.Generator, wall: Wall, cracked: bool, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image (size,size,3) uint8 and its mask (size,size) uint8 of 0 and 1; all 0 unless `cracked`.

    A pixel is crack where at least half of it lies in the crack's outline and no plant hides it.
    """
    unit = size / _UNIT
    image = _surface(rng, wall, size, unit)
    for detail, chance in ((_joint, 0.35), (_blotches, 0.5), (_scratches, 0.4)):
        if rng.random() < chance + (0.0 if cracked else 0.2):  # a bare face has more to be mistaken
            detail(rng, image, unit)
    mask = np.zeros((size, size), dtype=np.bool_)
    if cracked:
        mask = _cracks(rng, image, unit)
    if rng.random() < 0.25:
        _ledge(rng, image, unit, mask)
    if rng.random() < (0.2 if cracked else 0.5):
        _cable(rng, image, unit, mask)
    if rng.random() < 0.35:
        _plants(rng, image, unit, mask)
    if rng.random() < 0.3:
        _shadow(rng, image, unit)
    image = soften(image, float(rng.uniform(0.0, 0.16)))
    image += rng.normal(0.0, float(rng.uniform(0.004, 0.014)), image.shape).astype(np.float32)
    pixels = np.rint(np.clip(image * np.float32(wall.light), 0, 1) * 255).astype(np.uint8)
    return pixels, mask.astype(np.uint8)


def _surface(rng: np.random.Generator, wall: Wall, size: int, unit: float) -> Image:
    relief = fractal(rng, size, 90 * unit, 6) * np.float32((2.2 if wall.rock else 0.5) * unit)
    relief += fractal(rng, size, 6 * unit, 2) * np.float32(1.2 * wall.rough)
    if wall.rock:  # bedding: layers that break the slope, tilted and warped
        rows, columns = np.ogrid[:size, :size]
        tilt = rng.normal(0.0, 0.35)
        bed = (rows + tilt * columns) / (26 * unit) + 0.35 * fractal(rng, size, 120 * unit, 3)
        relief += np.abs(np.mod(bed, 1).astype(np.float32) - np.float32(0.5)) * np.float32(2.5 * unit)
    tone = 1 + np.float32(wall.stained) * fractal(rng, size, 160 * unit, 5)
    tone += np.float32(0.6 * wall.stained) * fractal(rng, size, 50 * unit, 4, stretch=5.0)  # rain streaks
    tone += np.float32(wall.rough) * fractal(rng, size, 5 * unit, 3)
    tone += np.float32(0.5 * wall.rough) * rng.standard_normal((size, size), dtype=np.float32)
    tone *= hillshade(relief / np.float32(unit), wall.azimuth, 0.8)
    image = np.clip(tone, 0.3, 1.8)[:, :, None] * wall.stone
    rust = smoothstep(0.8, 2.2, fractal(rng, size, 140 * unit, 4, stretch=2.0)) * np.float32(0.5)
    cover(image, wall.stone * np.array([1.1, 0.95, 0.75], dtype=np.float32), rust)
    return np.asarray(image, dtype=np.float32)


def _cracks(rng: np.random.Generator, image: Image, unit: float) -> NDArray[np.bool_]:
    size = len(image)
    outline: Field = np.full((size, size), FAR, dtype=np.float32)
    fine = max(unit, 0.25)
    widest = float(rng.uniform(1.5, 4.5))
    for _ in range(int(rng.choice([1, 2], p=[0.65, 0.35]))):
        start, heading = _edge_start(rng, size)
        length = size * float(rng.uniform(0.7, 1.4))
        _grow(rng, outline, start, heading, length=length, radius=widest * fine, left=2)
    # Chipped lips catch the light on one side of the crack, before the crack itself is cut into them.
    chips = smoothstep(4 * unit + 1, 0, np.roll(outline, 1, axis=0))
    chips *= smoothstep(0.2, 1.4, fractal(rng, size, 14 * unit, 3))
    image *= 1 + (chips * np.float32(rng.uniform(0, 0.45)))[:, :, None]
    share = np.clip(0.5 - outline, 0, 1)
    core = np.clip(-outline / np.float32(2.0 * fine), 0, 1)
    dark = np.float32(rng.uniform(0.35, 0.62)) + np.float32(0.38) * core
    dark *= np.clip(1 + 0.15 * fractal(rng, size, 12 * unit, 2), 0.5, 1.3)
    image *= 1 - (share * np.clip(dark, 0, 0.96))[:, :, None]
    return np.asarray(outline <= 0)


def _grow(
    rng: np.random.Generator,
    outline: Field,
    start: tuple[float, float],
    heading: float,
    *,
    length: float,
    radius: float,
    left: int,
) -> None:
    """One crack and, `left` generations deep, its branches; thinner and shorter each time."""
    size = len(outline)
    step = max(size / 90, 1.0)
    count = max(3, round(length / step))
    path = wander(rng, start, heading, step=step, count=count, turn=0.22)
    path += np.cumsum(rng.normal(0, 0.16 * step, path.shape), axis=0)
    knots = np.arange(0, count + 8, 7)
    gape = np.interp(np.arange(count + 1), knots, rng.uniform(0.5, 1.0, len(knots)))
    taper = np.minimum(1.0, np.linspace(4.0, 0.0, count + 1))
    radii = np.maximum(radius * gape * taper + rng.normal(0, 0.08, count + 1), 0.5)
    stroke(outline, path, radii, 5.0)
    if left == 0:
        return
    for _ in range(int(rng.poisson(1.2))):
        at = int(rng.integers(1, count))
        aside = heading + float(rng.choice([-1, 1]) * rng.uniform(0.4, 1.1))
        spot = (float(path[at, 0]), float(path[at, 1]))
        shorter = length * float(rng.uniform(0.15, 0.45))
        _grow(rng, outline, spot, aside, length=shorter, radius=radii[at] * 0.7, left=left - 1)


def _edge_start(rng: np.random.Generator, size: int) -> tuple[tuple[float, float], float]:
    """A point on the rim of the image, or sometimes inside it, and a heading into the picture."""
    if rng.random() < 0.25:
        inside = (float(rng.uniform(0.15, 0.6) * size), float(rng.uniform(0.15, 0.85) * size))
        return inside, float(rng.normal(0, 0.7))
    along = float(rng.uniform(0.1, 0.9) * size)
    side = int(rng.choice(4, p=[0.4, 0.2, 0.2, 0.2]))
    starts = [(0.0, along), (along, 0.0), (size - 1.0, along), (along, size - 1.0)]
    return starts[side], side * math.pi / 2 + float(rng.normal(0, 0.4))


def _straight(rng: np.random.Generator, size: int, sag: float = 0.0) -> NDArray[np.float64]:
    """A line right across the image, nearly level or upright, hanging by `sag` pixels in the middle."""
    part = np.linspace(-0.05, 1.05, 24)
    along = part * size
    across = float(rng.uniform(0.1, 0.9)) * size + float(rng.normal(0, 0.08)) * size * part
    across = across + 4 * sag * part * (1 - part)
    return np.stack([along, across] if sag or rng.random() < 0.6 else [across, along], axis=1)


def _line(size: int, points: NDArray[np.float64], width: float, margin: float = 6.0) -> Field:
    field: Field = np.full((size, size), FAR, dtype=np.float32)
    stroke(field, points, np.full(len(points), width / 2), margin)
    return field


def _joint(rng: np.random.Generator, image: Image, unit: float) -> None:
    """Formwork or expansion joints: dark and straight, the commonest thing mistaken for a crack."""
    for _ in range(int(rng.integers(1, 3))):
        line = _line(len(image), _straight(rng, len(image)), max(1.0, float(rng.uniform(2, 8)) * unit))
        share = np.clip(0.5 - line, 0, 1) * np.float32(rng.uniform(0.25, 0.6))
        lip = np.clip(0.5 - np.abs(line - np.float32(2 * unit)) / max(2 * unit, 1), 0, 1)
        image *= (1 - share + np.float32(0.2) * lip)[:, :, None]


def _ledge(rng: np.random.Generator, image: Image, unit: float, mask: NDArray[np.bool_]) -> None:
    """The foot or crest of the face: beyond it lies uncracked ground, smooth as water or rough as soil."""
    size = len(image)
    rows, columns = np.ogrid[:size, :size]
    edge = float(rng.uniform(0.6, 0.95)) * size + float(rng.normal(0, 0.04)) * columns
    roughness = float(rng.choice([0.5, 6.0]))
    beyond = np.asarray(rows - edge, dtype=np.float32)
    beyond += np.float32(roughness * unit) * fractal(rng, size, 40 * unit, 4)
    if rng.random() < 0.4:
        beyond = beyond[::-1]
    colour = np.array([[0.24, 0.25, 0.19], [0.30, 0.33, 0.32], [0.19, 0.16, 0.13]], dtype=np.float32)
    ground = colour[int(rng.integers(3))] * (
        1 + np.float32(0.04 * roughness) * fractal(rng, size, 30 * unit, 5)[:, :, None]
    )
    band = np.clip(1 - np.abs(beyond) / np.float32(9 * unit), 0, 1)
    image *= (1 - np.float32(rng.uniform(0.2, 0.6)) * band)[:, :, None]
    share = smoothstep(0, max(2 * unit, 1.0), beyond)
    cover(image, np.clip(ground, 0.02, 1), share)
    mask &= share < 0.5


def _blotches(rng: np.random.Generator, image: Image, unit: float) -> None:
    """Lime that has washed out: white, ragged patches."""
    where = fractal(rng, len(image), 110 * unit, 3) + 0.7 * fractal(rng, len(image), 10 * unit, 3)
    share = smoothstep(1.0, 2.3, where) * np.float32(rng.uniform(0.2, 0.7))
    cover(image, np.array([0.80, 0.77, 0.72], dtype=np.float32), share)


def _scratches(rng: np.random.Generator, image: Image, unit: float) -> None:
    """Light scratches and dark, faint drying lines: as thin as cracks, but with no depth."""
    size = len(image)
    for _ in range(int(rng.integers(1, 5))):
        at = (float(rng.uniform(0, size)), float(rng.uniform(0, size)))
        heading, count = float(rng.uniform(0, 6.3)), int(rng.integers(6, 25))
        path = wander(rng, at, heading, step=size / 60, count=count, turn=0.06)
        share = np.clip(0.5 - _line(size, path, max(1.0, 1.5 * unit), 1.0), 0, 1)
        image *= 1 + (share * np.float32(rng.choice([-0.15, 0.18, 0.3])))[:, :, None]


def _cable(rng: np.random.Generator, image: Image, unit: float, mask: NDArray[np.bool_]) -> None:
    """A cable or hose before the face: dark, even in width, with a glint and a shadow; it hides cracks."""
    size = len(image)
    points = _straight(rng, size, sag=float(rng.uniform(0.02, 0.2)) * size)
    width = max(1.0, float(rng.uniform(3, 8)) * unit)
    line = _line(size, points, width)
    shadow = np.roll(smoothstep(2.5 * unit + 0.5, -0.5, line), max(1, round(6 * unit)), axis=0)
    image *= (1 - np.float32(0.3) * shadow)[:, :, None]
    tone = np.float32(rng.uniform(0.05, 0.3)) * (1 + np.clip(-line / np.float32(width), 0, 0.5))
    share = np.clip(0.5 - line, 0, 1)
    cover(image, np.repeat(tone[:, :, None], 3, axis=2), share)
    mask &= share < 0.5


def _plants(rng: np.random.Generator, image: Image, unit: float, mask: NDArray[np.bool_]) -> None:
    """Moss and shrubs in tufts; they hide the crack behind them."""
    size = len(image)
    where = fractal(rng, size, 120 * unit, 3) + 0.5 * fractal(rng, size, 9 * unit, 3)
    share = smoothstep(1.5, 1.9, where)
    leaf = np.array([0.20, 0.23, 0.12], dtype=np.float32) * np.float32(rng.uniform(0.6, 1.4))
    leaves = leaf * np.clip(1 + 0.35 * fractal(rng, size, 5 * unit, 2), 0.3, 2)[:, :, None]
    cover(image, leaves, share)
    mask &= share < 0.5


def _shadow(rng: np.random.Generator, image: Image, unit: float) -> None:
    """The soft-edged shadow of something outside the picture."""
    size = len(image)
    rows, columns = np.ogrid[:size, :size]
    angle = float(rng.uniform(0, 2 * math.pi))
    beyond = (columns - size / 2) * math.cos(angle) + (rows - size / 2) * math.sin(angle)
    edge = np.asarray(beyond - float(rng.uniform(-0.2, 0.4)) * size, dtype=np.float32)
    edge += np.float32(12 * unit) * fractal(rng, size, 70 * unit, 2)
    share = smoothstep(-8 * unit, 8 * unit, edge) * np.float32(rng.uniform(0.25, 0.55))
    image *= 1 - share[:, :, None] * np.array([1.0, 0.96, 0.88], dtype=np.float32)
